//! The web chat's line over a real socket.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use super::{FAST, SLOW, mark, sockets::server};
use crate::{Auth, IngressOptions};

struct Line(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Line {
    async fn open(address: std::net::SocketAddr) -> Self {
        let (socket, _) = connect_async(format!("ws://{address}/ws")).await.expect("a websocket");
        let mut line = Self(socket);
        assert_eq!(line.hear().await["type"], "ready");
        line
    }

    async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.expect("sent");
    }

    async fn next(&mut self) -> Message {
        let message = timeout(Duration::from_secs(30), self.0.next()).await.expect("in time");
        message.expect("the line is open").expect("a message")
    }

    async fn hear(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.next().await {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }

    /// Reads a turn to its end: its text behind `text`, and the last message.
    async fn finish(&mut self, mut text: String) -> (String, Value) {
        loop {
            let message = self.hear().await;
            match message["type"].as_str() {
                Some("delta") => {
                    text.push_str(message["text"].as_str().expect("a text"));
                    assert_eq!(message["seq"], text.len());
                }
                Some("final" | "error") => return (text, message),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn open_options() -> IngressOptions {
    IngressOptions::local([7; 32])
}

#[tokio::test]
async fn a_turn_streams_and_joins_when_it_is_sent_again() {
    let server = server(FAST, open_options()).await;
    let mut line = Line::open(server.address).await;
    let turn = json!({ "type": "turn", "session": "s1", "text": "hello", "id": "m1" });
    line.say(turn.clone()).await;
    let accepted = line.hear().await;
    assert_eq!(
        (&accepted["type"], &accepted["id"], &accepted["replayed"]),
        (&json!("accepted"), &json!("m1"), &json!(false))
    );
    let (text, last) = line.finish(String::new()).await;
    assert!(text.starts_with(&mark("hello")));
    assert_eq!((&last["finish_reason"], &last["seq"]), (&json!("stop"), &json!(text.len())));

    let mut other = Line::open(server.address).await;
    other.say(turn).await;
    let joined = other.hear().await;
    assert_eq!((&joined["turn"], &joined["replayed"]), (&accepted["turn"], &json!(true)));
    assert_eq!(other.finish(String::new()).await.0, text);
    other.say(json!({ "type": "turn", "session": "s1", "text": "something else", "id": "m1" })).await;
    assert_eq!(other.hear().await["code"], "idempotency_conflict");
}

#[tokio::test]
async fn a_lost_line_is_resumed_where_it_was() {
    let server = server("scripted:ttft_ms=0,token_ms=5,tokens=40,seed=0", open_options()).await;
    let mut line = Line::open(server.address).await;
    line.say(json!({ "type": "turn", "session": "s1", "text": "hello" })).await;
    let turn = line.hear().await["turn"].clone();
    let shown = line.hear().await["text"].as_str().expect("a text").to_owned();
    drop(line);
    let mut line = Line::open(server.address).await;
    line.say(json!({ "type": "resume", "turn": turn, "after": shown.len() })).await;
    assert_eq!(line.hear().await["type"], "accepted");
    let (text, last) = line.finish(shown).await;
    assert!(text.starts_with(&mark("hello")));
    assert_eq!(last["type"], "final");
}

#[tokio::test]
async fn turns_of_several_sessions_run_at_once_and_are_stopped_one_by_one() {
    let server = server(SLOW, open_options()).await;
    let mut line = Line::open(server.address).await;
    for session in ["s1", "s2"] {
        line.say(json!({ "type": "turn", "session": session, "text": session, "id": session })).await;
    }
    let mut turns = std::collections::BTreeMap::new();
    while turns.len() < 2 {
        let message = line.hear().await;
        if message["type"] == "accepted" {
            turns.insert(message["session"].as_str().expect("a session").to_owned(), message["turn"].clone());
        }
    }
    line.say(json!({ "type": "stop", "session": "s2", "turn": turns["s2"] })).await;
    loop {
        let message = line.hear().await;
        match message["type"].as_str() {
            Some("final") => {
                assert_eq!((&message["turn"], &message["finish_reason"]), (&turns["s2"], &json!("cancelled")));
                break;
            }
            Some("delta" | "stopped") => {}
            other => panic!("{other:?}"),
        }
    }
    line.say(json!({ "type": "stop", "session": "s1" })).await;
}

#[tokio::test]
async fn a_reply_is_regenerated() {
    let server = server(FAST, open_options()).await;
    let mut line = Line::open(server.address).await;
    line.say(json!({ "type": "turn", "session": "s1", "text": "hello" })).await;
    let first = line.hear().await["turn"].clone();
    line.finish(String::new()).await;
    let mut made = Vec::new();
    // A page repeats what it saw no word of.
    for replayed in [false, true] {
        line.say(json!({ "type": "regenerate", "session": "s1", "turn": first, "id": "r1" })).await;
        let accepted = line.hear().await;
        let told = (&accepted["type"], &accepted["id"], &accepted["replayed"]);
        assert_eq!(told, (&json!("accepted"), &json!("r1"), &json!(replayed)), "{accepted}");
        assert_ne!(accepted["turn"], first);
        assert!(line.finish(String::new()).await.0.starts_with(&mark("hello")));
        made.push(accepted["turn"].clone());
    }
    assert_eq!(made[0], made[1], "it was made anew once");
}

#[tokio::test]
async fn bad_messages_are_answered_and_the_line_goes_on() {
    let server = server(FAST, open_options()).await;
    let mut line = Line::open(server.address).await;
    for (message, code) in [
        (json!({ "type": "dance" }), "invalid_value"),
        (json!({ "type": "stop", "session": "none" }), "session_not_found"),
        (json!({ "type": "resume", "turn": "0".repeat(32) }), "turn_not_found"),
        (json!({ "type": "turn", "session": "s", "text": "x", "model": "none" }), "model_not_found"),
    ] {
        line.say(message.clone()).await;
        let answer = line.hear().await;
        if message["type"] == "stop" && answer["type"] == "stopped" {
            assert_eq!(answer["stopped"], false);
            continue;
        }
        assert_eq!(
            (answer["type"].as_str(), answer["code"].as_str()),
            (Some("error"), Some(code)),
            "{message}: {answer}"
        );
    }
    line.say(json!({ "type": "ping" })).await;
    assert_eq!(line.hear().await["type"], "pong");
}

async fn close_code(line: &mut Line) -> Option<u16> {
    loop {
        match timeout(Duration::from_secs(30), line.0.next()).await.expect("in time") {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

#[tokio::test]
async fn hostile_lines_are_closed() {
    let server = server(FAST, open_options()).await;
    let mut large = Line::open(server.address).await;
    // The server may close before all of it is sent.
    let _ = large.0.send(Message::text("x".repeat(256 * 1024 + 1))).await;
    assert!(matches!(close_code(&mut large).await, Some(1009) | None));
    let mut binary = Line::open(server.address).await;
    binary.0.send(Message::binary(vec![1, 2, 3])).await.expect("sent");
    assert_eq!(close_code(&mut binary).await, Some(1003));
    let mut flood = Line::open(server.address).await;
    for _ in 0..1_000 {
        if flood.0.send(Message::Ping(Default::default())).await.is_err() {
            break;
        }
    }
    assert!(matches!(close_code(&mut flood).await, Some(1008) | None));
}

#[tokio::test]
async fn keys_and_origins_are_checked() {
    let auth = Auth::from_key_file("one key-of-tenant-one-1").expect("good keys");
    let server = server(FAST, IngressOptions { auth, ..open_options() }).await;
    let url = format!("ws://{}/ws", server.address);
    let (socket, _) = connect_async(&url).await.expect("a websocket");
    let mut good = Line(socket);
    good.say(json!({ "type": "auth", "key": "key-of-tenant-one-1" })).await;
    assert_eq!(good.hear().await["type"], "ready");
    let (socket, _) = connect_async(&url).await.expect("a websocket");
    let mut wrong = Line(socket);
    wrong.say(json!({ "type": "turn", "session": "s", "text": "x" })).await;
    assert_eq!(wrong.hear().await["code"], "invalid_api_key");
    assert_eq!(close_code(&mut wrong).await, Some(1008));

    let mut foreign = url.into_client_request().expect("a request");
    foreign.headers_mut().insert("origin", "https://evil.example".parse().expect("a value"));
    assert!(connect_async(foreign).await.expect_err("refused").to_string().contains("403"));
}
