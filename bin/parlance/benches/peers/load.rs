//! The requests, and what a caller sees of their answers.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

use super::Running;

/// Random words of prompts that have 127 to 129 and 511 to 513 tokens in all.
const PROMPT_WORDS: usize = 91;
const LONG_PROMPT_WORDS: usize = 475;
const SHORT_PROMPT_WORDS: usize = 4;
const NEW_TOKENS: u64 = 64;
/// New tokens where decoding is timed: enough that all callers are at it together for a while.
const DECODED_TOKENS: u64 = 128;
/// Answers at one number of callers: each caller has two, or as many as make this.
const LEAST_ANSWERS: u64 = 6;
/// Words of one token each.
const WORDS: [&str; 16] = [
    "river", "stone", "garden", "music", "winter", "paper", "bridge", "candle", "forest", "market", "window", "summer",
    "letter", "silver", "ocean", "morning",
];

/// What callers in a closed loop saw.
pub(crate) struct Loop {
    pub(crate) answers: Vec<Answer>,
    pub(crate) took: Duration,
}

/// What one caller saw of one answer.
pub(crate) struct Answer {
    began: Instant,
    /// When each piece of text came: mostly a token each.
    pieces: Vec<Instant>,
    ended: Instant,
    /// As the server counts.
    pub(crate) usage: Usage,
}

/// What a server counted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    /// Of the prompt's tokens, those found in a cache.
    pub(crate) cached_tokens: u64,
    pub(crate) new_tokens: u64,
}

impl Answer {
    pub(crate) fn first_token(&self) -> Duration {
        *self.pieces.first().expect("an answer has text") - self.began
    }

    /// From each piece of text to the next.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.pieces.windows(2).map(|pair| pair[1] - pair[0])
    }
}

/// A client that takes a new connection for every request: a server may close an idle one just when it is used again.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client")
}

/// Has one token made.
pub(crate) async fn warm_up(client: &reqwest::Client, running: &Running, seed: u64) {
    ask(client, running, seed, SHORT_PROMPT_WORDS, 1).await;
}

/// Every caller asks again as soon as it is answered.
pub(crate) async fn closed_loop(client: &reqwest::Client, running: &Running, callers: u64, seed: u64) -> Loop {
    let answers_each = (LEAST_ANSWERS / callers).max(2);
    let call = async |caller: u64| {
        let mut answers = Vec::new();
        for number in 0..answers_each {
            let seed = seed + caller * answers_each + number;
            answers.push(ask(client, running, seed, PROMPT_WORDS, NEW_TOKENS).await);
        }
        answers
    };
    let began = Instant::now();
    let answers = join_all((0..callers).map(call)).await.into_iter().flatten().collect();
    Loop { answers, took: began.elapsed() }
}

/// Tokens per second of a long prompt until its one new token is there.
pub(crate) async fn prefill(client: &reqwest::Client, running: &Running, seed: u64) -> f64 {
    let answer = ask(client, running, seed, LONG_PROMPT_WORDS, 1).await;
    answer.usage.prompt_tokens as f64 / (answer.ended - answer.began).as_secs_f64()
}

/// Tokens per second of all callers together, from the last one's first token until half of them have ended: a server that cannot be told
/// to go on past the end of the text is not flattered. Nothing if there is no such time.
pub(crate) async fn decode(client: &reqwest::Client, running: &Running, callers: u64, seed: u64) -> Option<f64> {
    let call = |caller| ask(client, running, seed + caller, SHORT_PROMPT_WORDS, DECODED_TOKENS);
    let answers = join_all((0..callers).map(call)).await;
    let from = *answers.iter().filter_map(|answer| answer.pieces.first()).max()?;
    let mut ends: Vec<Instant> = answers.iter().filter_map(|answer| answer.pieces.last().copied()).collect();
    ends.sort_unstable();
    let until = ends[ends.len() / 2];
    let pieces = || answers.iter().flat_map(|answer| &answer.pieces);
    let together = pieces().filter(|&&at| from < at && at <= until).count() as f64;
    let tokens: u64 = answers.iter().map(|answer| answer.usage.new_tokens).sum();
    (from < until).then(|| together * tokens as f64 / pieces().count() as f64 / (until - from).as_secs_f64())
}

/// Random words and an instruction that makes the model go on for long, as messages. The words begin with the first message, so that no
/// prompt's beginning is in a cache.
fn messages(seed: u64, count: usize) -> Value {
    let mut state = seed + 1;
    let mut words = |count: usize| {
        let word = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            WORDS[(state >> 60) as usize]
        };
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let system = words(4);
    let user = format!("{}. Write a long story in which all of these words occur, one after the other.", words(count));
    json!([{ "role": "system", "content": system }, { "role": "user", "content": user }])
}

async fn ask(client: &reqwest::Client, running: &Running, seed: u64, words: usize, new_tokens: u64) -> Answer {
    let mut body = json!({
        "model": "default", "messages": messages(seed, words), "max_tokens": new_tokens, "temperature": 0,
        "stream": true, "stream_options": { "include_usage": true },
    });
    for &(name, value) in running.switches {
        body[name] = value.into();
    }
    let began = Instant::now();
    let request = client.post(format!("{}/v1/chat/completions", running.url)).json(&body);
    let response = request.send().await.expect("an answer").error_for_status().expect("accepted");
    let mut stream = response.bytes_stream();
    let (mut buffer, mut pieces, mut usage) = (Vec::new(), Vec::new(), None);
    while let Some(chunk) = stream.next().await {
        buffer.extend_from_slice(&chunk.expect("the stream goes on"));
        while let Some(end) = buffer.windows(2).position(|bytes| bytes == b"\n\n") {
            let frame: Vec<u8> = buffer.drain(..end + 2).collect();
            let Some(event) = event(&frame) else { continue };
            if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                pieces.push(Instant::now());
            }
            usage = read_usage(&event["usage"]).or(usage);
        }
    }
    Answer { began, pieces, ended: Instant::now(), usage: usage.expect("the usage is told") }
}

/// The JSON of a frame of an event stream, if it bears some.
fn event(frame: &[u8]) -> Option<Value> {
    serde_json::from_slice(frame.strip_prefix(b"data: ")?).ok()
}

fn read_usage(usage: &Value) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: usage["prompt_tokens"].as_u64()?,
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        new_tokens: usage["completion_tokens"].as_u64()?,
    })
}
