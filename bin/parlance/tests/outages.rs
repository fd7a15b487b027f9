//! Real nodes whose log, records or cache is gone for a while: what goes on, what is refused, how it shows, and that it is over once it is back.

#[path = "outages/redis.rs"]
mod redis;
#[path = "outages/storm.rs"]
mod storm;
#[path = "outages/talk.rs"]
mod talk;

use std::{fs, net::TcpStream, sync::Arc, time::Duration};

use parlance_cluster_testkit::{Broker, Cluster, LOG, Plan, RECORDS, Stores, network::Network};
use serde_json::Value;
use talk::{Client, Said};
use tokio::time::Instant;

/// Where `make services` has them.
const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";
const BINARY: &str = env!("CARGO_BIN_EXE_parlance");
const NODES: [(&str, &str); 2] = [("a", "one"), ("b", "two")];
/// Sessions that are in memory when the store goes: enough that each node has some.
const RESIDENTS: usize = 8;
/// How long an idle session stays in memory there.
const IDLE: Duration = Duration::from_secs(20);

fn assert_services() {
    for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
        assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
    }
}

/// What a node says of a component: whether it serves, as its status and its metrics have it.
async fn is_up(cluster: &Cluster, node: &str, component: &str) -> Option<bool> {
    let status = cluster.status(node).await.ok()?;
    let listed = status["dependencies"].as_array()?.iter().find(|listed| listed["name"] == component)?;
    let (up, reason) = (listed["up"].as_bool()?, &listed["reason"]);
    assert_eq!(up, reason.is_null(), "what is down says why: {listed}");
    let labels = [format!("name=\"{component}\"")];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let gauge = cluster.metrics(node).await.ok()?.sum("parlance_dependency_up", &labels);
    // Read one after the other: between them it may have changed.
    (gauge == f64::from(u8::from(up))).then_some(up)
}

async fn wait_for(cluster: &Cluster, component: &str, up: bool) {
    for node in cluster.running() {
        let seen = async || is_up(cluster, node, component).await == Some(up);
        cluster.until(&format!("{node} says of {component} that up is {up}"), seen).await;
    }
}

/// How often a node's log has this message.
fn logged(cluster: &Cluster, node: &str, message: &str) -> usize {
    let log = fs::read_to_string(cluster.directory(node).join("node.log")).expect("a log");
    log.lines().filter(|line| line.contains(message)).count()
}

async fn live_sessions(cluster: &Cluster) -> u64 {
    let mut live = 0;
    for node in cluster.running() {
        live += cluster.status(node).await.expect("it runs")["sessions"]["live"].as_u64().expect("a number");
    }
    live
}

/// Says something in every resident session, half of them at each node that runs.
async fn talk_to_residents(cluster: &Cluster, client: &Client) -> Vec<Said> {
    let nodes = cluster.running();
    let say = |number: usize| client.say(cluster.url(nodes[number % nodes.len()]), format!("resident-{number}"));
    futures_util::future::join_all((0..RESIDENTS).map(say)).await
}

