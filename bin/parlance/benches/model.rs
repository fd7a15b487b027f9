//! The real model through the public face: start, time to first token, tokens per second.
//!
//! `cargo bench -p parlance --bench model`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there).
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{Node, Place};
use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

const QUESTION: &str = "Explain in a few sentences why the sky is blue and why sunsets are red.";
const TOKENS: u32 = 64;
const ROUNDS: usize = 3;

/// One streamed answer.
struct Answer {
    first_token: Duration,
    tokens: u64,
}

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let models = std::env::var("PARLANCE_MODEL_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").to_owned());
    let place = Place::new();
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(place.data()).env("PARLANCE_MODEL_DIR", models);
    let began = Instant::now();
    let node = Node::start(&place, &mut up);
    let listening = began.elapsed();
    node.wait_ready();
    println!(
        "start: listening after {:.2} s, ready after {:.2} s",
        listening.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    for callers in [1, 4, 8, 16] {
        runtime.block_on(measure(&node.url("/v1/chat/completions"), callers));
    }
}

async fn measure(url: &str, callers: usize) {
    let client = reqwest::Client::new();
    let mut firsts = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let answers = join_all((0..callers).map(|caller| ask(&client, url, caller))).await;
        rates.push(answers.iter().map(|answer| answer.tokens).sum::<u64>() as f64 / began.elapsed().as_secs_f64());
        firsts.extend(answers.iter().map(|answer| answer.first_token));
    }
    firsts.sort_unstable();
    rates.sort_unstable_by(f64::total_cmp);
    let first = firsts[firsts.len() / 2].as_secs_f64() * 1e3;
    println!("model, {callers} callers: {:.0} tokens/s, first token p50 {first:.0} ms", rates[rates.len() / 2]);
}

/// Every caller says something else, so that no answer's start is found in a cache.
async fn ask(client: &reqwest::Client, url: &str, caller: usize) -> Answer {
    let body = json!({
        "messages": [{ "role": "user", "content": format!("{QUESTION} This is question {caller}.") }],
        "max_tokens": TOKENS, "temperature": 0, "stream": true, "stream_options": { "include_usage": true },
    });
    let began = Instant::now();
    let response = client.post(url).json(&body).send().await.expect("an answer").error_for_status().expect("accepted");
    let mut stream = response.bytes_stream();
    let (mut text, mut first_token) = (String::new(), None);
    while let Some(chunk) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&chunk.expect("the stream goes on")));
        if first_token.is_none() && has_content(&text) {
            first_token = Some(began.elapsed());
        }
    }
    let events = text.split("\n\n").filter_map(|frame| frame.trim().strip_prefix("data: "));
    let usage =
        events.filter_map(|data| serde_json::from_str::<Value>(data).ok()).find(|event| event["usage"].is_object());
    let tokens = usage.and_then(|event| event["usage"]["completion_tokens"].as_u64()).expect("the usage is told");
    Answer { first_token: first_token.expect("the answer has text"), tokens }
}

/// Whether a delta bore text: the first one only names the role.
fn has_content(frames: &str) -> bool {
    let key = "\"content\":\"";
    frames.match_indices(key).any(|(at, _)| !frames[at + key.len()..].starts_with('"'))
}
