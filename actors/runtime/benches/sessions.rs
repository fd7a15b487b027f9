//! Memory per session at 100,000 sessions of one turn each: in memory, and passivated.
//!
//! `cargo bench -p parlance-actors-runtime --bench sessions`; `SESSIONS` changes their number.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../../../bin/parlance/src/allocator.rs"]
mod allocator;
#[path = "../tests/common/mod.rs"]
mod common;

use std::{env, fs, process::Command, time::Duration};

use common::{options_with_shards, say, session, start, stop};
use parlance_actors_runtime::{Limits, Node, NodeOptions};

/// As many as the product has by default.
const SHARDS: u16 = 64;

/// Each kind is measured in a process of its own, so that neither sees what the other left in the allocator.
const KIND: &str = "SESSIONS_KIND";
const CALLERS: usize = 256;

fn main() {
    let Ok(kind) = env::var(KIND) else {
        for kind in ["live", "passivated"] {
            let this = env::current_exe().expect("this program");
            assert!(Command::new(this).env(KIND, kind).status().expect("it starts").success());
        }
        return;
    };
    let count = env::var("SESSIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    tokio::runtime::Runtime::new().expect("threads").block_on(measure(&kind, count));
}

async fn measure(kind: &str, count: usize) {
    let idle = if kind == "live" { Duration::from_secs(3_600) } else { Duration::from_millis(100) };
    let limits = Limits { session_idle: idle, live_sessions: 2 * count, ..Limits::default() };
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let node = start(NodeOptions { limits, ..options_with_shards(scratch.path(), "scripted:tokens=16", SHARDS) }).await;
    // What a node needs in any case: caches, buffers, threads.
    visit(&node, "warm", 2_000).await;
    settle(&node, kind, 2_000).await;
    let before = resident_bytes();
    visit(&node, "measured", count).await;
    settle(&node, kind, 2_000 + count).await;
    let after = resident_bytes();
    let each = after.saturating_sub(before) as f64 / count as f64;
    println!("{kind} sessions: {each:.0} bytes each at {count} ({} MB resident)", after / 1_000_000);
    stop(node).await;
}

/// One turn in each of `count` sessions.
async fn visit(node: &Node, name: &str, count: usize) {
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (node, name) = (node.clone(), name.to_owned());
            tokio::spawn(async move {
                for n in (caller..count).step_by(CALLERS) {
                    say(&node, &session(&format!("{name}-{n}")), "What is the time?").await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("the caller ran");
    }
}

/// Waits until as many sessions are in memory as the kind wants.
async fn settle(node: &Node, kind: &str, visited: usize) {
    let wanted = if kind == "live" { visited } else { 0 };
    for _ in 0..600 {
        if node.status().live_sessions == wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.status().live_sessions, wanted);
    // What they leave goes back to the system within a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
}
