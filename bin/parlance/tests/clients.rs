//! The official OpenAI clients, unmodified, against a real node. `make services` installs them.

mod common;

use std::process::Command;

use common::{Node, Place, end, get};

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
fn the_python_client_gets_the_vectors_of_the_reference() {
    let place = Place::new();
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");
    let config = place.file("parlance.toml", "[models.all-minilm-l6-v2]\n");
    let node = Node::start(&place, place.up().arg("--config").arg(config).args(["--model-dir", models]));
    node.wait_ready();
    node.wait_for_model("all-minilm-l6-v2");
    let script = format!("{CLIENTS}/embeddings_client.py");
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../inference/model/fixtures");
    let mut client = Command::new(format!("{SERVICES}/venv/bin/python"));
    check(client.arg(script).arg(node.url("/v1")).arg(fixtures), 7);
    let metrics = get(&node.url("/metrics")).body;
    for counted in ["parlance_embedding_texts_total{model_name=\"all-minilm-l6-v2\"}", "outcome=\"done\""] {
        assert!(metrics.contains(counted), "no {counted} in\n{metrics}");
    }
}

#[test]
fn the_javascript_client_works_unmodified() {
    let place = Place::new();
    let node = place.start();
    node.wait_ready();
    let script = format!("{CLIENTS}/openai_client.mjs");
    check(Command::new("node").arg(script).arg(node.url("/v1")).arg(format!("{SERVICES}/js")), 5);
}
