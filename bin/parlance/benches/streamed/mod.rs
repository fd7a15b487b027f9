//! What the benchmarks of models share: a streamed answer as its caller sees it, prompts that are in no cache, and where the weights are.

#![expect(dead_code, reason = "every benchmark compiles this module and uses its own part of it")]

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use serde_json::Value;

/// Words of one token each.
const WORDS: [&str; 16] = [
    "river", "stone", "garden", "music", "winter", "paper", "bridge", "candle", "forest", "market", "window", "summer",
    "letter", "silver", "ocean", "morning",
];

/// What a caller saw of one answer.
pub(crate) struct Answer {
    pub(crate) began: Instant,
    /// When each piece of text came: mostly a token each.
    pub(crate) pieces: Vec<Instant>,
    pub(crate) ended: Instant,
    pub(crate) text: String,
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

/// Asks for `body`, which wants a stream with usage, at `url`, a server's address without a path.
pub(crate) async fn ask(client: &reqwest::Client, url: &str, body: &Value) -> Answer {
    let began = Instant::now();
    let request = client.post(format!("{url}/v1/chat/completions")).json(body);
    let response = request.send().await.expect("an answer").error_for_status().expect("accepted");
    let mut stream = response.bytes_stream();
    let (mut buffer, mut pieces, mut whole, mut usage) = (Vec::new(), Vec::new(), String::new(), None);
    while let Some(chunk) = stream.next().await {
        buffer.extend_from_slice(&chunk.expect("the stream goes on"));
        while let Some(end) = buffer.windows(2).position(|bytes| bytes == b"\n\n") {
            let frame: Vec<u8> = buffer.drain(..end + 2).collect();
            let Some(event) = event(&frame) else { continue };
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
                pieces.push(Instant::now());
                whole.push_str(text);
            }
            usage = read_usage(&event["usage"]).or(usage);
        }
    }
    Answer { began, pieces, ended: Instant::now(), text: whole, usage: usage.expect("the usage is told") }
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

/// Other words for other seeds, from the first one on, so that nothing of them is in a cache.
pub(crate) fn random_words(seed: u64, count: usize) -> Vec<&'static str> {
    let mut state = seed + 1;
    let word = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 60) as usize]
    };
    (0..count).map(word).collect()
}

/// Where `parlance model fetch` has put the weights.
pub(crate) fn model_directory() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");
    env::var_os("PARLANCE_MODEL_DIR").map_or_else(|| default.into(), PathBuf::from)
}
