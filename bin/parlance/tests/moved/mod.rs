//! A data directory with something of everything, and whether all of it is somewhere else.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use serde_json::{Value, json};

use crate::common::{Answer, Ended, Node, PATIENCE, Place, client, end, get, send};

/// As [`SCRIPTED`](crate::common::SCRIPTED), and so slow that it never ends.
const SLOW: &str = "scripted:ttft_ms=0,token_ms=60000,tokens=16,seed=0";
/// The session whose turn has no answer.
const OPEN: &str = "open";
/// A text that makes a session larger than a part.
const LARGE: usize = 200 << 10;

/// What was in the directory, as clients saw it.
pub(crate) struct Contents {
    /// Paths and what was read there.
    seen: Vec<(String, Value)>,
    keyed: Vec<(Option<&'static str>, &'static str, String)>,
    deleted: String,
    response: String,
    /// Sessions, those of keys included.
    pub(crate) sessions: usize,
}

fn ask(node: &Node, session: Option<&str>, key: Option<&str>, text: &str) -> (Answer, bool) {
    let body = json!({ "messages": [{ "role": "user", "content": text }] });
    let mut request = client(None).post(node.url("/v1/chat/completions")).json(&body);
    for (name, value) in [("X-Session-ID", session), ("Idempotency-Key", key)] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    crate::common::block_on(async {
        let response = request.send().await.expect("an answer");
        let replayed = response.headers().contains_key("Idempotency-Replayed");
        let status = response.status().as_u16();
        (Answer { status, body: response.text().await.expect("a body") }, replayed)
    })
}

fn text_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

