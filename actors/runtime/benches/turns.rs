//! Durable turns per second on one node, in process: append, sync, answer by the scripted replica, append, sync; closed loop.
//!
//! Every caller has one conversation after the other, each of as many turns, so that what a turn costs with its history is as it is
//! in real chats. `cargo bench -p parlance-actors-runtime --bench turns`; `TURNS_CALLERS`, `TURNS_PER_SESSION`, `TURNS_SECONDS` and
//! `TURNS_DIR` change the run.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../../../bin/parlance/src/allocator.rs"]
mod allocator;
#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    time::{Duration, Instant},
};

use common::{options_with_shards, request, session, start, stop};
use parlance_actors_runtime::{Node, TurnEvent};

/// As many as the product has by default.
const SHARDS: u16 = 64;

#[tokio::main]
async fn main() {
    let setting = |name, default| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (callers, seconds) = (setting("TURNS_CALLERS", 64), setting("TURNS_SECONDS", 5));
    let turns = setting("TURNS_PER_SESSION", 20);
    let directory = env::var("TURNS_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").into());
    let scratch = tempfile::tempdir_in(directory).expect("a directory");
    let node = start(options_with_shards(scratch.path(), "scripted:tokens=16", SHARDS)).await;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(node.clone(), caller, turns, until))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("the caller ran"));
    }
    let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |thousandth: usize| latencies[(latencies.len() - 1) * thousandth / 1_000].as_secs_f64() * 1e3;
    let (p50, p99, p999) = (at(500), at(990), at(999));
    println!(
        "durable turns, {callers} callers, {turns} turns a session: {rate:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms"
    );
    stop(node).await;
}

async fn call(node: Node, caller: u64, turns: u64, until: Instant) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let conversation = latencies.len() as u64 / turns;
        let session = session(&format!("caller-{caller}-{conversation}"));
        let began = Instant::now();
        let accepted = node.sessions().submit(&session, request("What is the time?")).await.expect("accepted");
        let mut stream = accepted.stream;
        while !matches!(stream.next().await, Some(TurnEvent::Ended(_)) | None) {}
        latencies.push(began.elapsed());
    }
    latencies
}
