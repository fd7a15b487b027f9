//! Models that an operator loads, reloads and unloads on a running node, with `parlance model` and over `/admin/v1/models`.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Ended, Node, PATIENCE, Place, block_on, client, end, get, planted, send};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/smollm2-135m-instruct.gguf");

/// Reloads under load.
const RELOADS: usize = 10;
const CALLERS: usize = 8;
/// Times that a planted bug has to show itself.
const HAMMERINGS: usize = 10;

/// Cycles of loading and unloading.
const CYCLES: usize = 20;
/// What the process may have grown by over them beyond what the first ones left: the model's weights alone are 150 MiB.
const GROWTH_BYTES: u64 = 24 << 20;

/// A model of two small layers with random weights, as a directory.
fn tiny(place: &Place, name: &str) -> PathBuf {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../inference/model/fixtures/families"));
    let directory = place.path().join(name);
    std::fs::create_dir(&directory).expect("a directory");
    for file in ["llama2/config.json", "llama2/model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let target = directory.join(Path::new(file).file_name().expect("a name"));
        std::fs::copy(fixtures.join(file), target).expect("the fixture is there");
    }
    directory
}

/// Starts a node with the scripted model as the default, and these sections.
fn start(place: &Place, sections: &str) -> Node {
    Node::start(place, &mut up(place, place.parlance(), sections))
}

fn up(place: &Place, mut binary: Command, sections: &str) -> Command {
    let config = place.file("parlance.toml", format!("[models.default]\nsource = 'scripted:tokens=4'\n{sections}"));
    binary.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
    binary
}

fn section(name: &str, source: &Path, more: &str) -> String {
    format!("[models.{name}]\nsource = '{}'\n{more}\n", source.display())
}

fn model(place: &Place, node: &Node, words: &[&str]) -> Ended {
    end(place.parlance().arg("model").args(words).args(["--server", &node.url("")]))
}

fn listed(node: &Node, name: &str) -> Value {
    get(&node.url(&format!("/admin/v1/models/{name}"))).json()
}

fn body(model: &str, stream: bool) -> Value {
    json!({
        "model": model, "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 30, "temperature": 0,
        "stream": stream,
    })
}

fn ask(node: &Node, model: &str) -> common::Answer {
    send(client(None).post(node.url("/v1/chat/completions")).json(&body(model, false))).expect("an answer")
}

#[test]
fn a_model_is_loaded_listed_and_unloaded_by_its_operator() {
    let place = Place::new();
    let node = start(&place, &section("tiny", &tiny(&place, "t"), "preload = false"));
    node.wait_ready();
    let shown = model(&place, &node, &["list"]);
    assert!(shown.stdout.contains("tiny") && shown.stdout.contains("unloaded"), "{shown:?}");
    let loaded = model(&place, &node, &["load", "tiny", "--json"]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    let value: Value = serde_json::from_str(&loaded.stdout).expect("JSON");
    assert_eq!((&value["id"], &value["state"], &value["serving"]), (&"tiny".into(), &"ready".into(), &1.into()));
    assert!(value["held_bytes"].as_u64().is_some_and(|held| held > 0), "{value}");
    assert_eq!(ask(&node, "tiny").status, 200);

    let other = tiny(&place, "other");
    let added = model(&place, &node, &["load", &other.display().to_string(), "--lanes", "2"]);
    assert_eq!((added.code, added.stdout.as_str()), (Some(0), "other is ready\n"), "{added:?}");
    assert_eq!(ask(&node, "other").status, 200);
    let gone = model(&place, &node, &["unload", "other"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(0), "other is unloaded\n"), "{gone:?}");
    assert_eq!(get(&node.url("/v1/models/other")).status, 404);

    assert_eq!(model(&place, &node, &["unload", "tiny"]).code, Some(0));
    assert_eq!(listed(&node, "tiny")["state"], "unloaded");
    assert_eq!(ask(&node, "tiny").status, 200, "it comes when it is asked for");
    assert_eq!(listed(&node, "tiny")["state"], "ready");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_cannot_be_done_is_told_with_the_remedy() {
    let place = Place::new();
    let (a, b) = (tiny(&place, "a"), tiny(&place, "b"));
    let sections =
        section("a", &a, "pinned = true") + &section("b", &b, "preload = false") + "[limits]\nmodel_memory_mib = 30\n";
    let node = start(&place, &sections);
    node.wait_ready();
    model(&place, &node, &["load", "b"])
        .assert_refused(1, &["`b` needs 26 MiB", "4 MiB of the 30 MiB", "limits.model_memory_mib"]);
    let refused = ask(&node, "b");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("overloaded")), "{refused:?}");
    model(&place, &node, &["unload", "a"]).assert_refused(1, &["`a` is pinned"]);
    model(&place, &node, &["load", "nowhere"]).assert_refused(1, &["`nowhere`", "does not exist"]);
    model(&place, &node, &["unload", "nowhere"]).assert_refused(1, &["no model `nowhere`", "a, b, scripted"]);
    model(&place, &node, &["load", "b", "--precision", "int3"]).assert_refused(1, &["`int3` is not a precision"]);
    assert_eq!(model(&place, &node, &["load"]).code, Some(2));
    let unreachable = end(place.parlance().args(["model", "load", "a", "--server", "http://127.0.0.1:1"]));
    unreachable.assert_refused(3, &["cannot reach"]);
    drop(node);

    let both = section("a", &a, "") + &section("b", &b, "") + "[limits]\nmodel_memory_mib = 30\n";
    let refused = end(&mut up(&place, place.parlance(), &both));
    refused.assert_refused(2, &["do not fit into 30.0 MiB", "`a` 2", "preload = false"]);
}

