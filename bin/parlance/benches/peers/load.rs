//! The requests, and what a caller sees of their answers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::Running;
use crate::streamed::{self, Answer};

/// Random words of prompts that have 127 to 129 and 511 to 513 tokens in all.
const PROMPT_WORDS: usize = 91;
const LONG_PROMPT_WORDS: usize = 475;
const SHORT_PROMPT_WORDS: usize = 4;
/// Words of the system message, before them.
const SYSTEM_WORDS: usize = 4;
const NEW_TOKENS: u64 = 64;
/// New tokens where decoding is timed: enough that all callers are at it together for a while.
const DECODED_TOKENS: u64 = 128;
/// Answers at one number of callers: each caller has two, or as many as make this.
const LEAST_ANSWERS: u64 = 6;

/// What callers in a closed loop saw.
pub(crate) struct Loop {
    pub(crate) answers: Vec<Answer>,
    pub(crate) took: Duration,
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

/// Random words and an instruction that makes the model go on for long, as messages. The words begin with the first message.
fn messages(seed: u64, count: usize) -> Value {
    let words = streamed::random_words(seed, SYSTEM_WORDS + count);
    let (system, user) = words.split_at(SYSTEM_WORDS);
    let (system, user) = (system.join(" "), user.join(" "));
    let user = format!("{user}. Write a long story in which all of these words occur, one after the other.");
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
    streamed::ask(client, &running.url, &body).await
}
