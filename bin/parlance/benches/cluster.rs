//! What a cluster costs and how fast it heals, on one machine with real Kafka and Cassandra: `make bench-cluster`.
//!
//! 1. Latency of a durable turn, one caller, a model that answers at once: the embedded log and the log in Kafka, one node each.
//! 2. Processor time per turn at 1, 3 and 5 nodes, the same load over all of them.
//! 3. From the kill of an owner to the first turn that is acknowledged again in each of its shards.
//! 4. How long a planned hand-over of a shard keeps turns waiting, as the nodes measure it.
//!
//! `CLUSTER_KILLS` (20) and `CLUSTER_SECONDS` (10) change the run.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use parlance_cluster_protocol::{SessionKey, shard_of_slot};
use parlance_cluster_testkit::{Cluster, Plan, Stores};
use serde_json::json;
use tokio::task::JoinSet;

const NODES: [(&str, &str); 5] = [("a", "one"), ("b", "two"), ("c", "three"), ("d", "one"), ("e", "two")];
const SHARDS: u16 = 24;
/// A model that costs nothing.
const AT_ONCE: &str = "scripted:ttft_ms=0,token_ms=0,tokens=4";
/// Turns per second for the processor time.
const RATE: u64 = 100;
/// How often a turn is tried while its owner is dead.
const PROBE_EVERY: Duration = Duration::from_millis(20);
const HANDOVER: &str = "parlance_shard_handover_seconds";

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        latency().await;
        cost().await;
        failover().await;
        handover().await;
    });
}

fn shared() -> Stores {
    Stores::fresh(&["127.0.0.1:19092"], &["127.0.0.1:19042"])
}

async fn cluster(nodes: usize, stores: Stores) -> Cluster {
    let plan = Plan { stores, shards: SHARDS, model: AT_ONCE.to_owned(), ..plan(nodes) };
    let cluster = Cluster::prepare(plan);
    cluster.start_all().await;
    if nodes > 1 {
        cluster.wait_settled().await;
    }
    cluster
}

fn plan(nodes: usize) -> Plan {
    Plan::new(env!("CARGO_BIN_EXE_parlance"), &NODES[..nodes])
}

fn client() -> reqwest::Client {
    // Fails where it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(20)).build().expect("a client")
}

/// One durable turn; whether it was answered.
async fn turn(http: &reqwest::Client, url: &str, session: &str) -> bool {
    let body = json!({ "model": "scripted", "messages": [{ "role": "user", "content": "What is the time?" }] });
    let request = http.post(format!("{url}/v1/chat/completions")).header("X-Session-ID", session).json(&body);
    match request.send().await {
        Ok(response) => response.status().is_success() && response.bytes().await.is_ok(),
        Err(_) => false,
    }
}

fn at(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3
}

async fn latency() {
    let seconds = Duration::from_secs(setting("CLUSTER_SECONDS", 10) / 2);
    let http = client();
    for (name, stores) in [("embedded log", Stores::Local), ("Kafka", shared())] {
        let cluster = cluster(1, stores).await;
        let url = cluster.url("a");
        for warm in 0..50 {
            assert!(turn(&http, &url, &format!("warm-{warm}")).await, "the node answers");
        }
        let (until, mut took) = (Instant::now() + seconds, Vec::new());
        while Instant::now() < until {
            let began = Instant::now();
            assert!(turn(&http, &url, &format!("s{}", took.len() % 20)).await, "the node answers");
            took.push(began.elapsed());
        }
        took.sort_unstable();
        println!(
            "durable turn, {name}, one caller: p50 {:.1} ms, p99 {:.1} ms ({} turns)",
            at(&took, 50),
            at(&took, 99),
            took.len()
        );
    }
}

async fn cost() {
    let seconds = setting("CLUSTER_SECONDS", 10);
    for nodes in [1, 3, 5] {
        let cluster = cluster(nodes, shared()).await;
        let names = cluster.names();
        let urls: Vec<String> = names.iter().map(|name| cluster.url(name)).collect();
        let http = client();
        let cpu = || names.iter().filter_map(|name| cluster.cpu(name)).sum::<Duration>();
        let idle_before = cpu();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let idle = (cpu() - idle_before) / 5;
        let (before, began) = (cpu(), Instant::now());
        let mut turns = JoinSet::new();
        for number in 0..RATE * seconds {
            tokio::time::sleep_until((began + Duration::from_millis(number * 1_000 / RATE)).into()).await;
            let (http, url) = (http.clone(), urls[number as usize % urls.len()].clone());
            turns.spawn(async move { turn(&http, &url, &format!("s{}", number % 200)).await });
        }
        let answered = turns.join_all().await.into_iter().filter(|answered| *answered).count();
        let used = (cpu() - before).saturating_sub(idle * began.elapsed().as_secs() as u32);
        println!(
            "processor time, {nodes} nodes, {RATE} turns/s: {:.0} µs a turn above {:.1} % of a core idle for each node ({answered} of {} answered)",
            used.as_secs_f64() * 1e6 / answered.max(1) as f64,
            idle.as_secs_f64() * 100.0 / nodes as f64,
            RATE * seconds
        );
    }
}

