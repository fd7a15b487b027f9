//! The real model through the public face: start, time to first token, tokens per second.
//!
//! `cargo bench -p parlance --bench model`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there).
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;
mod streamed;

use std::time::Instant;

use common::{Node, Place};
use futures_util::future::join_all;
use serde_json::json;
use streamed::{Answer, model_directory};

const QUESTION: &str = "Explain in a few sentences why the sky is blue and why sunsets are red.";
const TOKENS: u32 = 64;
const ROUNDS: usize = 3;

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let place = Place::new();
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(place.data()).env("PARLANCE_MODEL_DIR", model_directory());
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
        runtime.block_on(measure(&node.url(""), callers));
    }
}

async fn measure(url: &str, callers: usize) {
    let client = reqwest::Client::new();
    let mut firsts = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let answers = join_all((0..callers).map(|caller| ask(&client, url, caller))).await;
        rates.push(
            answers.iter().map(|answer| answer.usage.new_tokens).sum::<u64>() as f64 / began.elapsed().as_secs_f64(),
        );
        firsts.extend(answers.iter().map(|answer| answer.first_token()));
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
    streamed::ask(client, url, &body).await
}
