//! The chat page in a real browser, through a crash of its node. `make services` installs the browser and what drives it.

mod common;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use common::{Node, Place, wait};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/page.py");
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/services/venv/bin/python");
/// Slow enough to be watched.
const MODEL: &str = "scripted:ttft_ms=100,token_ms=60,tokens=40";
/// A model that nobody can talk to.
const EMBEDS: &str = "all-minilm-l6-v2";
const CHECKS: usize = 9;

fn up(place: &Place, listen: &str) -> Command {
    let mut up = place.parlance();
    let config = place.file("parlance.toml", format!("[models.{EMBEDS}]\n"));
    up.args(["up", "--listen", listen, "--model", MODEL, "--config"]).arg(config);
    up.args(["--model-dir", concat!(env!("CARGO_MANIFEST_DIR"), "/../../models"), "--data"]).arg(place.data());
    up
}

#[test]
fn a_person_can_chat_in_a_browser() {
    let place = Place::new();
    let mut node = Node::start(&place, &mut up(&place, "127.0.0.1:0"));
    node.wait_ready();
    node.wait_for_model(EMBEDS);
    let address = node.address().to_string();
    let mut browser = Command::new(PYTHON)
        .args([SCRIPT, &node.url("/")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the Python client is there: run `make services`");
    let mut answer = browser.stdin.take().expect("piped");
    let mut seen = Vec::new();
    for line in BufReader::new(browser.stdout.take().expect("piped")).lines() {
        let line = line.expect("text");
        if line == "restart" {
            node.kill();
            node = Node::start(&place, &mut up(&place, &address));
            writeln!(answer, "restarted").expect("it waits");
        }
        seen.push(line);
    }
    let status = wait(&mut browser).expect("it ends");
    assert!(status.success(), "run `make services`, or see what went wrong above; it got to {seen:?}");
    assert_eq!(seen.iter().filter(|line| line.starts_with("ok ")).count(), CHECKS, "{seen:?}");
}
