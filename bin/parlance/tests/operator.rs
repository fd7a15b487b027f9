//! What an operator of a cluster types: certificates, configuration, and the commands that ask a node, here against scripted answers.

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread::JoinHandle,
};

use common::{Ended, Place, end};
use serde_json::{Value, json};

/// Answers one request after another, each with a status and a body, and tells afterwards what it was asked.
struct Script {
    url: String,
    served: JoinHandle<Vec<String>>,
}

impl Script {
    fn of(answers: Vec<(u16, Value)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let served = std::thread::spawn(move || {
            answers.into_iter().map_while(|(status, body)| answer(&listener, status, &body.to_string())).collect()
        });
        Self { url, served }
    }

    fn run(self, place: &Place, words: &[&str]) -> (Ended, Vec<String>) {
        let ended = end(place.parlance().args(words).args(["--server", &self.url]));
        // Answers that nobody fetched are not waited for.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
        (ended, self.served.join().expect("the script is played"))
    }
}

/// Answers one request, and gives back its first line and its body; nothing if none comes.
fn answer(listener: &TcpListener, status: u16, body: &str) -> Option<String> {
    let (stream, _) = listener.accept().expect("a client");
    let mut reader = BufReader::new(&stream);
    let (mut first, mut length) = (String::new(), 0);
    if reader.read_line(&mut first).expect("a request") == 0 {
        return None;
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        if line.trim().is_empty() {
            break;
        }
        let header = line.to_ascii_lowercase();
        length = header.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().expect("a length"));
    }
    let mut sent = vec![0; length];
    reader.read_exact(&mut sent).expect("a body");
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(body.as_bytes())).expect("answered");
    let asked = first.trim().trim_end_matches(" HTTP/1.1");
    Some(format!("{asked} {}", String::from_utf8_lossy(&sent)).trim().to_owned())
}

fn node(name: &str, duty: &str, shards: u32) -> Value {
    json!({
        "name": name, "boot": "00ff", "zone": null, "weight": 1, "duty": duty, "standing": "alive",
        "address": "10.0.0.1:7946", "shards": shards, "self": name == "a", "linked": false,
    })
}

fn list(data: &[Value]) -> (u16, Value) {
    (200, json!({ "object": "list", "data": data }))
}

fn shard(number: u32, owner: Option<&str>, state: &str) -> Value {
    json!({ "shard": number, "owner": owner, "standby": "c", "warm": number == 0, "state": state })
}

#[test]
fn nodes_are_listed_as_a_table_and_as_they_came() {
    let place = Place::new();
    let answer = list(&[node("a", "serving", 21), node("b", "draining", 0)]);
    let (shown, asked) = Script::of(vec![answer.clone()]).run(&place, &["nodes", "list"]);
    assert_eq!((shown.code, asked), (Some(0), vec!["GET /admin/v1/nodes".to_owned()]), "{shown:?}");
    let rows: Vec<Vec<&str>> = shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NODE", "STANDING", "DUTY", "SHARDS", "ZONE", "WEIGHT", "ADDRESS", "BOOT"]);
    assert_eq!(rows[1], ["a", "alive", "serving", "21", "-", "1", "10.0.0.1:7946", "00ff", "answers", "this"]);
    assert_eq!(rows[2], ["b", "alive", "draining", "0", "-", "1", "10.0.0.1:7946", "00ff", "no", "link"]);
    let (shown, _) = Script::of(vec![answer.clone()]).run(&place, &["nodes", "list", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).expect("JSON"), answer.1);
}

#[test]
fn a_drain_is_begun_and_waited_for_on_demand() {
    let place = Place::new();
    let begun = || (202, json!({ "name": "b", "duty": "draining" }));
    let (ended, asked) = Script::of(vec![begun()]).run(&place, &["nodes", "drain", "b"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "b is draining\n"), "{ended:?}");
    assert_eq!(asked, ["POST /admin/v1/nodes/b/drain"]);

    let left = [2, 2, 1, 0].map(|shards| list(&[node("a", "serving", 5), node("b", "draining", shards)]));
    let script = Script::of([begun()].into_iter().chain(left).collect());
    let (ended, asked) = script.run(&place, &["nodes", "drain", "b", "--wait"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "b is drained: it owns no shard\n"), "{ended:?}");
    assert_eq!(ended.stderr, "b still owns 2 shards\nb still owns 1 shard\n");
    assert_eq!(asked[1..], ["GET /admin/v1/nodes"; 4]);

    let stuck = list(&[node("b", "draining", 3)]);
    let script = Script::of(vec![begun(), stuck]);
    let (ended, _) = script.run(&place, &["nodes", "drain", "b", "--wait", "--timeout-s", "0"]);
    ended.assert_refused(1, &["b still owns 3 shards after 0 s", "shards list"]);
    let (ended, _) = Script::of(vec![begun(), list(&[])]).run(&place, &["nodes", "drain", "b", "--wait"]);
    ended.assert_refused(1, &["knows no node `b` any more"]);
}

