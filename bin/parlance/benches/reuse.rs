//! What was said before costs less: beginnings that are in the KV cache, and replies that repeat what the prompt or they themselves say. The real
//! model through the streaming HTTP interface.
//!
//! `cargo bench -p parlance --bench reuse`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there). `PASSES` changes
//! how often everything is measured.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;
mod streamed;

use std::{env, time::Instant};

use common::{Node, Place};
use futures_util::future::join_all;
use serde_json::{Value, json};
use streamed::{Answer, model_directory};

/// Prose and code that the prompts are made of.
const PROSE: &str = include_str!("../../../ARCHITECTURE.md");
const CODE: &str = include_str!("../src/failure.rs");
/// Bytes of a chat of about a thousand tokens, and of a system prompt of about five hundred.
const LONG: usize = 4_400;
const SYSTEM: usize = 2_000;
const CALLERS: [usize; 2] = [1, 8];

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let passes: usize = env::var("PASSES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let [auto, off] = ["auto", "off"].map(Server::start);
    runtime.block_on(beginnings(&auto, passes));
    println!("\ntokens/s (median of {passes})  | speculation off | auto | auto / off, pass by pass");
    for callers in CALLERS {
        for text in [Text::Copied, Text::Edited, Text::New] {
            runtime.block_on(guesses(&auto, &off, text, callers, passes));
        }
    }
}

/// A node that runs.
struct Server {
    node: Node,
    client: reqwest::Client,
    _place: Place,
}

impl Server {
    fn start(speculation: &str) -> Self {
        let place = Place::new();
        let config = place.file("parlance.toml", format!("[models.default]\nspeculation = '{speculation}'\n"));
        let mut up = place.parlance();
        up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
        let node = Node::start(&place, up.env("PARLANCE_MODEL_DIR", model_directory()));
        node.wait_ready();
        Self { node, client: reqwest::Client::new(), _place: place }
    }

    /// Streams one answer.
    async fn ask(&self, messages: &Value, max_tokens: u64) -> Answer {
        let body = json!({
            "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": true,
            "stream_options": { "include_usage": true },
        });
        streamed::ask(&self.client, &self.node.url(""), &body).await
    }
}

/// The first token of a second turn, and of a question behind a system prompt that others have used, against cold ones.
async fn beginnings(server: &Server, passes: usize) {
    let mut rows = [vec![], vec![], vec![], vec![]];
    let (mut prompts, mut cached) = (vec![], vec![]);
    for pass in 0..passes {
        // Other words from the first one on, so that nothing of it is in the cache.
        let long = json!({ "role": "user", "content": format!("{pass}. {}\n\nWhat is it about?", cut(PROSE, pass * 97, LONG)) });
        let first = server.ask(&json!([long]), 32).await;
        let reply = json!({ "role": "assistant", "content": first.text });
        let second = server.ask(&json!([long, reply, { "role": "user", "content": "And in one word?" }]), 8).await;
        let system = json!({ "role": "system", "content": format!("{pass}. {}", cut(PROSE, pass * 97, SYSTEM)) });
        let question = |text: &str| json!([system, { "role": "user", "content": text }]);
        let one = server.ask(&question("Who owns a session?"), 8).await;
        let other = server.ask(&question("What may never happen, and why not?"), 8).await;
        for (row, answer) in rows.iter_mut().zip([&first, &second, &one, &other]) {
            row.push(answer.first_token().as_secs_f64() * 1e3);
        }
        prompts.push(second.usage.prompt_tokens as f64);
        cached.push(second.usage.cached_tokens as f64);
    }
    let [first, second, one, other] = rows.map(median);
    println!("first token, ms (median of {passes})");
    println!(
        "chat of {:.0} tokens: first turn {first:.1}, second turn {second:.1} ({:.0} %)",
        median(prompts.clone()),
        100.0 * second / first
    );
    println!("cached of the second turn's {:.0} tokens: {:.0}", median(prompts), median(cached));
    println!(
        "system prompt of some 500 tokens: first question {one:.1}, another {other:.1} ({:.0} %)",
        100.0 * other / one
    );
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Text {
    /// A quotation.
    Copied,
    /// Code with a small change.
    Edited,
    /// Nothing that was said before.
    New,
}

impl Text {
    fn messages(self, caller: usize, pass: usize) -> Value {
        let at = caller * 331 + pass * 97;
        let content = match self {
            Self::Copied => format!("Repeat this text word for word:\n\n{}", cut(PROSE, at, 900)),
            Self::Edited => format!(
                "Here is a program:\n\n```\n{}\n```\n\nWrite it down again with `Failure` renamed to `Problem`.",
                cut(CODE, at, 900)
            ),
            Self::New => {
                format!("This is question {at}. Tell me a story of a person who has {} cats and a boat.", at % 89)
            }
        };
        json!([{ "role": "user", "content": content }])
    }
}

async fn guesses(auto: &Server, off: &Server, text: Text, callers: usize, passes: usize) {
    let (mut rates, mut ratios) = ([vec![], vec![]], vec![]);
    for pass in 0..passes {
        // In turn first, so that neither has the quieter moments.
        let order = if pass % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut rate = [0.0; 2];
        for which in order {
            rate[which] = tokens_per_second([off, auto][which], text, callers, pass).await;
            rates[which].push(rate[which]);
        }
        ratios.push(rate[1] / rate[0]);
    }
    let [off, auto] = rates.map(median);
    let ratios: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    println!("{text:?}, {callers} callers | {off:.0} | {auto:.0} | {}", ratios.join(" "));
}

/// Of the decoding: from the first token on.
async fn tokens_per_second(server: &Server, text: Text, callers: usize, pass: usize) -> f64 {
    // Once before, so that the prompts are in the cache and what is measured is decoding.
    join_all((0..callers).map(async |caller| server.ask(&text.messages(caller, pass), 1).await)).await;
    let began = Instant::now();
    let answers = join_all((0..callers).map(async |caller| server.ask(&text.messages(caller, pass), 192).await)).await;
    let tokens: u64 = answers.iter().map(|answer| answer.usage.new_tokens).sum();
    tokens as f64 / began.elapsed().as_secs_f64()
}

/// So many bytes of a text, from a place on, which both are moved to whole characters.
fn cut(text: &str, begin: usize, length: usize) -> &str {
    let begin = text.ceil_char_boundary(begin % (text.len() - length));
    &text[begin..text.floor_char_boundary(begin + length)]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
