//! What was said before costs less: beginnings that are in the KV cache, and replies that repeat what the prompt or they themselves say. The real
//! model through the streaming HTTP interface.
//!
//! `cargo bench -p parlance --bench reuse`; wants the default model in `PARLANCE_MODEL_DIR` (`parlance model fetch` puts it there). `PASSES` changes
//! how often everything is measured.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    time::{Duration, Instant},
};

use common::{Node, Place};
use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

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
        let models = env::var("PARLANCE_MODEL_DIR")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").to_owned());
        let config = place.file("parlance.toml", format!("[models.default]\nspeculation = '{speculation}'\n"));
        let mut up = place.parlance();
        up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
        let node = Node::start(&place, up.env("PARLANCE_MODEL_DIR", models));
        node.wait_ready();
        Self { node, client: reqwest::Client::new(), _place: place }
    }

    /// Streams one answer.
    async fn ask(&self, messages: &Value, max_tokens: u64) -> Answer {
        let body = json!({
            "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": true,
            "stream_options": { "include_usage": true },
        });
        let began = Instant::now();
        let request = self.client.post(self.node.url("/v1/chat/completions")).json(&body);
        let response = request.send().await.expect("an answer").error_for_status().expect("accepted");
        let (mut stream, mut frames) = (response.bytes_stream(), String::new());
        let mut answer = Answer::default();
        while let Some(chunk) = stream.next().await {
            frames.push_str(&String::from_utf8_lossy(&chunk.expect("the stream goes on")));
            while let Some(end) = frames.find("\n\n") {
                let frame: String = frames.drain(..end + 2).collect();
                let event =
                    frame.trim().strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok());
                event.into_iter().for_each(|event| answer.hear(&event, began));
            }
        }
        answer
    }
}

/// One answer.
#[derive(Default)]
struct Answer {
    text: String,
    first_token: Option<Duration>,
    usage: Value,
}

impl Answer {
    fn hear(&mut self, event: &Value, began: Instant) {
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            self.first_token.get_or_insert_with(|| began.elapsed());
            self.text.push_str(text);
        }
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
    }

    fn first_token_ms(&self) -> f64 {
        self.first_token.expect("a text").as_secs_f64() * 1e3
    }

    fn count(&self, path: &str) -> f64 {
        self.usage.pointer(path).and_then(Value::as_f64).expect("the usage is told")
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
            row.push(answer.first_token_ms());
        }
        prompts.push(second.count("/prompt_tokens"));
        cached.push(second.count("/prompt_tokens_details/cached_tokens"));
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
    let tokens: f64 = answers.iter().map(|answer| answer.count("/completion_tokens")).sum();
    tokens / began.elapsed().as_secs_f64()
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
