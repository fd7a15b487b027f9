//! A node whose log is in Kafka and whose records are in Cassandra (which stands in for Scylla), both real: `make services` starts them.

mod common;
mod ordeal;

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use common::{Node, PATIENCE, Place, end, get};
use ordeal::{Ordeal, up};
use serde_json::{Value, json};

/// Where `make services` has them.
const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";
/// The consumer that the documentation shows, and what runs it.
const CONSUMER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/consume_events.py");
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/services/venv/bin/python");
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

/// What the consumer prints behind what it printed before.
fn consume(config: &Path, cursors: &Path) -> Vec<Value> {
    let config = std::fs::read_to_string(config).expect("it was written");
    let prefix = config.lines().find_map(|line| line.strip_prefix("topic_prefix = ")).expect("it names its topics");
    let topic = format!("{}.events", prefix.trim_matches('\''));
    let mut consumer = Command::new(PYTHON);
    let ended = end(consumer.args([CONSUMER, KAFKA, &topic, "--until-end", "--cursors"]).arg(cursors));
    assert_eq!(ended.code, Some(0), "run `make services`, which installs its client:\n{}", ended.stderr);
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

/// Says something in a session; the turn's id.
fn say(node: &Node, session: &str, text: &str) -> String {
    let body = json!({ "model": "default", "messages": [{ "role": "user", "content": text }] });
    let call = common::client(None).post(node.url("/v1/chat/completions")).header("x-session-id", session).json(&body);
    common::block_on(async {
        let response = call.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{}", node.log());
        let turn = response.headers()["x-turn-id"].to_str().expect("text").to_owned();
        response.bytes().await.expect("a whole answer");
        turn
    })
}

#[test]
fn events_tell_every_turn_in_order_over_kills() {
    const SESSIONS: [&str; 3] = ["one", "two", "three"];
    let place = Place::new();
    let (config, cursors) = (shared_stores(&place), place.path().join("cursors.json"));
    let mut turns: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut told: Vec<Value> = Vec::new();
    for life in 0..3 {
        let node = Node::start(&place, &mut over(&config, place.up()));
        node.wait_ready();
        for number in 0..5 {
            for session in SESSIONS {
                turns.entry(session).or_default().push(say(&node, session, &format!("{number} of {life}")));
            }
        }
        if life == 1 {
            // While it lives; otherwise with what the next one publishes again.
            told.extend(consume(&config, &cursors));
        }
        node.kill();
    }
    let node = Node::start(&place, &mut over(&config, place.up()));
    let expected = 2 * turns.values().map(Vec::len).sum::<usize>();
    let deadline = Instant::now() + PATIENCE;
    while told.len() < expected {
        assert!(Instant::now() < deadline, "{} of {expected} events: {told:#?}\n{}", told.len(), node.log());
        told.extend(consume(&config, &cursors));
    }
    for (session, turns) in turns {
        let of_session = told.iter().filter(|event| event["subject"] == session);
        let seen: Vec<_> = of_session.map(|event| (&event["data"]["turn"], &event["type"])).collect();
        let types = ["parlance.turn.accepted.v1", "parlance.turn.replied.v1"].map(Value::from);
        let turns: Vec<Value> = turns.into_iter().map(Value::from).collect();
        let expected: Vec<_> = turns.iter().flat_map(|turn| types.iter().map(move |kind| (turn, kind))).collect();
        assert_eq!(seen, expected, "session {session}");
    }
    assert!(told.iter().all(|event| event["id"].as_str().is_some_and(|id| id.starts_with("parlance/"))), "{told:#?}");
    let metrics = get(&node.url("/metrics")).body;
    for name in ["parlance_events_published_total", "parlance_events_lag 0"] {
        assert!(metrics.contains(name), "no {name} in\n{metrics}");
    }
}
