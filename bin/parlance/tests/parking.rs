//! A session that panics again and again is restarted alone, then parked; the sessions beside it notice nothing. The panic is one of
//! the planted bugs.

mod common;

use std::time::Duration;

use common::{Answer, Node, Place, client, end, get, planted, send};
use serde_json::{Value, json};

/// Longer than the restarts of a session until it is parked.
const MODEL: &str = "scripted:ttft_ms=20,token_ms=25,tokens=100";

fn say(node: &Node, session: &str, text: &str) -> Answer {
    let body = json!({ "messages": [{ "role": "user", "content": text }] });
    let request = client(None).post(node.url("/v1/chat/completions")).header("X-Session-ID", session).json(&body);
    send(request).expect("an answer")
}

fn metric(node: &Node, series: &str) -> Option<u64> {
    let metrics = get(&node.url("/metrics")).body;
    metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

fn recorded(node: &Node, session: &str) -> Vec<Value> {
    let items = get(&node.url(&format!("/v1/conversations/{session}/items?order=asc"))).json();
    items["data"].as_array().expect("a list").clone()
}

#[test]
fn a_session_that_keeps_panicking_is_parked_alone() {
    let place = Place::new();
    let up = |place: &Place| {
        let mut up = planted(place, "panic-on-poison");
        up.args(["up", "--listen", "127.0.0.1:0", "--model", MODEL, "--data"]).arg(place.data());
        Node::start(place, &mut up)
    };
    let node = up(&place);
    node.wait_ready();
    say(&node, "sick", "hello");
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| say(&node, "well", "go on"));
        std::thread::sleep(Duration::from_millis(200));
        // It is accepted, and every attempt to answer it brings the session down.
        let poisoned = say(&node, "sick", "poison");
        assert_eq!(
            (poisoned.status, &poisoned.json()["error"]["code"]),
            (503, &json!("session_parked")),
            "{poisoned:?}"
        );
        assert!(!neighbour.is_finished(), "all of this happened while the neighbour was answered");
        let answer = neighbour.join().expect("it ends");
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
        assert_eq!(text.split_whitespace().count(), 100, "{text}");
    });
    assert_eq!(metric(&node, "parlance_actor_restarts_total{actor=\"session\"}"), Some(3));
    let refused = say(&node, "sick", "are you there?");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("session_parked")), "{refused:?}");
    let sick = recorded(&node, "sick");
    let said: Vec<_> = sick.iter().map(|item| (item["role"].as_str(), item["error"].as_str())).collect();
    let (user, assistant) = (Some("user"), Some("assistant"));
    assert_eq!(said, [(user, None), (assistant, None), (user, None), (assistant, Some("session_parked"))], "{sick:?}");
    let server = node.url("");
    let status = end(place.parlance().args(["status", "--server", &server]));
    assert!(status.stdout.contains("1 parked"), "{status:?}");
    let log = node.log();
    assert!(log.contains("session failed too often, parked"), "{log}");
    assert_eq!(node.terminate(), Some(0));

    // A restart without the bug brings the session back.
    let node = place.start();
    node.wait_ready();
    assert_eq!(say(&node, "sick", "are you there now?").status, 200);
}
