//! The terminal client and the commands that ask a node, against a real one.

mod common;

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{Ended, Node, PATIENCE, Place, end, wait};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A model whose answers take a second.
const SLOW: &str = "scripted:ttft_ms=10,token_ms=50,tokens=20";

/// What every scripted answer begins with, so that one to another question is seen.
fn mark(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn server(node: &Node) -> String {
    format!("http://{}", node.address())
}

/// Pipes lines into `parlance chat`.
fn pipe(place: &Place, node: &Node, words: &[&str], lines: &str) -> Ended {
    let input = place.file("lines", lines);
    let stdin = std::fs::File::open(input).expect("a file");
    end(place.parlance().args(["chat", "--server", &server(node)]).args(words).stdin(stdin))
}

fn run(place: &Place, node: &Node, words: &[&str]) -> Ended {
    end(place.parlance().args(words).args(["--server", &server(node)]))
}

#[test]
fn piped_lines_are_turns_of_one_conversation_that_outlives_the_node() {
    let place = Place::new();
    let node = place.start();
    node.wait_ready();
    let first = pipe(&place, &node, &["--session", "s1"], "one\n\ntwo\n");
    assert_eq!(first.code, Some(0), "{first:?}");
    let answers: Vec<&str> = first.stdout.lines().collect();
    assert_eq!(answers.len(), 2, "{first:?}");
    assert!(answers[0].starts_with(&mark("one")) && answers[1].starts_with(&mark("two")), "{answers:?}");
    assert_eq!(node.terminate(), Some(0));

    let node = place.start();
    node.wait_ready();
    let third = pipe(&place, &node, &["--session", "s1", "--json"], "three\n");
    let value: Value = serde_json::from_str(&third.stdout).expect("one line of JSON");
    assert!(value["text"].as_str().is_some_and(|text| text.starts_with(&mark("three"))), "{value}");
    assert_eq!(value["session"], "s1");

    let listed: Value = serde_json::from_str(&run(&place, &node, &["session", "list", "--json"]).stdout).expect("JSON");
    assert_eq!((&listed[0]["id"], &listed[0]["items"]), (&"s1".into(), &6.into()), "{listed}");
    let shown: Value =
        serde_json::from_str(&run(&place, &node, &["session", "inspect", "s1", "--json"]).stdout).expect("JSON");
    let said: Vec<&str> = shown["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|item| item["content"][0]["text"].as_str())
        .collect();
    assert_eq!((said.len(), said[0], said[2], said[4]), (6, "one", "two", "three"));
    assert!(said[1].starts_with(&mark("one")) && said[5].starts_with(&mark("three")), "{said:?}");
    let text = run(&place, &node, &["session", "inspect", "s1"]);
    assert!(text.stdout.contains("user: two"), "{text:?}");
}

#[test]
fn commands_tell_what_keeps_them_from_an_answer() {
    let place = Place::new();
    for words in [&["status"][..], &["session", "list"], &["chat"]] {
        let stdin = std::fs::File::open(place.file("lines", "hello\n")).expect("a file");
        let unreachable = end(place.parlance().args(words).args(["--server", "http://127.0.0.1:1"]).stdin(stdin));
        unreachable.assert_refused(3, &["http://127.0.0.1:1", "parlance up", "--server"]);
    }
    end(place.parlance().args(["status", "--server", "not a url"])).assert_refused(2, &["--server"]);
    end(place.parlance().args(["chat", "--session", "a/b"])).assert_refused(2, &["no session id"]);
    let node = place.start();
    node.wait_ready();
    run(&place, &node, &["session", "inspect", "nobody"]).assert_refused(1, &["does not exist"]);
    let unknown = pipe(&place, &node, &["--model", "nobody"], "hello\n");
    unknown.assert_refused(1, &["nobody"]);
    let status = run(&place, &node, &["status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.stdout.contains("ready       yes") && status.stdout.contains("scripted"), "{status:?}");
}

#[test]
fn an_answer_goes_on_where_a_killed_node_left_it() {
    let place = Place::new();
    let up = |listen: &str| {
        let mut up = place.parlance();
        up.args(["up", "--listen", listen, "--model", SLOW, "--data"]).arg(place.data());
        Node::start(&place, &mut up)
    };
    let node = up("127.0.0.1:0");
    node.wait_ready();
    let address = node.address().to_string();
    let input = std::fs::File::open(place.file("lines", "persist\n")).expect("a file");
    let mut chat = place.parlance();
    chat.args(["chat", "--session", "s", "--server", &server(&node)])
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let chat = chat.spawn().expect("the client");
    let output = Output::of(chat);
    output.wait_for(&mark("persist"));
    node.kill();
    let _node = up(&address);
    let (code, text) = output.ended();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("connection lost"), "{text}");
    let whole = pipe(&place, &_node, &["--session", "other"], "persist\n").stdout;
    let shown: String = text.lines().filter(|line| !line.starts_with('[')).collect();
    assert_eq!(shown.trim(), whole.trim(), "the answer of an undisturbed conversation");
}

/// A process whose output is watched while it runs.
struct Output {
    child: Child,
    text: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Output {
    fn of(mut child: Child) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let mut readers = Vec::new();
        let out = child.stdout.take().map(|out| Box::new(out) as Box<dyn std::io::Read + Send>);
        let err = child.stderr.take().map(|err| Box::new(err) as Box<dyn std::io::Read + Send>);
        for mut from in [out, err].into_iter().flatten() {
            let text = text.clone();
            readers.push(std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    text.lock().expect("a reader").push_str(&String::from_utf8_lossy(&buffer[..read]));
                }
            }));
        }
        Self { child, text, readers }
    }

    #[track_caller]
    fn wait_for(&self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text.lock().expect("a reader").contains(part) {
            assert!(Instant::now() < deadline, "no {part:?} in {:?}", self.text.lock());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().expect("piped").write_all(keys.as_bytes()).expect("typed");
    }

    fn ended(mut self) -> (Option<i32>, String) {
        let code = wait(&mut self.child).and_then(|status| status.code());
        for reader in self.readers {
            reader.join().expect("a reader");
        }
        (code, self.text.lock().expect("no reader left").clone())
    }
}

/// On a pseudo-terminal, as a person sits at it.
#[test]
fn a_person_can_stop_regenerate_start_anew_and_leave() {
    let place = Place::new();
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--model", "scripted:ttft_ms=10,token_ms=200,tokens=40", "--data"]);
    let node = Node::start(&place, up.arg(place.data()));
    node.wait_ready();
    let command = format!("exec {} chat --session s --server {}", env!("CARGO_BIN_EXE_parlance"), server(&node));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &command, "/dev/null"]).env("HOME", place.path()).env("TERM", "xterm");
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut person = Output::of(terminal.spawn().expect("script, of Debian's bsdutils"));
    person.wait_for("/help");
    person.wait_for("> ");
    person.type_in("stop me\r");
    person.wait_for(&mark("stop me"));
    person.type_in("\u{3}");
    person.wait_for("]\r\n");
    person.type_in("/regenerate\r");
    let again = || person.text.lock().expect("a reader").matches(&mark("stop me")).count() == 2;
    let deadline = Instant::now() + PATIENCE;
    while !again() {
        assert!(Instant::now() < deadline, "never regenerated: {:?}", person.text.lock());
        std::thread::sleep(Duration::from_millis(5));
    }
    person.type_in("\u{3}");
    person.wait_for("> ");
    person.type_in("/nonsense\r");
    person.wait_for("There is no command /nonsense");
    person.type_in("/new\r");
    person.wait_for("Session chat-");
    person.type_in("/quit\r");
    let (code, text) = person.ended();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("parlance chat --session chat-"), "{text}");
    let shown: Value =
        serde_json::from_str(&run(&place, &node, &["session", "inspect", "s", "--json"]).stdout).expect("JSON");
    let replies = shown["items"].as_array().expect("items").iter().filter(|item| item["role"] == "assistant").count();
    assert!((1..=2).contains(&replies), "{shown}");
}
