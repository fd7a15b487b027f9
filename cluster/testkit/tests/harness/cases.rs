//! What must hold of the harness.

use std::{
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parlance_cluster_testkit::{
    Cluster, LOG, Plan, ProcessState, Stores,
    faults::{Fault, Planned, Summary, schedule},
    network::{Network, OUTSIDE},
};
use parlance_loadtest::{
    checker::{Report, Violation, pace::pace},
    load::{Load, OpenLoop, Patience},
};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;

use crate::node::{BUG, STORE, echo};

type Case = fn();

pub(crate) const ALL: &[(&str, Case)] = &[
    ("every_fault_is_done_and_seen_and_a_sound_cluster_passes", every_fault_is_done_and_seen),
    ("clients_of_a_dead_node_go_to_the_next", clients_of_a_dead_node_go_to_the_next),
    ("a_missing_dedupe_is_found", a_missing_dedupe_is_found),
    ("an_acknowledgement_before_the_commit_is_found", an_early_acknowledgement_is_found),
    ("a_fault_that_does_not_happen_is_not_confirmed", a_fault_that_does_not_happen),
    ("a_node_that_dies_by_itself_fails_the_run", a_node_that_dies_by_itself),
    ("a_node_stands_still_ends_and_comes_back", a_node_stands_still_ends_and_comes_back),
];

const SESSIONS: u32 = 20;
const CALM: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_millis(200);

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(future);
}

/// Three stand-ins in two zones behind a network, and the file that they share.
async fn cluster(bug: &str) -> (Arc<Cluster>, NamedTempFile) {
    let network = Arc::new(Network::new(1));
    let mut servers = Vec::new();
    for _ in 0..2 {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        servers.push(server.local_addr().expect("bound"));
        tokio::spawn(echo(server));
    }
    let broker = network.proxy(LOG, servers[0]).to_string();
    let file = NamedTempFile::new().expect("a file");
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let plan = Plan {
        stores: Stores::fresh(&[&broker], &[&servers[1].to_string()]),
        network: Some(network),
        environment: vec![variable(STORE, &file.path().to_string_lossy()), variable(BUG, bug)],
        ..Plan::new(std::env::current_exe().expect("this program"), &[("a", "one"), ("b", "one"), ("c", "two")])
    };
    let cluster = Arc::new(Cluster::prepare(plan));
    cluster.start_all().await;
    (cluster, file)
}

fn load(cluster: &Cluster) -> Arc<Load> {
    let quick = Patience { silence: Duration::from_secs(2), give_up: Duration::from_secs(8), ..Patience::default() };
    Load::new(cluster.targets(), quick)
}

/// A fault that lasts as briefly as it may.
fn brief(mut planned: Planned) -> Planned {
    planned.lasts = planned.lasts.min(Duration::from_millis(500));
    planned
}

/// Does faults to a cluster under load, and judges what the clients saw.
async fn ordeal(bug: &str, kinds: &[Fault], count: usize) -> (Summary, Report, Arc<Load>) {
    let (cluster, _file) = cluster(bug).await;
    let load = load(&cluster);
    let open = OpenLoop { rate: 50.0, sessions: SESSIONS, most_under_way: 1_000, keyless: 0.5, seed: 3 };
    let clients = tokio::spawn(load.clone().open_loop(open));
    let planned: Vec<Planned> = schedule(5, kinds, count, CALM).into_iter().map(brief).collect();
    let summary = Summary::of_run(&cluster, &load, 5, &planned, |_| {}).await;
    load.stop();
    let arrivals = clients.await.expect("no client panicked");
    assert_eq!(arrivals.dropped, 0);
    let report = load.check(SESSIONS).await.expect("the nodes are up");
    assert_eq!(report.invoked, arrivals.sent, "{report}");
    assert_eq!(cluster.network().counts(OUTSIDE, "a").bytes, 0, "every connection was some node's");
    (summary, report, load)
}

fn every_fault_is_done_and_seen() {
    block_on(async {
        let brokerless: Vec<Fault> =
            Fault::ALL.into_iter().filter(|fault| !matches!(fault, Fault::BrokerKill | Fault::BrokerPause)).collect();
        let (summary, report, load) = ordeal("", &brokerless, brokerless.len()).await;
        assert_eq!(summary.unconfirmed(), Vec::<&_>::new());
        assert_eq!(report.violations, [], "{report}");
        // Whatever was acknowledged was asked after until its answer was there, with a key or without.
        assert_eq!(report.acknowledged, report.replied, "{report}");
        let (pace, late) = pace(&load.recorder().events(), &summary.troubles());
        assert_eq!(late, []);
        assert!(pace.affected > 0, "{pace:?}");
        let failing: Vec<_> =
            summary.gates(&pace, None).into_iter().filter(|gate| !gate.holds()).map(|gate| gate.what).collect();
        // The stand-ins count no more than joined repetitions.
        assert_eq!(
            failing,
            ["writes of former owners dropped", "moves of shards"],
            "{}",
            summary.markdown(&pace, None)
        );
    });
}