fn post(node: &Node, path: &str, body: &Value) -> Value {
    let answer = send(client(None).post(node.url(path)).json(body)).expect("an answer");
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

fn items(session: &str) -> String {
    format!("/v1/conversations/{session}/items?order=asc&limit=100")
}

/// Fills the directory of `place`, and leaves one turn without an answer.
pub(crate) fn fill(place: &Place) -> Contents {
    let node = place.start();
    node.wait_ready();
    for text in ["one", "two"] {
        text_of(&ask(&node, Some("talk"), None, text).0);
    }
    let keys = [(Some("talk"), "key-1"), (None, "key-2")];
    let keyed = keys.map(|(session, key)| (session, key, text_of(&ask(&node, session, Some(key), "keyed").0)));
    let large = post(&node, "/v1/conversations", &json!({ "metadata": { "topic": "tea" } }))["id"].clone();
    let large = large.as_str().expect("an id").to_owned();
    for letter in ["a", "b", "c", "ä"] {
        let item = json!({ "type": "message", "role": "user", "content": letter.repeat(LARGE / letter.len()) });
        post(&node, &format!("/v1/conversations/{large}/items"), &json!({ "items": [item] }));
    }
    text_of(&ask(&node, Some("gone"), None, "forget this").0);
    let deleted = "/v1/conversations/gone".to_owned();
    assert_eq!(send(client(None).delete(node.url(&deleted))).expect("an answer").status, 200);
    let response = post(&node, "/v1/responses", &json!({ "model": "default", "input": "remember this" }));
    let response = response["id"].as_str().expect("an id").to_owned();
    let paths = [
        items("talk"),
        items(&large),
        "/v1/conversations/talk".to_owned(),
        format!("/v1/conversations/{large}"),
        format!("/v1/responses/{response}"),
    ];
    let seen = paths.map(|path| (path.clone(), read(&node, &path))).into();
    node.kill();
    leave_open(place);
    Contents { seen, keyed: keyed.into(), deleted, response, sessions: 7 }
}

fn read(node: &Node, path: &str) -> Value {
    let answer = get(&node.url(path));
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// A turn is accepted, and its node dies while it answers.
fn leave_open(place: &Place) {
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--model", SLOW, "--data"]).arg(place.data());
    let node = Node::start(place, &mut up);
    node.wait_ready();
    let body = json!({ "messages": [{ "role": "user", "content": "wait for me" }], "stream": true });
    let request = client(None).post(node.url("/v1/chat/completions")).header("X-Session-ID", OPEN).json(&body);
    let accepted = crate::common::block_on(async { request.send().await.expect("an answer") });
    assert!(accepted.headers().contains_key("X-Turn-ID"), "{accepted:?}");
    node.kill();
}

impl Contents {
    /// All of it is there, and goes on.
    pub(crate) fn assert_at(&self, node: &Node) {
        for (path, seen) in &self.seen {
            assert_eq!(&read(node, path), seen, "{path}");
        }
        assert_eq!(get(&node.url(&self.deleted)).status, 404);
        for (session, key, text) in &self.keyed {
            let (again, replayed) = ask(node, *session, Some(key), "keyed");
            assert_eq!((&text_of(&again), replayed), (text, true), "{key}");
            assert_eq!(ask(node, *session, Some(key), "something else").0.status, 409, "{key}");
        }
        let until = Instant::now() + PATIENCE;
        let answered = loop {
            let said = read(node, &items(OPEN))["data"].clone();
            if said.as_array().is_some_and(|items| items.len() == 2) || Instant::now() > until {
                break said;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert_eq!((&answered[1]["role"], &answered[1]["error"]), (&json!("assistant"), &Value::Null), "{answered}");
        let input = json!({ "model": "default", "input": "and this", "previous_response_id": self.response });
        assert_eq!(post(node, "/v1/responses", &input)["previous_response_id"], self.response.as_str());
        text_of(&ask(node, Some("talk"), None, "let us go on").0);
        assert_eq!(read(node, &items("talk"))["data"].as_array().map(Vec::len), Some(8));
    }
}

/// `parlance data adopt` of the data of `place`.
pub(crate) fn adopt(place: &Place, server: &str) -> Command {
    let mut adopt = place.parlance();
    adopt.args(["data", "adopt", "--json", "--server", server, "--from"]).arg(place.data());
    adopt
}

/// Moves everything, and returns what the command says.
#[track_caller]
pub(crate) fn adopted(place: &Place, server: &str) -> Value {
    let done: Ended = end(&mut adopt(place, server));
    assert_eq!(done.code, Some(0), "{done:?}");
    serde_json::from_str(&done.stdout).expect("JSON")
}

/// Runs the command and kills it when the node has recorded its `count`th part and before it hears of that.
pub(crate) fn kill_after_parts(place: &Place, node: SocketAddr, count: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let mut command = adopt(place, &url);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let (reached, told) = mpsc::channel();
    let parts = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (parts, reached) = (parts.clone(), reached.clone());
            std::thread::spawn(move || {
                relay(stream, node, || {
                    if parts.fetch_add(1, Ordering::Relaxed) + 1 < count {
                        return true;
                    }
                    // Whoever waited for the first may be gone.
                    let _ = reached.send(());
                    false
                })
            });
        }
    });
    told.recv_timeout(PATIENCE).expect("so many parts are sent");
    child.kill().expect("our own child");
    child.wait().expect("our own child");
}

/// Passes one request on, and its answer back unless it is a part and `may_pass` says no.
fn relay(mut client: TcpStream, node: SocketAddr, may_pass: impl Fn() -> bool) {
    let mut reader = BufReader::new(client.try_clone().expect("a socket"));
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let header = line.to_ascii_lowercase();
        length = header.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().expect("a length"));
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let mut server = TcpStream::connect(node).expect("the node listens");
    let mut answer = Vec::new();
    let asked = write!(server, "{head}connection: close\r\n\r\n").and_then(|()| server.write_all(&body));
    asked.and_then(|()| server.read_to_end(&mut answer)).expect("the node answers");
    let is_part = head.starts_with("POST /admin/v1/adoption HTTP");
    if !is_part || may_pass() {
        // The command may be dead.
        let _ = client.write_all(&answer);
    }
}
