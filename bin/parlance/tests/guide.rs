//! The operator's guide does what it says: its commands are run as they stand, on real servers.

mod common;

use std::{
    net::TcpStream,
    process::{Command, Stdio},
};

use common::Place;

/// Where `make services` has them, and where the guide has them.
const SERVERS: [(&str, &str, &str); 2] =
    [("Kafka", "127.0.0.1:19092", "127.0.0.1:9092"), ("Cassandra", "127.0.0.1:19042", "127.0.0.1:9042")];
const GUIDE: &str = include_str!("../../../docs/cluster.md");

/// The commands below a heading.
fn commands(heading: &str) -> String {
    let section = GUIDE.split_once(&format!("## {heading}\n")).expect("the heading is there").1;
    let section = section.split("\n## ").next().unwrap_or(section);
    let blocks = section.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block).collect()
}

#[test]
fn a_walk_through_a_cluster() {
    let mut script = commands("A walk through");
    for (name, real, written) in SERVERS {
        assert!(TcpStream::connect(real).is_ok(), "{name} does not answer at {real}: make services");
        assert!(script.contains(written), "the guide names {written}");
        script = script.replace(written, real);
    }
    let place = Place::new();
    let fresh: u64 = rand::random();
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_parlance")).parent().expect("a directory");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    // The nodes are the shell's: they end with it.
    let ended = Command::new("timeout")
        .args(["--kill-after=5", "150", "bash", "-c"])
        .arg(format!("set -euo pipefail; trap 'kill -9 $(jobs -p) 2> /dev/null || true' EXIT\n{script}"))
        .current_dir(place.path())
        .env("PATH", path)
        .env("HOME", place.path())
        .env("PARLANCE_LOG__TOPIC_PREFIX", format!("guide-{fresh:x}"))
        .env("PARLANCE_LOG__SHARDS", "8")
        .env("PARLANCE_RECORDS__KEYSPACE", format!("guide_{fresh:x}"))
        .stdin(Stdio::null())
        .output()
        .expect("bash and timeout are there");
    let (said, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{:?}\n{said}\n{errors}", ended.status);
    let at = |text: &str| said.rfind(text).unwrap_or_else(|| panic!("no {text:?} in {said}\n{errors}"));
    let listed = &said[at("NODE ")..];
    let row = |node| listed.lines().find(|line| line.split_whitespace().next() == Some(node));
    for node in ["a", "d", "e"] {
        assert!(row(node).is_some_and(|row| row.contains("alive")), "{node} is not alive: {listed}");
    }
    // The last node never met the one that had left; others tell of it for a while.
    assert!(row("b").is_none_or(|row| row.contains("left")), "b has not left: {listed}");
    assert!(!listed.contains("unowned"), "{listed}");
    // The last answer: everything that was said, once and in order.
    let order: Vec<usize> = ["first", "second", "third", "fourth", "fifth"]
        .map(|text| listed.find(&format!("\"{text}\"")).unwrap_or_else(|| panic!("no {text} in {listed}")))
        .to_vec();
    assert!(order.is_sorted(), "{listed}");
}
