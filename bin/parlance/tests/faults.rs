//! Five nodes in three zones under load, while faults that a seed draws hit them: what was acknowledged is answered once, in order, in time.
//!
//! `PARLANCE_FAULT_SEED` draws another schedule. The long run is `make fault-suite`; it writes its summary to `target/faults.md`.

#[path = "faults/log.rs"]
mod log;

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use log::Reader;
use parlance_cluster_testkit::{
    Broker, Cluster, Plan, Stores,
    faults::{Fault, Gate, Summary, schedule},
    network::Network,
};
use parlance_loadtest::{
    checker::{Report, Violation, owners::Ownership, pace::pace},
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
const SOME: u64 = 30;
const MANY: u64 = 200;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a run shows.
struct Shown {
    report: Report,
    late: Vec<Violation>,
    owners: Ownership,
    summary: Summary,
    gates: Vec<Gate>,
    /// For a document.
    text: String,
}

impl Shown {
    /// How many promises were broken.
    fn violations(&self) -> usize {
        self.report.violations.len() + self.late.len() + self.owners.violations.len()
    }

    fn assert_kept(&self) {
        assert_eq!((&self.report.violations, &self.late, &self.owners.violations), (&vec![], &vec![], &vec![]));
        assert_eq!(self.summary.unconfirmed(), Vec::<&_>::new());
        assert!(self.gates.iter().all(|gate| gate.holds()), "{:?}", self.gates);
    }
}

/// How a run is made.
struct Ordeal<'a> {
    kinds: &'a [Fault],
    count: usize,
    own_brokers: bool,
    /// Turns per second.
    rate: f64,
    /// A bug that is planted.
    bug: Option<&'a str>,
}

/// Does the faults and looks at everything.
async fn ordeal(ordeal: Ordeal<'_>) -> Shown {
    for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
        assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
    }
    let seed = number("PARLANCE_FAULT_SEED", SEED);
    let network = Arc::new(Network::new(seed));
    let brokers: Vec<Arc<Broker>> = match ordeal.own_brokers {
        true => Broker::start_three(&network).into_iter().map(Arc::new).collect(),
        false => Vec::new(),
    };
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
        environment: ordeal.bug.map(|bug| ("PARLANCE_PLANTED_BUG".to_owned(), bug.to_owned())).into_iter().collect(),
        ..Plan::new(binary(ordeal.bug.is_some()), &NODES)
    });
    cluster.start_all().await;
    cluster.wait_settled().await;
    let reader = Reader::begin(&addresses, &prefix, SHARDS).await;
    let load = Load::new(cluster.targets(), Patience { silence: Duration::from_secs(5), ..Patience::default() });
    let open = OpenLoop { rate: ordeal.rate, sessions: SESSIONS, most_under_way: 2_000, keyless: 0.1, seed };
    let clients = tokio::spawn(load.clone().open_loop(open));
    let faults = schedule(seed, ordeal.kinds, ordeal.count, Duration::from_secs(1)..=Duration::from_secs(3));
    let summary = Summary::of_run(&cluster, &load, seed, &faults, tell).await;
    load.stop();
    clients.await.expect("no client panicked");
    let report = load.check(SESSIONS).await.expect("the nodes are up");
    let owners = reader.end().await;
    let (pace, late) = pace(&load.recorder().events(), &summary.troubles());
    let text = summary.markdown(&pace, Some(&owners));
    tell(&text);
    tell(&report.to_string());
    let gates = summary.gates(&pace, Some(&owners));
    Shown { report, late, owners, gates, text, summary }
}

fn binary(planted: bool) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_parlance"));
    let planted = if planted { binary.with_file_name("parlance-planted") } else { binary.to_owned() };
    let remedy = "cargo build --release -p parlance --features planted-bugs --bin parlance-planted";
    assert!(planted.exists(), "{} is missing; make it: {remedy}", planted.display());
    planted
}

#[expect(clippy::print_stdout, reason = "the figures of an ordeal are part of its result")]
fn tell(line: &str) {
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_promises_through_faults() {
    let kinds: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !fault.needs_brokers()).collect();
    let count = number("PARLANCE_FAULTS", SOME) as usize;
    ordeal(Ordeal { kinds: &kinds, count, own_brokers: false, rate: 30.0, bug: None }).await.assert_kept();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half an hour and 3 GB of memory: make fault-suite"]
async fn a_cluster_keeps_its_promises_through_many_faults() {
    let count = number("PARLANCE_FAULTS", MANY) as usize;
    let shown = ordeal(Ordeal { kinds: &Fault::ALL, count, own_brokers: true, rate: 50.0, bug: None }).await;
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/faults.md"), &shown.text).expect("written");
    shown.assert_kept();
}

/// A check that lets these pass would prove nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make fault-suite"]
async fn planted_bugs_are_found() {
    let kinds = [Fault::KillOwner, Fault::KillAgain, Fault::Pause, Fault::Isolate];
    for bug in ["no-dedupe", "checkpoint-ahead", "ack-before-append"] {
        let found = ordeal(Ordeal { kinds: &kinds, count: 8, own_brokers: false, rate: 60.0, bug: Some(bug) }).await;
        tell(&format!("planted {bug}: {} promises broken", found.violations()));
        assert!(found.violations() > 0, "{bug} was not found");
    }
}