#[test]
fn a_node_that_drains_is_taken_back_and_a_refusal_is_told() {
    let place = Place::new();
    let script = Script::of(vec![(202, json!({ "name": "b", "duty": "serving" }))]);
    let (ended, asked) = script.run(&place, &["nodes", "undrain", "b"]);
    assert_eq!(
        (ended.stdout.as_str(), &asked[..]),
        ("b is serving\n", &["POST /admin/v1/nodes/b/undrain".to_owned()][..])
    );
    let unknown = json!({ "error": { "message": "there is no node `x`" } });
    let (ended, _) = Script::of(vec![(404, unknown)]).run(&place, &["nodes", "drain", "x", "--wait"]);
    ended.assert_refused(1, &["there is no node `x`", "Check the name"]);
    let nobody = end(place.parlance().args(["nodes", "list", "--server", "http://127.0.0.1:1"]));
    nobody.assert_refused(3, &["cannot reach", "parlance up"]);
}

#[test]
fn shards_are_listed_and_moved() {
    let place = Place::new();
    let answer = list(&[shard(0, Some("a"), "owned"), shard(1, None, "unowned")]);
    let (shown, asked) = Script::of(vec![answer]).run(&place, &["shards", "list"]);
    assert_eq!(asked, ["GET /admin/v1/shards"]);
    let rows: Vec<Vec<&str>> = shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SHARD", "OWNER", "STATE", "STANDBY"]);
    assert_eq!(
        (&rows[1][..], &rows[2][..]),
        (&["0", "a", "owned", "c", "(warm)"][..], &["1", "-", "unowned", "c"][..])
    );

    let begun = || (202, shard(7, Some("a"), "moving"));
    let (ended, asked) = Script::of(vec![begun()]).run(&place, &["shards", "move", "7", "--to", "b"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "shard 7 is to move to b\n"), "{ended:?}");
    assert_eq!(asked, [r#"POST /admin/v1/shards/7/move {"to":"b"}"#]);
    let steps = [(Some("a"), "moving"), (Some("b"), "moving"), (Some("b"), "owned")];
    let steps = steps.map(|(owner, state)| list(&[shard(6, Some("b"), "owned"), shard(7, owner, state)]));
    let script = Script::of([begun()].into_iter().chain(steps).collect());
    let (ended, _) = script.run(&place, &["shards", "move", "7", "--to", "b", "--wait"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "shard 7 is with b\n"), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:?}");
    let script = Script::of(vec![begun(), list(&[shard(7, Some("a"), "owned")])]);
    let (ended, _) = script.run(&place, &["shards", "move", "7", "--to", "b", "--wait", "--timeout-s", "0"]);
    ended.assert_refused(1, &["shard 7 is still owned, its owner a after 0 s"]);
}

#[test]
fn status_tells_of_the_cluster_and_of_what_the_node_depends_on() {
    let place = Place::new();
    let mut status = json!({
        "node": "a", "boot": "1", "version": "0", "ready": true, "reasons": [], "shards": { "owned": 1, "total": 2 },
        "sessions": { "live": 0, "parked": 0 }, "open_turns": 0, "stateless": 0, "models": [],
    });
    let (alone, _) = Script::of(vec![(200, status.clone())]).run(&place, &["status"]);
    assert!(alone.code == Some(0) && !alone.stdout.contains("cluster"), "{alone:?}");
    status["cluster"] = json!({ "id": "c", "alive": 3, "suspected": 1, "down": 0 });
    status["dependencies"] = json!([
        { "name": "kafka", "up": false, "reason": "no broker\nanswers" }, { "name": "records", "up": true, "reason": null },
    ]);
    let (shown, _) = Script::of(vec![(200, status)]).run(&place, &["status"]);
    for line in ["cluster     c: 3 nodes alive, 1 suspected", "kafka       down: no broker answers", "records     up"] {
        assert!(shown.stdout.lines().any(|shown| shown == line), "no {line:?} in {}", shown.stdout);
    }
}

#[test]
fn what_names_no_node_or_shard_is_wrong_usage() {
    let place = Place::new();
    for words in [
        &["nodes"][..],
        &["nodes", "drain"],
        &["nodes", "drain", "b", "--timeout-s", "5"],
        &["shards", "move", "7"],
        &["shards", "move", "x", "--to", "b"],
        &["nodes", "drain", "a/../b"],
        &["nodes", "undrain", ".."],
        &["shards", "move", "7", "--to", ""],
    ] {
        let ended = end(place.parlance().args(words));
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
    }
    for words in [&["nodes", "--help"][..], &["shards", "move", "--help"], &["cert", "node", "--help"]] {
        assert_eq!(end(place.parlance().args(words)).code, Some(0), "{words:?}");
    }
}

fn cert(place: &Place, words: &[&str]) -> Ended {
    end(place.parlance().arg("cert").args(words).current_dir(place.path()))
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("a file").permissions().mode() & 0o777
}

#[test]
fn an_authority_and_certificates_are_private_and_never_replaced_unasked() {
    let place = Place::new();
    let certs = place.path().join("cluster-certs");
    cert(&place, &["node", "--name", "a"]).assert_refused(2, &["ca.pem", "parlance cert cluster", "--ca-dir"]);
    let made = cert(&place, &["cluster", "--cluster", "c"]);
    assert!(made.code == Some(0) && made.stdout.contains("ca.key off the nodes"), "{made:?}");
    cert(&place, &["cluster", "--cluster", "c"]).assert_refused(1, &["ca.pem exists already", "--force"]);
    cert(&place, &["node", "--name", "a"]).assert_refused(2, &["do not sign for cluster parlance", "--cluster"]);
    cert(&place, &["node", "--cluster", "c", "--name", "ca"]).assert_refused(2, &["the authority's", "--name"]);
    let made = cert(&place, &["node", "--cluster", "c", "--name", "a", "--name", "b", "--json"]);
    let made: Value = serde_json::from_str(&made.stdout).expect("JSON");
    assert_eq!((&made["cluster"], &made["nodes"][1]["name"]), (&json!("c"), &json!("b")));
    for file in ["ca.pem", "ca.key", "a.pem", "a.key", "b.pem", "b.key"] {
        assert_eq!(mode(&certs.join(file)), 0o600, "{file}");
    }
    let before = std::fs::read(certs.join("b.key")).expect("a key");
    let half = ["node", "--cluster", "c", "--name", "d", "--name", "b"];
    cert(&place, &half).assert_refused(1, &["b.pem exists already", "--force"]);
    assert_eq!(std::fs::read(certs.join("b.key")).expect("a key"), before);
    assert!(!certs.join("d.pem").exists(), "all or none");
    let elsewhere = ["--dir", "elsewhere", "--ca-dir", "cluster-certs", "--days", "3"];
    let made = cert(&place, &[&half[..], &elsewhere].concat());
    assert!(made.code == Some(0) && place.path().join("elsewhere/d.key").exists(), "{made:?}");
    assert_eq!(cert(&place, &[&half[..], &["--force"]].concat()).code, Some(0));
    assert_ne!(std::fs::read(certs.join("b.key")).expect("a key"), before);
    for bad in [&["--name", "A"][..], &["--name", "a", "--cluster", "a.b"], &["--name", "a", "--days", "0"], &[]] {
        assert_eq!(cert(&place, &[&["node"], bad].concat()).code, Some(2), "{bad:?}");
    }
}

#[test]
fn a_node_whose_cluster_certificate_is_anothers_does_not_start() {
    let place = Place::new();
    assert_eq!(cert(&place, &["cluster"]).code, Some(0));
    assert_eq!(cert(&place, &["node", "--name", "a"]).code, Some(0));
    let config = |cert: &str| {
        place.file(
            "parlance.toml",
            format!(
                "[node]\nname = 'b'\n[cluster]\nca = 'cluster-certs/ca.pem'\ncert = '{cert}'\nkey = 'cluster-certs/a.key'\n\
                 [log]\nkind = 'kafka'\nbrokers = ['127.0.0.1:1']\n[records]\nkind = 'scylla'\ncontact_points = ['127.0.0.1:1']\n"
            ),
        )
    };
    let up = |cert: &str| end(place.up().arg("--config").arg(config(cert)).current_dir(place.path()));
    up("cluster-certs/a.pem").assert_refused(2, &["a.pem is not for b.parlance.parlance", "parlance cert node"]);
    up("nowhere.pem").assert_refused(2, &["nowhere.pem", "parlance cert node"]);
    assert!(!place.data().exists());
    let alone = end(place.up().args(["--node", "a", "--seeds", "b:7946", "--cluster-listen", "here"]));
    let told = alone.stderr;
    assert_eq!(alone.code, Some(2));
    for part in
        ["log.kind", "records.kind", "cluster.ca and cluster.cert and cluster.key must be set", "(--cluster-listen)"]
    {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
}