#[test]
fn a_model_whose_files_are_gone_is_reported_and_the_old_one_serves() {
    let place = Place::new();
    let directory = tiny(&place, "t");
    let node = start(&place, &section("tiny", &directory, ""));
    node.wait_ready();
    std::fs::remove_file(directory.join("model.safetensors")).expect("removed");
    model(&place, &node, &["load", "tiny", "--reload"])
        .assert_refused(1, &["`tiny` is not loaded", "model.safetensors"]);
    assert_eq!(listed(&node, "tiny")["state"], "failed");
    assert_eq!((ask(&node, "tiny").status, get(&node.url("/readyz")).status), (200, 200));
}

/// What came of the calls of one hammering.
#[derive(Debug, Default)]
struct Calls {
    answered: AtomicUsize,
    failed: AtomicUsize,
}

/// Calls the model from many clients, stateless and durable, streaming and not, while it is reloaded again and again.
fn hammer(place: &Place, node: &Node) -> (usize, usize) {
    let (calls, over) = (Arc::new(Calls::default()), Arc::new(AtomicBool::new(false)));
    let url = node.url("/v1/chat/completions");
    block_on(async {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (calls, over, url) = (calls.clone(), over.clone(), url.clone());
                tokio::spawn(async move {
                    let client = client(None);
                    while !over.load(Ordering::Relaxed) {
                        let request = client.post(&url).json(&body("tiny", caller % 2 == 0));
                        let request = match caller % 4 {
                            0 | 1 => request,
                            _ => request.header("X-Session-ID", format!("s{caller}")),
                        };
                        let answer = request.send().await.expect("an answer");
                        let ok = answer.status().is_success();
                        let text = answer.text().await.unwrap_or_default();
                        let whole =
                            text.contains("\"finish_reason\":\"") && (caller % 2 == 1 || text.contains("[DONE]"));
                        let outcome = if ok && whole { &calls.answered } else { &calls.failed };
                        outcome.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..RELOADS {
            let mut command = place.parlance();
            command.args(["model", "load", "tiny", "--reload", "--json", "--server", &node.url("")]);
            let reloaded = tokio::task::spawn_blocking(move || end(&mut command)).await.expect("it ends");
            assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        }
        over.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.await.expect("every call has an answer");
        }
    });
    (calls.answered.load(Ordering::Relaxed), calls.failed.load(Ordering::Relaxed))
}

#[test]
fn ten_reloads_under_load_drop_nothing() {
    let place = Place::new();
    let node = start(&place, &section("tiny", &tiny(&place, "t"), "replicas = 2\nlanes = 2"));
    node.wait_ready();
    let (answered, failed) = hammer(&place, &node);
    assert_eq!(failed, 0, "of {answered} and these");
    assert!(answered >= RELOADS * CALLERS, "hardly a load: {answered}");
    // What was replaced is gone with its memory.
    let begun = Instant::now();
    while listed(&node, "tiny")["draining"] != 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", listed(&node, "tiny"));
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = listed(&node, "tiny");
    assert_eq!((&shown["serving"], &shown["held_bytes"]), (&json!(2), &shown["bytes"]));
}

#[test]
fn a_reload_that_cuts_the_old_replicas_is_found_out() {
    let place = Place::new();
    let mut up = up(&place, planted(&place, "cut-replaced-models"), &section("tiny", &tiny(&place, "t"), "lanes = 2"));
    let node = Node::start(&place, &mut up);
    node.wait_ready();
    // What has shown nothing yet is answered by another replica, and a durable turn always is: so not every cut is seen.
    let is_seen = (0..HAMMERINGS).any(|_| hammer(&place, &node).1 > 0);
    assert!(is_seen, "the planted bug was not seen in {HAMMERINGS} times {RELOADS} reloads");
}

fn resident_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

/// The least that the process comes to within a few seconds: the allocator gives back after a second.
fn settled_bytes(node: &Node) -> u64 {
    let sample = |_| {
        std::thread::sleep(Duration::from_millis(250));
        resident_bytes(node)
    };
    (0..12).map(sample).min().expect("samples")
}

/// `make test` has fetched the model.
#[test]
fn an_unloaded_model_leaves_no_memory_behind() {
    let place = Place::new();
    let node = start(&place, &section("real", Path::new(MODEL), "preload = false\nlanes = 4\ncontext_tokens = 512"));
    node.wait_ready();
    let cycle = || {
        assert_eq!(ask(&node, "real").status, 200);
        let unloaded = model(&place, &node, &["unload", "real"]);
        assert_eq!(unloaded.code, Some(0), "{unloaded:?}");
    };
    let before = resident_bytes(&node);
    assert_eq!(ask(&node, "real").status, 200);
    assert!(resident_bytes(&node) > before + (100 << 20), "the weights are somewhere");
    (0..2).for_each(|_| cycle());
    let base = settled_bytes(&node);
    (0..CYCLES).for_each(|_| cycle());
    let left = settled_bytes(&node);
    assert!(left < base + GROWTH_BYTES, "{} MiB, then {} MiB", base >> 20, left >> 20);
}
