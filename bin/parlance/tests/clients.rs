//! The official OpenAI clients, unmodified, against a real node. `make services` installs them.

mod common;

use std::process::Command;

use common::{Place, end};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/services");

fn check(command: &mut Command, checks: usize) {
    let ended = end(command);
    assert_eq!(
        ended.code,
        Some(0),
        "run `make services`, which installs the clients:\n{}\n{}",
        ended.stdout,
        ended.stderr
    );
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("ok ")).count(), checks, "{}", ended.stdout);
}

#[test]
fn the_python_client_works_unmodified() {
    let place = Place::new();
    let node = place.start();
    node.wait_ready();
    let script = format!("{CLIENTS}/openai_client.py");
    check(Command::new(format!("{SERVICES}/venv/bin/python")).arg(script).arg(node.url("/v1")), 8);
}

#[test]
fn the_javascript_client_works_unmodified() {
    let place = Place::new();
    let node = place.start();
    node.wait_ready();
    let script = format!("{CLIENTS}/openai_client.mjs");
    check(Command::new("node").arg(script).arg(node.url("/v1")).arg(format!("{SERVICES}/js")), 5);
}