fn items(conversation: &Value) -> &Vec<Value> {
    conversation["data"].as_array().expect("items")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_records_sessions_in_memory_go_on_and_a_standby_takes_over() {
    assert_services();
    let network = Arc::new(Network::new(1));
    let cluster = Cluster::prepare(Plan {
        stores: Stores::fresh(&[KAFKA], &[CASSANDRA]),
        network: Some(network.clone()),
        model: "scripted:ttft_ms=50,token_ms=25,tokens=20,seed=0".to_owned(),
        settings: format!("[limits]\nsession_idle_s = {}\n", IDLE.as_secs()),
        ..Plan::new(BINARY, &NODES)
    });
    cluster.start_all().await;
    cluster.wait_settled().await;
    wait_for(&cluster, "scylla", true).await;
    let client = Client::new();
    assert!(talk_to_residents(&cluster, &client).await.iter().all(Said::is_answered));
    let idle_from = Instant::now();
    network.split(&["a", "b"], &[RECORDS]);
    wait_for(&cluster, "scylla", false).await;

    // Nothing that the store had forgotten could come back, so nobody leaves memory, and all are answered.
    tokio::time::sleep_until(idle_from + IDLE + Duration::from_secs(2)).await;
    assert_eq!(live_sessions(&cluster).await, RESIDENTS as u64);
    let said = talk_to_residents(&cluster, &client).await;
    assert!(said.iter().all(Said::is_answered), "{said:?}");
    for node in ["a", "b"] {
        let said = client.say(cluster.url(node), "stranger".into()).await;
        assert!(said.is_refused(503, "records_unavailable"), "nobody knows what was said there before: {said:?}");
    }

    // An owner dies mid-turn. The other one was following, and owns everything without the store.
    let owned = cluster.owners("a").await.expect("it runs").into_values().filter(|owner| owner == "a").count();
    assert!(owned > 0, "a owns nothing");
    let turns = futures_util::future::join_all(
        (0..RESIDENTS).map(|number| client.begin(cluster.url("b"), format!("resident-{number}"))),
    )
    .await;
    assert!(turns.iter().all(Option::is_some), "{turns:?}");
    cluster.kill("a");
    cluster.wait_settled().await;
    assert!(!is_up(&cluster, "b", "scylla").await.unwrap_or(true), "the store was to be away all the time");

    network.heal_all();
    wait_for(&cluster, "scylla", true).await;
    // Views catch up, and what was accepted is answered: those turns too whose sessions could not be loaded by their new owner.
    for number in 0..RESIDENTS {
        let path = format!("/v1/conversations/resident-{number}/items?order=asc&limit=100");
        let whole = async || cluster.get_json("b", &path).await.is_ok_and(|items_of| items(&items_of).len() == 6);
        cluster.until(&format!("three questions of resident-{number} have their answers"), whole).await;
    }
    assert!(client.say(cluster.url("b"), "stranger".into()).await.is_answered());
    for message in ["the record store does not serve", "the record store answers again"] {
        assert_eq!(logged(&cluster, "b", message), 1, "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_log_turns_are_refused_and_reads_served() {
    assert_services();
    let network = Arc::new(Network::new(2));
    let broker = Arc::new(Broker::start(&network));
    let cluster = Cluster::prepare(Plan {
        stores: Stores::fresh(&[&broker.address()], &[CASSANDRA]),
        network: Some(network.clone()),
        brokers: vec![broker],
        ..Plan::new(BINARY, &NODES)
    });
    cluster.start_all().await;
    cluster.wait_settled().await;
    wait_for(&cluster, "kafka", true).await;
    let client = Client::new();
    assert!(talk_to_residents(&cluster, &client).await.iter().all(Said::is_answered));
    network.split(&["a", "b"], &[LOG]);
    wait_for(&cluster, "kafka", false).await;
    for node in ["a", "b"] {
        let refuses = async || {
            let said = client.say(cluster.url(node), "resident-0".into()).await;
            assert!(!said.is_answered(), "nothing is accepted that is not in the log");
            said.is_refused(503, "log_unavailable")
        };
        cluster.until(&format!("{node} refuses turns"), refuses).await;
        for number in 0..RESIDENTS {
            let path = format!("/v1/conversations/resident-{number}/items");
            let read = cluster.get_json(node, &path).await.expect("reads are served");
            assert_eq!(items(&read).len(), 2, "{read}");
        }
    }
    network.heal_all();
    wait_for(&cluster, "kafka", true).await;
    for node in ["a", "b"] {
        let answers = async || client.say(cluster.url(node), format!("back-{node}")).await.is_answered();
        cluster.until(&format!("{node} takes turns again"), answers).await;
        for message in ["kafka cannot take entries", "kafka takes entries again"] {
            assert_eq!(logged(&cluster, node, message), 1, "{message}");
        }
    }
}
