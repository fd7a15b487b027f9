//! Far more callers than places, all of which come back at once when they are refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parlance_cluster_testkit::{Cluster, Plan, Stores};
use tokio::time::{Instant, sleep};

use super::{BINARY, CASSANDRA, KAFKA, NODES, assert_services, talk::Client};

const CALLERS: usize = 2_000;
/// Turns that may be open on each of two nodes.
const PLACES: usize = 100;
/// How long callers keep coming back.
const STORM: Duration = Duration::from_secs(8);
/// How soon all is well again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Counts {
    over: AtomicBool,
    answered: AtomicU64,
    refused: AtomicU64,
}

/// Asks until it is answered or the storm is over, without any pause.
async fn caller(client: Client, nodes: [String; 2], number: usize, counts: Arc<Counts>) {
    for attempt in 0.. {
        if counts.over.load(Ordering::Relaxed) {
            return;
        }
        let said = client.say(nodes[(number + attempt) % 2].clone(), format!("caller-{number}")).await;
        if said.is_answered() {
            counts.answered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        assert!(["queue_full", "overloaded"].iter().any(|code| said.is_refused(said.status, code)), "{said:?}");
        counts.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Turns that were recorded as answered, and those that are open, on both nodes.
async fn turns(cluster: &Cluster) -> (u64, u64) {
    let (mut ended, mut open) = (0, 0);
    for (node, _) in NODES {
        ended += cluster.metrics(node).await.expect("it runs").sum("parlance_turns_total", &[]) as u64;
        open += cluster.status(node).await.expect("it runs")["open_turns"].as_u64().expect("a number");
    }
    (ended, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_retries_is_refused_and_leaves_nothing_behind() {
    assert_services();
    let cluster = Cluster::prepare(Plan {
        stores: Stores::fresh(&[KAFKA], &[CASSANDRA]),
        model: "scripted:ttft_ms=300,token_ms=10,tokens=20,seed=0".to_owned(),
        settings: format!("[limits]\nopen_turns = {PLACES}\nopen_turns_per_tenant = {PLACES}\n"),
        ..Plan::new(BINARY, &NODES)
    });
    cluster.start_all().await;
    cluster.wait_settled().await;
    let (client, counts) = (Client::new(), Arc::<Counts>::default());
    let nodes = NODES.map(|(node, _)| cluster.url(node));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| tokio::spawn(caller(client.clone(), nodes.clone(), number, counts.clone())))
        .collect();
    sleep(STORM).await;
    counts.over.store(true, Ordering::Relaxed);
    let fallen = Instant::now();
    loop {
        let mut fresh = true;
        for node in &nodes {
            fresh &= client.say(node.clone(), "fresh".into()).await.is_answered();
        }
        if fresh {
            break;
        }
        assert!(fallen.elapsed() < RECOVERS_WITHIN, "no turn is taken {RECOVERS_WITHIN:?} after the storm");
    }
    for caller in callers {
        caller.await.expect("no caller saw what it should not");
    }
    // What was refused was queued nowhere: as many turns were made as callers were answered, and nothing comes later.
    cluster.until("no turn is open", async || turns(&cluster).await.1 == 0).await;
    let (answered, refused) = (counts.answered.load(Ordering::Relaxed), counts.refused.load(Ordering::Relaxed));
    let fresh = fresh_turns(&cluster).await;
    assert_eq!(turns(&cluster).await.0, answered + fresh, "{refused} times somebody was refused");
    assert!(answered >= PLACES as u64 && refused >= CALLERS as u64, "no storm: {answered} answered, {refused} refused");
}

/// How many turns the session has had in which the end of the storm was looked for.
async fn fresh_turns(cluster: &Cluster) -> u64 {
    let items = cluster.get_json("a", "/v1/conversations/fresh/items?limit=100").await.expect("it is served");
    items["data"].as_array().expect("items").len() as u64 / 2
}
