//! `parlance up` as its operator meets it: the first line, what it refuses, TLS and keys, signals, logs.

mod common;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use common::{Node, Place, SCRIPTED, block_on, client, end, get, send};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/smollm2-135m-instruct.gguf");

const KEY: &str = "a-key-of-the-tests-0123456789";

#[test]
fn the_first_line_has_the_promised_form_and_a_boot_of_its_own() {
    let place = Place::new();
    let mut boots = Vec::new();
    for _ in 0..2 {
        let node = Node::start(&place, place.up().args(["--node", "one"]));
        let line = node.listening.clone();
        let keys: Vec<&String> = line.as_object().expect("an object").keys().collect();
        assert_eq!(keys.len(), 5, "{line}");
        assert_eq!(
            (&line["event"], &line["cluster"], &line["node"]),
            (&json!("listening"), &Value::Null, &json!("one"))
        );
        assert_ne!(node.address().port(), 0);
        assert_eq!(get(&node.url("/healthz")).status, 200);
        boots.push(line["boot"].as_str().expect("a boot").to_owned());
        assert_eq!(node.terminate(), Some(0));
    }
    assert_ne!(boots[0], boots[1]);
}

#[test]
fn a_node_becomes_ready_and_answers() {
    let place = Place::new();
    let node = place.start();
    node.wait_ready();
    let answer = chat(&node, "hello");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant", "{answer}");
    let metrics = get(&node.url("/metrics")).body;
    assert!(metrics.contains("parlance_http_request_duration_seconds_bucket"), "histograms, not summaries:\n{metrics}");
    assert!(!metrics.contains("quantile="), "{metrics}");
}

fn chat(node: &Node, text: &str) -> Value {
    let body = json!({ "messages": [{ "role": "user", "content": text }] });
    let answer = send(client(None).post(node.url("/v1/chat/completions")).json(&body)).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn a_port_in_use_is_told_and_no_data_is_made() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let refused =
        end(place.parlance().args(["up", "--listen", &address, "--model", SCRIPTED, "--data"]).arg(place.data()));
    refused.assert_refused(1, &[&address, "in use", "--listen"]);
    assert!(refused.stdout.is_empty() && !place.data().exists());
}