fn clients_of_a_dead_node_go_to_the_next() {
    block_on(async {
        let (cluster, _file) = cluster("").await;
        let load = load(&cluster);
        assert!(cluster.kill("a"));
        let clients: Vec<_> = (0..3).map(|client| tokio::spawn(load.clone().client(client))).collect();
        let open = OpenLoop { rate: 200.0, sessions: SESSIONS, most_under_way: 1_000, keyless: 0.5, seed: 3 };
        let open = tokio::spawn(load.clone().open_loop(open));
        tokio::time::sleep(Duration::from_secs(1)).await;
        load.stop();
        for client in clients {
            client.await.expect("no client panicked");
        }
        assert!(open.await.expect("no client panicked").sent > 0);
        let report = load.check(SESSIONS).await.expect("the others are up");
        assert_eq!((report.invoked, &*report.violations), (report.replied, &[][..]), "{report}");
        assert_eq!(cluster.running(), ["b", "c"]);
    });
}

fn a_missing_dedupe_is_found() {
    block_on(async {
        let (_, report, _) = ordeal("no-dedupe", &[Fault::KillTwo], 6).await;
        assert!(report.violations.iter().any(|found| matches!(found, Violation::AcceptedTwice { .. })), "{report}");
    });
}

fn an_early_acknowledgement_is_found() {
    block_on(async {
        let (_, report, _) = ordeal("ack-before-commit", &[Fault::KillOwner], 4).await;
        assert!(report.violations.iter().any(|found| matches!(found, Violation::Lost { .. })), "{report}");
    });
}

/// Nobody talks to the brokers here.
fn a_fault_that_does_not_happen() {
    block_on(async {
        let file = NamedTempFile::new().expect("a file");
        let plan = Plan {
            stores: Stores::fresh(&[], &["127.0.0.1:9"]),
            network: Some(Arc::new(Network::new(1))),
            environment: vec![(STORE.to_owned(), file.path().to_string_lossy().into_owned())],
            ..Plan::new(std::env::current_exe().expect("this program"), &[("a", "one")])
        };
        let cluster = Cluster::prepare(plan);
        cluster.start_all().await;
        let load = load(&cluster);
        let planned = brief(schedule(1, &[Fault::LogCut], 1, CALM)[0]);
        let outcome = cluster.inflict(&planned, load.recorder()).await;
        assert!(!outcome.confirmed, "{outcome:?}");
        assert!(outcome.until_us > outcome.from_us);
    });
}

fn a_node_that_dies_by_itself() {
    block_on(async {
        let (cluster, _file) = cluster("dies").await;
        let load = load(&cluster);
        let client = tokio::spawn(load.clone().client(0));
        cluster.until("a node dies", async || cluster.state("a") == ProcessState::Gone).await;
        load.stop();
        client.abort();
        let planned = brief(schedule(1, &[Fault::Restart], 1, CALM)[0]);
        let run = AssertUnwindSafe(|| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(cluster.inflict(&planned, load.recorder()))
            })
        });
        let told = catch_unwind(run).expect_err("the run fails");
        let told = told.downcast_ref::<String>().expect("a message");
        assert!(told.contains("a has ended") && told.contains("node.log"), "{told}");
    });
}

fn a_node_stands_still_ends_and_comes_back() {
    block_on(async {
        let (cluster, _file) = cluster("").await;
        cluster.pause("b");
        cluster.until("b stands still", async || cluster.state("b") == ProcessState::Stopped).await;
        assert!(cluster.get("a", "/readyz").await.is_ok(), "the others go on");
        cluster.resume("b");
        cluster.wait_ready("b").await;
        let (boot, url) = (cluster.boot("b"), cluster.url("b"));
        assert_eq!(cluster.restart("b").await, Some(0));
        assert_ne!((cluster.boot("b"), cluster.url("b")), (boot, url));
        cluster.wait_ready("b").await;
        assert!(cluster.kill("b"));
        assert_eq!((cluster.state("b"), cluster.running()), (ProcessState::Gone, vec!["a", "c"]));
        assert!(cluster.get("b", "/readyz").await.is_err());
        cluster.start_all().await;
        assert_eq!(cluster.running(), ["a", "b", "c"]);
    });
}
