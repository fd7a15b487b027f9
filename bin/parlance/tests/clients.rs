//! The official OpenAI clients, unmodified, against a real node. `make services` installs them.

mod common;

use std::{path::PathBuf, process::Command};

use common::{Node, Place, end, get};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/smollm2-135m-instruct.gguf");
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
    check(Command::new(format!("{SERVICES}/venv/bin/python")).arg(script).arg(node.url("/v1")), 9);
}

/// The chat template of the default model, and one of the same length with tools: a GGUF file with another is the same file otherwise.
const PLAIN_TEMPLATE: &[u8] = b"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}";
const TOOLS_TEMPLATE: &str = "{% for m in messages %}{% if loop.first and tools %}<|im_start|>system\nCall one of {{ tools | tojson }}\n\
    <tool_call>{\"name\": NAME, \"arguments\": {}}</tool_call><|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";

/// The default model, told of tools by its template.
fn model_with_tools(place: &Place) -> PathBuf {
    let mut file = std::fs::read(MODEL);
    let bytes = file.as_mut().expect("the model was fetched");
    let at = bytes.windows(PLAIN_TEMPLATE.len()).position(|window| window == PLAIN_TEMPLATE).expect("its template");
    let length = u64::from_le_bytes(bytes[at - 8..at].try_into().expect("eight bytes")) as usize;
    // A comment fills it up.
    let template = format!("{TOOLS_TEMPLATE}{{#{}#}}", " ".repeat(length - TOOLS_TEMPLATE.len() - 4));
    bytes[at..at + length].copy_from_slice(template.as_bytes());
    place.file("tools.gguf", bytes)
}

#[test]
fn a_real_models_calls_are_what_their_schemas_allow() {
    let place = Place::new();
    let source = model_with_tools(&place);
    let section = |name, source| format!("[models.{name}]\nsource = '{source}'\ncontext_tokens = 1024\nlanes = 2\n");
    let config = section("tools", source.display().to_string()) + &section("plain", MODEL.to_owned());
    let node = Node::start(&place, place.up().arg("--config").arg(place.file("parlance.toml", config)));
    node.wait_ready();
    node.wait_for_model("tools");
    node.wait_for_model("plain");
    let script = format!("{CLIENTS}/tools_client.py");
    let mut client = Command::new(format!("{SERVICES}/venv/bin/python"));
    check(client.arg(script).arg(node.url("/v1")).args(["tools", "plain"]), 6);
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
    check(Command::new("node").arg(script).arg(node.url("/v1")).arg(format!("{SERVICES}/js")), 6);
}
