//! A stand-in for a node: it answers as one, keeps what is said in a file with the others, and talks to them and to the stores a byte at a time.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use crate::store::{Store, Turn};

/// Where the file is that the nodes share.
pub(crate) const STORE: &str = "TEST_STORE";
/// What is wrong with the nodes: `no-dedupe`, `ack-before-commit`, `dies`.
pub(crate) const BUG: &str = "TEST_BUG";
/// From the acknowledgement to the reply.
const THINKING: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_millis(20);

struct Node {
    name: String,
    bug: String,
    store: Store,
    dedupe_hits: AtomicU64,
}

type Shared = State<Arc<Node>>;

pub(crate) fn run() {
    let config = std::env::args().next_back().expect("the configuration comes last");
    let config: toml::Table = std::fs::read_to_string(config).expect("a file").parse().expect("TOML");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(serve(&config));
}

fn texts(config: &toml::Table, section: &str, key: &str) -> Vec<String> {
    let value = config.get(section).and_then(|section| section.get(key));
    let list = value.and_then(|value| value.as_array()).into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

async fn serve(config: &toml::Table) {
    let text = |section: &str, key: &str| config[section][key].as_str().expect("text").to_owned();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let http = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let cluster = TcpListener::bind(text("cluster", "listen")).await.expect("its port");
    let reached = [("cluster", "seeds"), ("log", "brokers"), ("records", "contact_points")];
    for address in reached.iter().flat_map(|(section, key)| texts(config, section, key)) {
        tokio::spawn(talk_to(address));
    }
    tokio::spawn(echo(cluster));
    let address = http.local_addr().expect("bound");
    let name = text("node", "name");
    let first = json!({ "event": "listening", "http": address, "node": name, "boot": std::process::id().to_string() });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{first}").and_then(|()| stdout.flush()).expect("somebody reads it");
    let store = Store(PathBuf::from(variable(STORE)));
    let node = Arc::new(Node { name, bug: variable(BUG), store, dedupe_hits: AtomicU64::new(0) });
    let router = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/metrics", get(metrics))
        .route("/admin/v1/shards", get(shards))
        .route("/v1/chat/completions", post(complete))
        .route("/v1/responses/{id}", get(response))
        .route("/v1/conversations/{id}/items", get(items))
        .with_state(node);
    let mut term = signal(SignalKind::terminate()).expect("a signal");
    tokio::select! {
        served = async { axum::serve(http, router).await } => served.expect("it serves"),
        _ = term.recv() => {}
    }
}

/// Says a byte every moment and hears it back.
async fn talk_to(address: String) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            while stream.write_all(b"x").await.is_ok() {
                if !matches!(timeout(Duration::from_secs(1), stream.read(&mut [0; 1])).await, Ok(Ok(1))) {
                    break;
                }
                sleep(HEARTBEAT).await;
            }
        }
        sleep(HEARTBEAT).await;
    }
}

pub(crate) async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

async fn metrics(State(node): Shared) -> String {
    format!("parlance_dedupe_hits_total {}\n", node.dedupe_hits.load(Ordering::Relaxed))
}

async fn shards(State(node): Shared) -> Json<Value> {
    Json(json!({ "data": [{ "shard": 0, "owner": node.name, "state": "open" }] }))
}

async fn complete(State(node): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if node.bug == "dies" {
        std::process::exit(1);
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let message = body["messages"][0]["content"].as_str().expect("a message");
    let turn = Turn::new(header("x-session-id").expect("a session"), message, header("idempotency-key"));
    let is_stream = body["stream"] == true;
    // The bug: it is told that it is accepted before it is.
    let is_early = node.bug == "ack-before-commit";
    let turn = if is_early { turn } else { accept(&node, turn) };
    let id = turn.turn.clone();
    let answer = async move {
        sleep(THINKING).await;
        let turn = if is_early { accept(&node, turn) } else { turn };
        node.store.complete(|other| other.turn == turn.turn);
        let text = turn.reply();
        let chunk = json!({ "choices": [{ "delta": { "content": text } }] });
        let whole = json!({ "choices": [{ "message": { "content": text } }] });
        if is_stream { format!("data: {chunk}\n\ndata: [DONE]\n\n") } else { whole.to_string() }
    };
    let body = futures_util::stream::once(answer).map(Ok::<_, std::io::Error>);
    ([("x-turn-id", id)], Body::from_stream(body)).into_response()
}

fn accept(node: &Node, turn: Turn) -> Turn {
    let (turn, is_repeated) = node.store.accept(turn, node.bug != "no-dedupe");
    node.dedupe_hits.fetch_add(is_repeated.into(), Ordering::Relaxed);
    turn
}

/// Whoever is asked after a turn answers it, should its node have died.
async fn response(State(node): Shared, Path(id): Path<String>) -> Json<Value> {
    let turns = node.store.complete(|turn| id.strip_prefix("resp_") == Some(&*turn.turn));
    let status = if turns.is_empty() { "unknown" } else { "completed" };
    let output: Vec<Value> = turns.iter().map(|turn| json!({ "content": [{ "text": turn.reply() }] })).collect();
    Json(json!({ "status": status, "output": output }))
}

async fn items(State(node): Shared, Path(session): Path<String>) -> Json<Value> {
    let turns = node.store.complete(|turn| turn.session == session);
    let item = |role: &str, text: String, turn: &Turn| json!({ "role": role, "content": [{ "text": text }], "response_id": format!("resp_{}", turn.turn) });
    let pair = |turn: &Turn| [item("user", turn.message.clone(), turn), item("assistant", turn.reply(), turn)];
    let data: Vec<Value> = turns.iter().flat_map(pair).collect();
    Json(json!({ "data": data, "has_more": false }))
}
