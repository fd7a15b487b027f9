//! How many appends a second the local log takes from 1, 16, 64 and 256 closed-loop callers, and how long one takes.
//!
//! ```text
//! cargo run --release -p parlance-cluster-log --example append_rate [-- DIRECTORY [SECONDS]]
//! ```
//!
//! Each append is one entry of 150 to 600 bytes to one of 64 shards; each caller waits for the outcome before the next. A durable turn
//! is two such appends.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::{
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parlance_cluster_log::{AppendOutcome, LocalLog, LocalLogOptions, ShardLog};
use parlance_cluster_protocol::{Offset, ShardId};
use tokio::sync::oneshot;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(|| std::env::temp_dir().join("parlance-append-rate"), PathBuf::from);
    let seconds = arguments.next().map_or(Ok(5), |seconds| seconds.parse())?;
    println!("{:>8} {:>12} {:>9} {:>9} {:>9} {:>9}", "callers", "appends/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms");
    for callers in [1, 16, 64, 256] {
        let path = directory.join(format!("{callers}"));
        let log: Arc<dyn ShardLog> = Arc::new(LocalLog::open(LocalLogOptions::new(&path))?);
        let begun = Instant::now();
        let until = begun + Duration::from_secs(seconds);
        let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(log.clone(), caller, until))).collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await?);
        }
        report(callers, begun.elapsed(), latencies);
        drop(log);
        std::fs::remove_dir_all(&path)?;
    }
    Ok(())
}

/// One closed-loop caller; returns the latency of each of its appends.
async fn call(log: Arc<dyn ShardLog>, caller: usize, until: Instant) -> Vec<Duration> {
    let payload = Bytes::from(vec![b'x'; 600]);
    let mut latencies = Vec::new();
    let mut since = Instant::now();
    while since < until {
        let turn = latencies.len();
        let shard = ShardId(((caller + 7 * turn) % 64) as u16);
        let entry = payload.slice(..150 + (caller * 31 + turn * 17) % 451);
        let (done, outcome) = oneshot::channel();
        log.append(shard, vec![entry], Box::new(move |outcomes| drop(done.send(outcomes))));
        match outcome.await.as_deref() {
            Ok([AppendOutcome::At(_)]) => {}
            other => panic!("the log failed: {other:?}"),
        }
        if turn % 20_000 == 19_999 {
            trim_oldest(&*log, shard).await;
        }
        let now = Instant::now();
        latencies.push(now - since);
        since = now;
    }
    latencies
}

/// Forgets all but the last entries of `shard`, as a checkpoint would.
async fn trim_oldest(log: &dyn ShardLog, shard: ShardId) {
    if let Ok(bounds) = log.bounds(shard).await {
        let before = Offset(bounds.end.0.saturating_sub(100));
        log.trim(shard, before).await.expect("a trim within the bounds is taken");
    }
}

fn report(callers: usize, took: Duration, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let percentile = |share: f64| latencies[(latencies.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    let rate = latencies.len() as f64 / took.as_secs_f64();
    let max = latencies.last().map_or(0.0, |last| last.as_secs_f64() * 1e3);
    let (p50, p99, p999) = (percentile(0.5), percentile(0.99), percentile(0.999));
    println!("{callers:>8} {rate:>12.0} {p50:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}");
}
