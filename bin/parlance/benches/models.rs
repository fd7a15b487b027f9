//! The first answer behind a cold start beside the later ones, and two models that share the machine's cores beside one that has them alone.
//!
//! `cargo bench -p parlance --bench models`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there).
//! `STARTS` changes how often a node is started.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;
mod streamed;

use std::{
    env,
    time::{Duration, Instant},
};

use common::{Node, Place};
use futures_util::future::join_all;
use serde_json::json;
use streamed::{Answer, model_directory};

/// Answers behind the first one.
const LATER: usize = 20;
/// Answers of each caller where models run side by side.
const ANSWERS: usize = 3;
const CALLERS: usize = 8;
const TOKENS: u32 = 64;

/// What is asked first behind a start.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Json,
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

/// A node with so many models of the same weights, `m0` and so on.
fn start(place: &Place, models: usize, lanes: usize) -> Node {
    let section = |number| {
        format!(
            "[models.m{number}]\nsource = '{}'\nlanes = {lanes}\n",
            model_directory().join("smollm2-135m-instruct.gguf").display()
        )
    };
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
    let url = node.url("");
    runtime.block_on(async {
        let client = reqwest::Client::new();
        // The client's own first connection is not the node's matter.
        client.get(node.url("/healthz")).send().await.expect("an answer");
        let first = ask(&client, &url, "m0", kind, start_number * 100).await.first_token();
        let mut later = Vec::new();
        for number in 1..=LATER {
            later.push(ask(&client, &url, "m0", kind, start_number * 100 + number).await.first_token());
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
        let url = node.url("");
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
            let mut firsts: Vec<Duration> = answers.iter().map(|answer| answer.first_token()).collect();
            firsts.sort_unstable();
            let tokens: u64 = answers.iter().map(|answer| answer.usage.new_tokens).sum();
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

async fn ask(client: &reqwest::Client, url: &str, model: &str, kind: Kind, number: usize) -> Answer {
    let words = streamed::random_words(number as u64, 90).join(" ");
    let mut body = json!({
        "model": model, "max_tokens": TOKENS, "temperature": 0, "stream": true, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": format!("{words}. Write a story in which all of these words occur.") }],
    });
    if matches!(kind, Kind::Json) {
        body["response_format"] = json!({ "type": "json_object" });
    }
    streamed::ask(client, url, &body).await
}
