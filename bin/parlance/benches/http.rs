//! Durable turns per second over HTTP, from a client that shares the machine with the node: a chat completion of a session, answered by
//! the scripted model; closed loop.
//!
//! `cargo bench -p parlance --bench http`; `TURNS_CALLERS`, `TURNS_PER_SESSION` and `TURNS_SECONDS` change the run.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};

use common::{Node, Place, SCRIPTED};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const BODY: &str = r#"{"model":"scripted","messages":[{"role":"user","content":"What is the time?"}]}"#;

fn main() {
    let setting = |name, default| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (callers, seconds) = (setting("TURNS_CALLERS", 64), setting("TURNS_SECONDS", 5));
    let turns = setting("TURNS_PER_SESSION", 20);
    let place = Place::new();
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--model", SCRIPTED, "--data"]).arg(place.data());
    let node = Node::start(&place, &mut up);
    node.wait_ready();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let began = Instant::now();
    let mut latencies = runtime.block_on(load(node.address(), callers, turns, began + Duration::from_secs(seconds)));
    let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |thousandth: usize| latencies[(latencies.len() - 1) * thousandth / 1_000].as_secs_f64() * 1e3;
    let (p50, p99, p999) = (at(500), at(990), at(999));
    println!(
        "durable turns over HTTP, {callers} callers, {turns} turns a session: {rate:.0}/s, \
         p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms"
    );
}

async fn load(address: SocketAddr, callers: u64, turns: u64, until: Instant) -> Vec<Duration> {
    let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(address, caller, turns, until))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("the caller ran"));
    }
    latencies
}

async fn call(address: SocketAddr, caller: u64, turns: u64, until: Instant) -> Vec<Duration> {
    let mut line = TcpStream::connect(address).await.expect("the node listens");
    line.set_nodelay(true).expect("a socket");
    let mut latencies = Vec::new();
    let mut buffer = Vec::new();
    while Instant::now() < until {
        let conversation = latencies.len() as u64 / turns;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             x-session-id: caller-{caller}-{conversation}\r\ncontent-length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let began = Instant::now();
        line.write_all(request.as_bytes()).await.expect("the node reads");
        answer(&mut line, &mut buffer).await;
        latencies.push(began.elapsed());
    }
    latencies
}

/// Reads one whole answer, which must be a success.
async fn answer(line: &mut TcpStream, buffer: &mut Vec<u8>) {
    buffer.clear();
    let (head, length) = loop {
        assert!(line.read_buf(buffer).await.expect("the node answers") > 0, "the node hung up");
        if let Some(head) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = std::str::from_utf8(&buffer[..head]).expect("headers are ASCII");
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            break (head + 4, length.expect("an answer of known length").parse::<usize>().expect("a number"));
        }
    };
    while buffer.len() < head + length {
        assert!(line.read_buf(buffer).await.expect("the node answers") > 0, "the node hung up");
    }
    assert_eq!(buffer.len(), head + length, "one answer to one request");
}
