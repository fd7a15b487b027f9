//! A node whose log is in Kafka and whose records are in Cassandra (which stands in for Scylla), both real: `make services` starts them.

mod common;
mod ordeal;

use std::{net::TcpStream, path::PathBuf, process::Command};

use common::{Node, Place, end};
use ordeal::{Ordeal, up};
use serde_json::{Value, json};

/// Where `make services` has them.
const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";
/// Kills of the node; each start replays what the last one had not projected.
const KILLS: usize = 25;

/// A configuration with a topic and a keyspace that nobody has used.
fn shared_stores(place: &Place) -> PathBuf {
    for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
        assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
    }
    let fresh: u64 = rand::random();
    let password = place.file("password", "cassandra\n");
    let text = format!(
        "[log]\nkind = 'kafka'\nbrokers = ['{KAFKA}']\ntopic_prefix = 'test-{fresh:x}'\nshards = 4\nreplication = 1\n\
         [records]\nkind = 'scylla'\ncontact_points = ['{CASSANDRA}']\nkeyspace = 'test_{fresh:x}'\nreplication = 1\n\
         user = 'cassandra'\npassword_file = '{}'\n",
        password.display()
    );
    place.file("parlance.toml", text)
}

fn over(config: &PathBuf, mut command: Command) -> Command {
    command.arg("--config").arg(config);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_turns_survive_sigkill() {
    let mut ordeal = Ordeal::begin(|place: &Place| {
        let config = place.path().join("parlance.toml");
        if !config.exists() {
            shared_stores(place);
        }
        over(&config, up(place.parlance(), &place.data()))
    });
    for _ in 0..KILLS {
        ordeal.kill(Node::kill).await;
    }
    let open = ordeal.kills_with_open_turn;
    let report = ordeal.end().await;
    assert_eq!(report.violations, []);
    assert_eq!(report.recorded_failures, 0, "an interruption is no failure: {report}");
    assert!(open >= KILLS / 2, "only {open} kills found an open turn");
    assert!(report.replied >= KILLS * 5, "the clients hardly got through: {report}");
}

fn respond(node: &Node, body: &Value) -> Value {
    let answer = common::send(common::client(None).post(node.url("/v1/responses")).json(body)).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", node.log());
    answer.json()
}

#[test]
fn what_was_said_is_in_the_servers_alone() {
    let place = Place::new();
    let config = shared_stores(&place);
    let node = Node::start(&place, &mut over(&config, place.up()));
    node.wait_ready();
    let first = respond(&node, &json!({ "model": "default", "input": "remember this", "store": true }));
    node.kill();
    // Another machine: nothing of the first one's directory is there.
    let elsewhere = Place::new();
    let node = Node::start(&elsewhere, &mut over(&config, elsewhere.up()));
    node.wait_ready();
    let again =
        respond(&node, &json!({ "model": "default", "input": "and this", "previous_response_id": first["id"] }));
    assert_eq!(again["status"], "completed");
    assert_eq!(again["previous_response_id"], first["id"]);
    let (before, after) = (&first["usage"]["input_tokens"], &again["usage"]["input_tokens"]);
    assert!(
        after.as_u64() > before.as_u64(),
        "the first turn is part of the second's prompt: {before} and {after} tokens"
    );
}

#[test]
fn a_topic_that_was_made_anew_is_refused() {
    let place = Place::new();
    let config = shared_stores(&place);
    let node = Node::start(&place, &mut over(&config, place.up()));
    node.wait_ready();
    node.kill();
    let id = place.data().join("kafka-topic-id");
    let known = std::fs::read_to_string(&id).expect("the node remembers its topic");
    std::fs::write(&id, "AAAAAAAAAAAAAAAAAAAAAA").expect("written");
    end(&mut over(&config, place.up())).assert_refused(1, &["was made anew", &known, "remove", "kafka-topic-id"]);
    std::fs::write(&id, known).expect("written");
    Node::start(&place, &mut over(&config, place.up())).wait_ready();
}

#[test]
fn servers_that_are_not_there_are_told() {
    let place = Place::new();
    let file = |text: &str| place.file("parlance.toml", text);
    let kafka = file("[log]\nkind = 'kafka'\nbrokers = ['127.0.0.1:9']\n");
    end(&mut over(&kafka, place.up())).assert_refused(1, &["127.0.0.1:9", "Correct [log] or the brokers"]);
    let password = place.file("empty", "\n");
    let scylla = |user: &str| file(&format!("[records]\nkind = 'scylla'\ncontact_points = ['127.0.0.1:9']\n{user}"));
    let user = format!("user = 'a'\npassword_file = '{}'\n", password.display());
    end(&mut over(&scylla(&user), place.up())).assert_refused(2, &["password file", "is empty"]);
    end(&mut over(&scylla(""), place.up())).assert_refused(1, &["127.0.0.1:9", "Correct [records] or the servers"]);
}
