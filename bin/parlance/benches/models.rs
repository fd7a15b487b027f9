//! The first answer behind a cold start beside the later ones, and two models that share the machine's cores beside one that has them alone.
//!
//! `cargo bench -p parlance --bench models`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there).
//! `STARTS` changes how often a node is started.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{Node, Place};
use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

/// Answers behind the first one.
const LATER: usize = 20;
/// Answers of each caller where models run side by side.
const ANSWERS: usize = 3;
const CALLERS: usize = 8;
const TOKENS: u32 = 64;
/// Words that a prompt is made of: one token each, or a little more.
const WORDS: [&str; 16] = [
    "river", "stone", "garden", "music", "winter", "paper", "bridge", "candle", "forest", "market", "window", "summer",
    "letter", "silver", "ocean", "morning",
];

/// What is asked first behind a start.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Json,
}

/// One streamed answer.
struct Answer {
    first_token: Duration,
    tokens: u64,
}

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let starts: usize = env::var("STARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    for (name, kind) in [("text", Kind::Text), ("JSON", Kind::Json)] {
        let mut ratios: Vec<f64> = (0..starts).map(|start| first_to_later(&runtime, kind, start)).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let worst = ratios.last().expect("a start");
        println!(
            "first answer, {name}: {:.2} times the median of the next {LATER}; at worst {worst:.2}",
            ratios[starts / 2]
        );
    }
    side_by_side(&runtime);
}

fn weights() -> PathBuf {
    let directory = env::var("PARLANCE_MODEL_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").to_owned());
    Path::new(&directory).join("smollm2-135m-instruct.gguf")
}

/// A node with so many models of the same weights, `m0` and so on.
fn start(place: &Place, models: usize, lanes: usize) -> Node {
    let section = |number| format!("[models.m{number}]\nsource = '{}'\nlanes = {lanes}\n", weights().display());
    let config = place.file("parlance.toml", (0..models).map(section).collect::<String>());
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
    let node = Node::start(place, &mut up);
    node.wait_ready();
    node
}

/// How much longer the first token of the first answer takes than the median of the next ones.
fn first_to_later(runtime: &tokio::runtime::Runtime, kind: Kind, start_number: usize) -> f64 {
    let place = Place::new();
    let node = start(&place, 1, 16);
    let url = node.url("/v1/chat/completions");
    runtime.block_on(async {
        let client = reqwest::Client::new();
        // The client's own first connection is not the node's matter.
        client.get(node.url("/healthz")).send().await.expect("an answer");
        let first = ask(&client, &url, "m0", kind, start_number * 100).await.first_token;
        let mut later = Vec::new();
        for number in 1..=LATER {
            later.push(ask(&client, &url, "m0", kind, start_number * 100 + number).await.first_token);
        }
        later.sort_unstable();
        let median = later[LATER / 2];
        println!("  first {:.1} ms, then {:.1} ms", millis(first), millis(median));
        first.as_secs_f64() / median.as_secs_f64()
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The same callers on one model, and shared out between two.
fn side_by_side(runtime: &tokio::runtime::Runtime) {
    for models in [1, 2] {
        let place = Place::new();
        let node = start(&place, models, 2 * CALLERS);
        let url = node.url("/v1/chat/completions");
        let (tokens, took, first) = runtime.block_on(async {
            let client = reqwest::Client::new();
            let began = Instant::now();
            let callers = (0..2 * CALLERS).map(|caller| {
                let (client, url, model) = (&client, &url, format!("m{}", caller % models));
                async move {
                    let mut answers = Vec::new();
                    for number in 0..ANSWERS {
                        answers.push(ask(client, url, &model, Kind::Text, caller * 100 + number).await);
                    }
                    answers
                }
            });
            let answers: Vec<Answer> = join_all(callers).await.into_iter().flatten().collect();
            let mut firsts: Vec<Duration> = answers.iter().map(|answer| answer.first_token).collect();
            firsts.sort_unstable();
            let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
            (tokens, began.elapsed(), firsts[firsts.len() / 2])
        });
        let rate = tokens as f64 / took.as_secs_f64();
        println!(
            "{} callers on {models} model(s): {rate:.0} tokens/s, first token p50 {:.0} ms",
            2 * CALLERS,
            millis(first)
        );
    }
}

/// Other words from the first one on, so that nothing of it is in a cache.
fn prompt(number: usize) -> String {
    let mut state = 1 + number as u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 60) as usize]
    };
    let words: Vec<&str> = (0..90).map(|_| word()).collect();
    format!("{}. Write a story in which all of these words occur.", words.join(" "))
}

async fn ask(client: &reqwest::Client, url: &str, model: &str, kind: Kind, number: usize) -> Answer {
    let mut body = json!({
        "model": model, "messages": [{ "role": "user", "content": prompt(number) }], "max_tokens": TOKENS,
        "temperature": 0, "stream": true, "stream_options": { "include_usage": true },
    });
    if matches!(kind, Kind::Json) {
        body["response_format"] = json!({ "type": "json_object" });
    }
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
