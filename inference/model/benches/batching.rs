//! What a long prompt costs the streams beside it: 1,500 tokens come while four replies run, once in chunks and once as a whole.
//!
//! `cargo bench -p parlance-inference-model --bench batching`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it
//! there). Fails if chunks are not five times as good at the 99th percentile of the time from token to token.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod common;

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use common::load_default_model;
use parlance_inference_engine::{
    CancelHandle, ChatMessage, ChatRole, Engine, EngineOptions, EngineReplica, GenerateEvent, GenerateRequest,
    PreparedPrompt, PromptBudget, Replica, StepCosts,
};

const STREAMS: usize = 4;
const LONG_PROMPT: usize = 1_500;
const ROUNDS: usize = 5;
const LEAST_GAIN: f64 = 5.0;

fn main() {
    let chunked = EngineOptions::default();
    let whole = EngineOptions { step_tokens: 1 << 20, prefill_chunk: 1 << 20, ..chunked };
    let [chunked, whole] = [chunked, whole].map(start);
    let (mut in_chunks, mut at_once) = (Seen::default(), Seen::default());
    for round in 0..ROUNDS {
        in_chunks.add(disturb(&chunked, round));
        at_once.add(disturb(&whole, round));
    }
    for (name, seen) in [("in chunks of 64", &in_chunks), ("as a whole", &at_once)] {
        let [p50, p99] = [50, 99].map(|hundredth| quantile(&seen.gaps, hundredth).as_secs_f64() * 1e3);
        let first = quantile(&seen.firsts, 50).as_secs_f64() * 1e3;
        println!(
            "{LONG_PROMPT} tokens {name}: token to token p50 {p50:.1} ms, p99 {p99:.1} ms; its first token {first:.0} ms"
        );
    }
    let gain = quantile(&at_once.gaps, 99).as_secs_f64() / quantile(&in_chunks.gaps, 99).as_secs_f64();
    println!("batching: {gain:.1} times better p99 beside a long prompt");
    assert!(gain >= LEAST_GAIN, "{gain:.1} times is less than {LEAST_GAIN}");
}

/// What was seen of streams and of the long prompt beside them.
#[derive(Default)]
struct Seen {
    /// From token to token of the streams, while the prompt was computed.
    gaps: Vec<Duration>,
    firsts: Vec<Duration>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.gaps.extend(other.gaps);
        self.firsts.extend(other.firsts);
    }
}

fn start(options: EngineOptions) -> EngineReplica {
    let mut loaded = load_default_model(STREAMS + 1);
    let costs = StepCosts::measure(&mut loaded.model).expect("it computes");
    Engine::start(Box::new(loaded.model), loaded.codec, EngineOptions { costs, ..options })
}

/// Lets four replies run, submits the long prompt, and watches them until it has its first token.
fn disturb(replica: &dyn Replica, round: usize) -> Seen {
    let start = |stream| Stream::start(replica, story(replica, round, stream), 400);
    let mut streams: Vec<_> = (0..STREAMS).map(start).collect();
    for stream in &mut streams {
        (0..10).for_each(|_| _ = stream.next());
    }
    let long = (0..LONG_PROMPT).map(|at| (1_000 + (at * 7 + round) % 20_000) as u32).collect();
    let submitted = Instant::now();
    let begun = Stream::start(replica, given(long), 1).next();
    let gaps = streams.into_iter().flat_map(|stream| stream.gaps_between(submitted, begun)).collect();
    Seen { gaps, firsts: vec![begun - submitted] }
}

/// The moments of one request's tokens.
struct Stream {
    tokens: Receiver<Instant>,
    last: Instant,
    cancel: CancelHandle,
}

impl Stream {
    fn start(replica: &dyn Replica, prompt: PreparedPrompt, max_tokens: u32) -> Self {
        let request = GenerateRequest::greedy("bench", prompt, max_tokens);
        let (told, tokens) = channel();
        let sink = move |event| match event {
            GenerateEvent::Tokens { .. } => told.send(Instant::now()).is_ok(),
            GenerateEvent::Finished { .. } => true,
            GenerateEvent::Failed(error) => panic!("{error}"),
        };
        let cancel = replica.submit(request, Box::new(sink)).expect("there is room");
        Self { tokens, last: Instant::now(), cancel }
    }

    fn next(&mut self) -> Instant {
        self.last = self.tokens.recv().expect("the reply goes on");
        self.last
    }

    /// The times between those of the next tokens of which the later came between `from` and `to`. Ends the stream.
    fn gaps_between(mut self, from: Instant, to: Instant) -> Vec<Duration> {
        let mut gaps = Vec::new();
        while self.last < to {
            let last = self.last;
            if self.next() > from {
                gaps.push(self.last - last);
            }
        }
        self.cancel.cancel();
        gaps
    }
}

fn story(replica: &dyn Replica, round: usize, stream: usize) -> PreparedPrompt {
    let content = format!("Write a very long story in {} chapters about a lighthouse keeper.", 20 + 4 * round + stream);
    let messages = [ChatMessage { role: ChatRole::User, content: &content }];
    replica.prepare(&messages, PromptBudget { reserve: 400, drop_oldest: false }).expect("it fits")
}

fn given(tokens: Vec<u32>) -> PreparedPrompt {
    let token_count = tokens.len() as u32;
    PreparedPrompt { tokens, token_count, last_user_text: String::new(), dropped_messages: 0 }
}

fn quantile(times: &[Duration], hundredth: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[((times.len() - 1) * hundredth).div_ceil(100)]
}
