//! Five nodes in three zones under load, while faults that a seed draws hit them: what was acknowledged is answered once, in order, in time.
//!
//! `PARLANCE_FAULT_SEED` draws another schedule. The long run is `make fault-suite`; it writes its summary to `target/faults.md`.

#[path = "faults/log.rs"]
mod log;

use std::{net::TcpStream, sync::Arc, time::Duration};

use log::Reader;
use parlance_cluster_testkit::{
    Broker, Cluster, Plan, Stores,
    faults::{Fault, Summary, schedule},
    network::Network,
};
use parlance_loadtest::{
    checker::pace::pace,
    load::{Load, OpenLoop, Patience},
};

/// Where `make services` has them.
const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";
const NODES: [(&str, &str); 5] = [("a", "one"), ("b", "one"), ("c", "two"), ("d", "two"), ("e", "three")];
const SHARDS: u16 = 12;
const SESSIONS: u32 = 200;
const SEED: u64 = 1;
/// Faults of a run in `make test`, and of the long one.
const SOME: usize = 30;
const MANY: usize = 200;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs `count` faults of these kinds and checks everything.
async fn ordeal(kinds: &[Fault], count: usize, own_brokers: bool, rate: f64) {
    for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
        assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
    }
    let seed = number("PARLANCE_FAULT_SEED", SEED);
    let network = Arc::new(Network::new(seed));
    let brokers: Vec<Arc<Broker>> =
        if own_brokers { Broker::start_three(&network).into_iter().map(Arc::new).collect() } else { Vec::new() };
    let mut addresses: Vec<String> = brokers.iter().map(|broker| broker.address()).collect();
    if addresses.is_empty() {
        addresses.push(KAFKA.to_owned());
    }
    let stores = Stores::fresh(&addresses.iter().map(String::as_str).collect::<Vec<_>>(), &[CASSANDRA]);
    let Stores::Shared { topic_prefix, .. } = &stores else { panic!("they are shared") };
    let prefix = topic_prefix.clone();
    let cluster = Cluster::prepare(Plan {
        stores,
        shards: SHARDS,
        network: Some(network),
        brokers,
        ..Plan::new(env!("CARGO_BIN_EXE_parlance"), &NODES)
    });
    cluster.start_all().await;
    cluster.wait_settled().await;
    let reader = Reader::begin(&addresses, &prefix, SHARDS).await;
    let load = Load::new(cluster.targets(), Patience { silence: Duration::from_secs(5), ..Patience::default() });
    let open = OpenLoop { rate, sessions: SESSIONS, most_under_way: 2_000, keyless: 0.1, seed };
    let clients = tokio::spawn(load.clone().open_loop(open));
    let faults = schedule(seed, kinds, count, Duration::from_secs(1)..=Duration::from_secs(3));
    let summary = Summary::of_run(&cluster, &load, seed, &faults, tell).await;
    load.stop();
    clients.await.expect("no client panicked");
    let report = load.check(SESSIONS).await.expect("the nodes are up");
    let owners = reader.end().await;
    let (pace, late) = pace(&load.recorder().events(), &summary.troubles());
    let text = summary.markdown(&pace, Some(&owners));
    tell(&text);
    tell(&report.to_string());
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/faults.md"), &text).expect("written");
    assert_eq!((report.violations, late, owners.violations.clone()), (vec![], vec![], vec![]));
    assert_eq!(summary.unconfirmed(), Vec::<&_>::new());
    let gates = summary.gates(&pace, Some(&owners));
    assert!(gates.iter().all(|gate| gate.holds()), "{gates:?}");
}

#[expect(clippy::print_stdout, reason = "the figures of an ordeal are part of its result")]
fn tell(line: &str) {
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_promises_through_faults() {
    let kinds: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !fault.needs_brokers()).collect();
    ordeal(&kinds, number("PARLANCE_FAULTS", SOME as u64) as usize, false, 30.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half an hour and 3 GB of memory: make fault-suite"]
async fn a_cluster_keeps_its_promises_through_many_faults() {
    ordeal(&Fault::ALL, number("PARLANCE_FAULTS", MANY as u64) as usize, true, 50.0).await;
}
