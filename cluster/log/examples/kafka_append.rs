//! How long an append to Kafka takes from 1, 16 and 64 closed-loop callers, and how long until a follower has read it.
//!
//! ```text
//! make services
//! cargo run --release -p parlance-cluster-log --example kafka_append [-- BROKERS [SECONDS [REPLICATION]]]
//! ```
//!
//! Each append is one entry of 150 to 600 bytes to one of 64 shards of a new topic, which is deleted in the end; each caller waits for the
//! outcome before the next. The broker of `make services` runs on the same machine and holds the only copy, so this is what the software
//! costs, without a network and without replicas.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parlance_cluster_log::{AppendOutcome, KafkaConfig, KafkaLog, ShardLog, conformance};
use parlance_cluster_protocol::{Offset, ShardId};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().unwrap_or_else(|| "127.0.0.1:19092".into());
    let seconds = arguments.next().map_or(Ok(5), |seconds| seconds.parse())?;
    let replication = arguments.next().map_or(Ok(1), |replication| replication.parse())?;
    let topic = format!("bench-{}", std::process::id());
    let config = KafkaConfig { topic: topic.clone(), replication, ..KafkaConfig::new(&brokers) };
    let log = Arc::new(KafkaLog::open(config.clone()).await?);
    println!("{:>12} {:>10} {:>9} {:>9} {:>9} {:>9}", "callers", "appends/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms");
    // The first appends find the leaders; a request that a new leader repeats is acknowledged without an offset, and so unknown.
    for shard in (0..64).map(ShardId) {
        while conformance::append(&*log, shard, vec![Bytes::from_static(b"first")]).await == [AppendOutcome::Unknown] {}
    }
    for callers in [1, 16, 64] {
        let (took, latencies) = appends(&log, callers, Duration::from_secs(seconds)).await?;
        report(&callers.to_string(), took, latencies);
    }
    let begun = Instant::now();
    let latencies = follow(&log, &KafkaLog::open(config).await?, Duration::from_secs(seconds)).await?;
    report("to follower", begun.elapsed(), latencies);
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    admin.delete_topics(&[&topic], &AdminOptions::new()).await?;
    Ok(())
}

async fn appends(
    log: &Arc<KafkaLog>,
    callers: usize,
    time: Duration,
) -> Result<(Duration, Vec<Duration>), Box<dyn Error>> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(log.clone(), caller, begun + time))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await?);
    }
    Ok((begun.elapsed(), latencies))
}

/// One closed-loop caller; returns the latency of each of its appends.
async fn call(log: Arc<KafkaLog>, caller: usize, until: Instant) -> Vec<Duration> {
    let payload = Bytes::from(vec![b'x'; 600]);
    let mut latencies = Vec::new();
    let mut since = Instant::now();
    while since < until {
        let turn = latencies.len();
        let shard = ShardId(((caller + 7 * turn) % 64) as u16);
        let entry = payload.slice(..150 + (caller * 31 + turn * 17) % 451);
        let outcomes = conformance::append(&*log, shard, vec![entry]).await;
        assert!(matches!(outcomes[..], [AppendOutcome::At(_)]), "the log failed: {outcomes:?}");
        let now = Instant::now();
        latencies.push(now - since);
        since = now;
    }
    latencies
}

/// From the begin of an append to when another log has read it.
async fn follow(log: &KafkaLog, follower: &KafkaLog, time: Duration) -> Result<Vec<Duration>, Box<dyn Error>> {
    let (shard, until) = (ShardId(0), Instant::now() + time);
    let mut next = follower.bounds(shard).await?.end;
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let appending = conformance::append(log, shard, vec![Bytes::from_static(&[b'x'; 300])]);
        let reading = async {
            loop {
                follower.arrival(shard, next).await?;
                if !follower.read(shard, next, 1).await?.is_empty() {
                    return Ok::<_, parlance_cluster_log::LogError>(begun.elapsed());
                }
            }
        };
        let (_, latency) = tokio::join!(appending, reading);
        latencies.push(latency?);
        next = Offset(next.0 + 1);
    }
    // The first one found its place.
    Ok(latencies.split_off(1))
}

fn report(what: &str, took: Duration, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0;
    let rate = latencies.len() as f64 / took.as_secs_f64();
    let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), at(1.0));
    println!("{what:>12} {rate:>10.0} {p50:>9.2} {p99:>9.2} {p999:>9.2} {max:>9.2}");
}
