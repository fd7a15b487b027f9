//! Whole clusters on one simulated log and network, driven by a seed: membership, failure detection, the steward and the log's ownership are the
//! very code that runs in a node.
//!
//! `PARLANCE_SIM_SEEDS` sets how many seeds are run, `PARLANCE_SIM_SEED` runs one and tells what happens.

mod member;
mod network;
mod shard;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use self::world::{Summary, run};

/// Seeds of every test run: half a minute on two cores.
const SEEDS: u64 = 1_000;
/// Seeds that failed once.
const KEPT: &[u64] = &[];

fn seeds() -> u64 {
    std::env::var("PARLANCE_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// Runs the seeds on all cores; the first that breaks a promise, if any does.
fn run_all(seeds: u64) -> Summary {
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let mut total = Summary::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return total;
            }
            match run(seed) {
                Ok(summary) => total.add(&summary),
                Err(broken) => panic!("seed {seed}: {broken}; tell it with PARLANCE_SIM_SEED={seed}"),
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut total = Summary::default();
        for worker in workers {
            match worker.join() {
                Ok(summary) => total.add(&summary),
                Err(broken) => std::panic::resume_unwind(broken),
            }
        }
        total
    })
}

#[test]
fn promises_hold_on_every_seed() {
    for seed in KEPT {
        run(*seed).unwrap_or_else(|broken| panic!("kept seed {seed}: {broken}"));
    }
    if let Some(seed) = std::env::var("PARLANCE_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        run(seed).unwrap_or_else(|broken| panic!("{broken}"));
        return;
    }
    let seeds = seeds();
    let total = run_all(seeds);
    // Against a pass that proves nothing.
    assert!(total.acknowledged >= 200 * seeds, "{total:?}");
    assert!(total.failovers >= seeds && total.handovers >= seeds, "{total:?}");
    assert!(total.fenced >= seeds / 4 && total.failed >= seeds / 4, "{total:?}");
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..3 {
        let traces = [run(seed), run(seed)].map(|summary| summary.expect("promises hold").trace);
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
