//! Durable turns per second on one node: append, sync, answer by the scripted replica, append, sync; closed loop.
//!
//! `cargo run --release -p parlance-actors-runtime --example turn_rate -- [callers] [seconds] [directory]`
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{options, request, session, start, stop};
use parlance_actors_runtime::TurnEvent;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let callers: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(64);
    let seconds: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let scratch = tempfile::tempdir_in(arguments.next().unwrap_or_else(|| ".".into())).expect("a directory");
    let node = start(options(scratch.path(), "scripted:tokens=16")).await;
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (node, session) = (node.clone(), session(&format!("caller-{caller}")));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    let accepted =
                        node.sessions().submit(&session, request("What is the time?")).await.expect("accepted");
                    let mut stream = accepted.stream;
                    while !matches!(stream.next().await, Some(TurnEvent::Ended(_)) | None) {}
                    latencies.push(began.elapsed());
                }
                latencies
            })
        })
        .collect();
    let began = Instant::now();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("the caller ran"));
    }
    let elapsed = began.elapsed();
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 1_000].as_secs_f64() * 1e3;
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    println!(
        "{callers} callers: {rate:.0} turns/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        at(500),
        at(990),
        at(999)
    );
    stop(node).await;
}
