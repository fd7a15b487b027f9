//! The real model beside the servers that people would otherwise use, one after the other on this machine, through each one's streaming
//! HTTP interface: the same prompts, of some 128 tokens, 64 new tokens, greedy, closed loop, no prompt twice.
//!
//! `make bench-inference` runs this and installs llama.cpp's server before; `.ci/services vllm` installs vLLM for CPU. Who is not there is
//! left out. `PASSES` says how often all are measured in turn (3); `ONLY=parlance,BF16` keeps those whose names have one of these
//! parts, and `DEVICE=cuda` (with the feature `cuda`) measures this node on that device alone. Without these two the tables also go into
//! `docs/benchmarks.md`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;
mod peers;
mod streamed;

use std::{env, fs, time::Instant};

use peers::{
    Running, Subject, load, report,
    row::{CALLERS, DECODERS, Row},
    subjects,
};

/// Prompts whose prefill is timed, per pass.
const PREFILLS: u64 = 5;
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks.md");

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("nobody did it before");
    let passes = env::var("PASSES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let only = env::var("ONLY").ok().filter(|only| !only.is_empty());
    let is_wanted = |subject: &Subject| {
        only.as_deref().is_none_or(|only| only.split(',').any(|part| subject.name.contains(part.trim())))
    };
    let subjects: Vec<Subject> = subjects().into_iter().filter(is_wanted).collect();
    let mut rows: Vec<Row> = subjects.iter().map(|subject| Row::new(&subject.name, subject.is_ours())).collect();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    for pass in 0..passes {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let began = Instant::now();
            let running = subject.start();
            runtime.block_on(measure(&running, pass, row));
            println!("pass {} of {passes}: {} took {:.0} s", pass + 1, row.name, began.elapsed().as_secs_f64());
        }
    }
    let tables = report::tables(&rows, passes);
    println!("\n{tables}");
    if only.is_none() && env::var_os("DEVICE").is_none() {
        let page = fs::read_to_string(DOCS).expect("the page is there");
        fs::write(DOCS, report::put_into(&page, &tables)).expect("the page can be written");
    }
}

/// One pass of one subject.
async fn measure(running: &Running, pass: u64, row: &mut Row) {
    let client = load::client();
    // The first answer is part of the start; nothing else is measured cold.
    load::warm_up(&client, running, seed(pass, 0, 0)).await;
    row.cold_starts.push(running.began.elapsed());
    for (callers, cell) in CALLERS.into_iter().zip(&mut row.cells) {
        cell.add(&load::closed_loop(&client, running, callers, seed(pass, 1, callers)).await);
        row.peak_bytes = row.peak_bytes.max(running.memory_bytes());
    }
    for number in 0..PREFILLS {
        row.prefills.push(load::prefill(&client, running, seed(pass, 2, number)).await);
    }
    for (callers, rates) in DECODERS.into_iter().zip(&mut row.decodes) {
        rates.extend(load::decode(&client, running, callers, seed(pass, 3, callers)).await);
    }
    row.peak_bytes = row.peak_bytes.max(running.memory_bytes());
}

/// Where the prompts of a part of a pass begin: there are 2^16 before the next one's.
fn seed(pass: u64, part: u64, number: u64) -> u64 {
    ((pass * 4 + part) * 64 + number) << 16
}