#[test]
fn a_data_directory_in_use_is_told_and_its_node_goes_on() {
    let place = Place::new();
    let node = place.start();
    end(&mut place.up()).assert_refused(1, &["is in use by another process", "--data"]);
    node.wait_ready();
    chat(&node, "still there?");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_told() {
    let place = Place::new();
    let file = place.file("file", "");
    let up = |data: &Path| {
        end(place.parlance().args(["up", "--listen", "127.0.0.1:0", "--model", SCRIPTED, "--data"]).arg(data))
    };
    up(&file.join("data")).assert_refused(1, &["cannot use the data directory", "--data"]);
    up(&file).assert_refused(1, &["--data"]);
    // Not even root can write here.
    up(Path::new("/proc/parlance")).assert_refused(1, &["cannot use the data directory", "--data"]);
}

#[test]
fn models_that_cannot_be_served_are_told_before_anything_is_started() {
    let place = Place::new();
    let up = |model: &str| {
        end(place.parlance().args(["up", "--listen", "127.0.0.1:0", "--model", model, "--data"]).arg(place.data()))
    };
    up("default").assert_refused(2, &["does not exist", "parlance model fetch"]);
    up("other").assert_refused(2, &["does not exist", "parlance model list"]);
    up("/nowhere/model.gguf").assert_refused(2, &["/nowhere/model.gguf does not exist"]);
    up("scripted:tokens=many").assert_refused(2, &["tokens"]);
    let bad = place.file("bad.gguf", "not a model at all");
    up(&bad.display().to_string()).assert_refused(2, &["is not a GGUF file"]);
    let hostile = [&b"GGUF"[..], &3u32.to_le_bytes(), &u64::MAX.to_le_bytes(), &u64::MAX.to_le_bytes()].concat();
    let hostile = place.file("hostile.gguf", hostile);
    up(&hostile.display().to_string()).assert_refused(2, &["hostile.gguf"]);
    assert!(!place.data().exists());
}

/// `make test` has fetched the model.
#[test]
fn a_model_that_was_cut_short_is_told_with_the_place() {
    let place = Place::new();
    let whole = std::fs::read(MODEL).expect("run `make test`, which fetches the model");
    for length in [100, 1_000_000, whole.len() - 1] {
        let cut = place.file("cut.gguf", &whole[..length]);
        let mut up = place.parlance();
        up.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(place.data()).arg("--model").arg(&cut);
        end(&mut up).assert_refused(2, &["cut.gguf is truncated", "fetch the file again"]);
    }
}

#[test]
fn other_machines_are_served_only_with_keys_and_tls_or_on_demand() {
    let place = Place::new();
    let keys = place.file("keys", KEY);
    let open = |more: &[&str]| {
        let mut up = place.parlance();
        up.args(["up", "--listen", "0.0.0.0:0", "--model", SCRIPTED, "--data"]).arg(place.data()).args(more);
        up
    };
    end(&mut open(&[])).assert_refused(2, &["without API keys and TLS", "--api-key-file", "--insecure"]);
    end(open(&["--api-key-file"]).arg(&keys)).assert_refused(2, &["without TLS"]);
    let node = Node::start(&place, &mut open(&["--insecure"]));
    assert_eq!(get(&format!("http://127.0.0.1:{}/healthz", node.address().port())).status, 200);
}

/// Makes a certificate and returns its directory.
fn dev_certificate(place: &Place) -> PathBuf {
    let dir = place.path().join("certs");
    assert_eq!(end(place.parlance().args(["cert", "dev", "--dir"]).arg(&dir)).code, Some(0));
    dir
}

#[test]
fn keys_and_tls_let_in_whoever_has_both() {
    let place = Place::new();
    let certs = dev_certificate(&place);
    let keys = place.file("keys", format!("# ours\n{KEY}\n"));
    let mut up = place.parlance();
    up.args(["up", "--listen", "0.0.0.0:0", "--model", SCRIPTED, "--data"]).arg(place.data());
    up.arg("--api-key-file")
        .arg(&keys)
        .arg("--tls-cert")
        .arg(certs.join("cert.pem"))
        .arg("--tls-key")
        .arg(certs.join("key.pem"));
    let node = Node::start(&place, &mut up);
    let server = format!("https://localhost:{}", node.address().port());
    let url = format!("{server}/v1/models");
    let ca = certs.join("ca.pem");
    assert!(send(client(None).get(&url)).is_err(), "an authority that nobody trusts");
    assert_eq!(send(client(Some(&ca)).get(&url)).expect("a handshake").status, 401);
    assert_eq!(send(client(Some(&ca)).get(&url).bearer_auth(KEY)).expect("a handshake").status, 200);
    let by_address = url.replace("localhost", "127.0.0.1");
    assert_eq!(send(client(Some(&ca)).get(&by_address).bearer_auth(KEY)).expect("a handshake").status, 200);

    let status = |words: &[&str]| end(place.parlance().args(["status", "--server", &server]).args(words));
    let (ca, keys) = (ca.display().to_string(), keys.display().to_string());
    let shown = status(&["--json", "--ca-cert", &ca, "--api-key-file", &keys]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    status(&["--ca-cert", &ca]).assert_refused(1, &["--api-key-file"]);
    status(&["--api-key-file", &keys]).assert_refused(3, &["--ca-cert"]);
    assert!(!node.log().contains(KEY), "a key in the log:\n{}", node.log());
}

#[test]
fn certificates_and_keys_that_cannot_be_used_are_told() {
    let place = Place::new();
    let certs = dev_certificate(&place);
    let (cert, key, ca) = (certs.join("cert.pem"), certs.join("key.pem"), certs.join("ca.pem"));
    let garbage = place.file("garbage", "no PEM");
    let up = |cert: &Path, key: &Path| end(place.up().arg("--tls-cert").arg(cert).arg("--tls-key").arg(key));
    up(Path::new("/nowhere.pem"), &key).assert_refused(2, &["/nowhere.pem", "parlance cert dev"]);
    up(&garbage, &key).assert_refused(2, &["garbage", "no certificate"]);
    up(&cert, &garbage).assert_refused(2, &["garbage", "parlance cert dev"]);
    up(&ca, &key).assert_refused(2, &["ca.pem", "key.pem", "cannot be used together"]);
    end(place.up().arg("--tls-cert").arg(&cert)).assert_refused(2, &["tls.key (--tls-key)"]);

    let keys = |path: &Path| end(place.up().arg("--api-key-file").arg(path));
    keys(Path::new("/nowhere")).assert_refused(2, &["/nowhere", "openssl rand"]);
    keys(&place.file("short", "too-short\n")).assert_refused(2, &["line 1"]);
    assert!(!place.data().exists());
}

/// A model whose answers take a second.
const SLOW: &str = "scripted:ttft_ms=10,token_ms=50,tokens=20";

fn start_slow(place: &Place) -> Node {
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--model", SLOW, "--data"]).arg(place.data());
    let node = Node::start(place, &mut up);
    node.wait_ready();
    node
}

#[test]
fn a_signal_drains_and_the_running_answer_is_finished() {
    let place = Place::new();
    for signal in ["TERM", "INT"] {
        let mut node = start_slow(&place);
        let body = json!({ "messages": [{ "role": "user", "content": "count" }], "stream": true });
        let request = client(None).post(node.url("/v1/chat/completions")).header("X-Session-ID", signal).json(&body);
        let streamed = block_on(async {
            let mut response = request.send().await.expect("accepted");
            assert!(response.headers().contains_key("x-turn-id"));
            node.signal(signal);
            let mut text = String::new();
            while let Some(chunk) = response.chunk().await.expect("the stream goes on") {
                text.push_str(&String::from_utf8_lossy(&chunk));
            }
            text
        });
        assert!(streamed.trim_end().ends_with("data: [DONE]"), "{streamed}");
        assert_eq!(node.ended(), Some(0), "{}", node.log());
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--model", "scripted:token_ms=10000", "--data"]).arg(place.data());
    let mut node = Node::start(&place, &mut up);
    node.wait_ready();
    let body = json!({ "messages": [{ "role": "user", "content": "count" }], "stream": true });
    let request = client(None).post(node.url("/v1/chat/completions")).header("X-Session-ID", "s").json(&body);
    let code = block_on(async {
        let _running = request.send().await.expect("accepted");
        node.signal("TERM");
        // The first one is seen before the second is sent: two at once are one to the kernel.
        while !node.log().contains("draining") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.signal("TERM");
        node.ended()
    });
    assert_eq!(code, Some(1));
}

#[test]
fn the_log_is_json_and_has_no_word_of_what_was_said() {
    let place = Place::new();
    let mut up = place.up();
    let node = Node::start(&place, up.args(["--log-level", "debug"]));
    node.wait_ready();
    let answer = chat(&node, "a-secret-word-of-the-user");
    let said = answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert!(!said.is_empty());
    let log = {
        node.signal("TERM");
        let mut node = node;
        assert_eq!(node.ended(), Some(0));
        node.log()
    };
    assert!(log.lines().count() > 2, "{log}");
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
    }
    assert!(!log.contains("a-secret-word-of-the-user") && !log.contains(&said), "{log}");
    end(place.up().args(["--log-level", "very=loud=indeed"])).assert_refused(2, &["--log-level"]);
}