/// A session in each shard that the node owns.
async fn sessions_of(cluster: &Cluster, owner: &str, asked: &str) -> Vec<String> {
    let owners: BTreeMap<u64, String> = cluster.owners(asked).await.expect("the node answers");
    let mut found: BTreeMap<u16, String> = BTreeMap::new();
    for number in 0..5_000 {
        let session = format!("probe-{number}");
        let shard = shard_of_slot(SessionKey::api("default", session.as_str()).slot(), SHARDS);
        if owners.get(&u64::from(shard.0)).is_some_and(|name| name == owner) {
            found.entry(shard.0).or_insert(session);
        }
    }
    found.into_values().collect()
}

async fn failover() {
    let cluster = cluster(3, shared()).await;
    let mut waits = Vec::new();
    let mut longest = Vec::new();
    for kill in 0..setting("CLUSTER_KILLS", 20) as usize {
        let names = ["a", "b", "c"];
        let (victim, asked) = (names[kill % 3], names[(kill + 1) % 3]);
        cluster.wait_settled().await;
        let sessions = sessions_of(&cluster, victim, asked).await;
        let (url, http) = (cluster.url(asked), client());
        assert!(cluster.kill(victim), "it ran");
        let began = Instant::now();
        let mut probes = JoinSet::new();
        for session in sessions {
            let (url, http) = (url.clone(), http.clone());
            probes.spawn(async move {
                while !turn(&http, &url, &session).await {
                    tokio::time::sleep(PROBE_EVERY).await;
                }
                began.elapsed()
            });
        }
        let mut took = probes.join_all().await;
        took.sort_unstable();
        longest.extend(took.last().copied());
        waits.extend(took);
        cluster.start(victim).await;
    }
    waits.sort_unstable();
    longest.sort_unstable();
    println!(
        "SIGKILL of an owner to an acknowledged turn in each of its shards: p50 {:.0} ms, p99 {:.0} ms; all of them: p50 {:.0} ms, longest {:.0} ms ({} kills, {} shards)",
        at(&waits, 50),
        at(&waits, 99),
        at(&longest, 50),
        at(&longest, 100),
        longest.len(),
        waits.len()
    );
}

async fn handover() {
    let cluster = cluster(3, shared()).await;
    let http = client();
    for round in 0..setting("CLUSTER_KILLS", 20) as usize {
        let (name, other) = (NODES[round % 3].0, NODES[(round + 1) % 3].0);
        let post = |what: &str| http.post(format!("{}/admin/v1/nodes/{name}/{what}", cluster.url(other))).send();
        post("drain").await.expect("the node answers");
        cluster
            .until("drained", async || {
                let owners = cluster.owners(other).await;
                owners.is_ok_and(|owners| {
                    owners.len() == usize::from(SHARDS) && owners.values().all(|owner| owner != name)
                })
            })
            .await;
        post("undrain").await.expect("the node answers");
        cluster.wait_settled().await;
    }
    let bounds = ["0.01", "0.025", "0.05", "0.1", "0.25", "+Inf"];
    let mut counts = [0.0; 6];
    let mut sum = 0.0;
    for name in cluster.names() {
        let metrics = cluster.metrics(name).await.expect("the node answers");
        for (count, bound) in counts.iter_mut().zip(bounds) {
            *count += metrics.sum(&format!("{HANDOVER}_bucket"), &[&format!("le=\"{bound}\"")]);
        }
        sum += metrics.sum(&format!("{HANDOVER}_sum"), &[]);
    }
    let all = counts[5];
    let shares: Vec<String> =
        bounds.iter().zip(counts).map(|(bound, count)| format!("≤ {bound} s: {:.1} %", count * 100.0 / all)).collect();
    println!("planned hand-over of a shard: mean {:.1} ms, {} ({all} hand-overs)", sum * 1e3 / all, shares.join(", "));
}
