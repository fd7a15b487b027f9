//! The whole face over a real node with the scripted model, in a temporary directory.

mod bad_input;
mod chat;
mod conversations;
mod embeddings;
mod formats;
mod logprobs;
mod operations;
mod responses;
mod sockets;
mod tools;
mod websocket;

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use parlance_actors_runtime::{Guards, Limits, LoadProgress, LocalLimiter, ModelMemory, ModelSpec, Node, NodeOptions};
use parlance_cluster_log::{LocalLog, LocalLogOptions};
use parlance_cluster_records::LocalRecords;
use parlance_inference_engine::{ModelReplica, ScriptedOptions, ScriptedReplica};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::{IngressOptions, app};

/// Answers at once.
pub(super) const FAST: &str = "scripted:ttft_ms=0,token_ms=0,tokens=8,seed=0";
/// Answers so slowly that a test can act meanwhile.
pub(super) const SLOW: &str = "scripted:ttft_ms=0,token_ms=50,tokens=400,seed=0";

/// The scripted model.
pub(super) fn scripted(script: &str) -> ModelSpec {
    let script = ScriptedOptions::parse(script).expect("a valid script");
    let load =
        move |_: &(dyn Fn(LoadProgress) + Sync)| Ok(ModelReplica::Chat(Arc::new(ScriptedReplica::new(script.clone()))));
    ModelSpec::new("scripted", Arc::new(load))
}

pub(super) async fn node(data: &Path, models: Vec<ModelSpec>) -> Node {
    let all = models.len();
    let log = LocalLogOptions { shards: 2, ..LocalLogOptions::new(data.join("log")) };
    let options = NodeOptions {
        node: "test".into(),
        log: Arc::new(LocalLog::open(log).expect("the log opens")),
        records: Arc::new(LocalRecords::open(data.join("records")).expect("the records open")),
        models,
        memory: ModelMemory::default(),
        sources: None,
        guards: Guards::default(),
        limiter: Arc::new(LocalLimiter::new(NonZeroUsize::MIN)),
        limits: Limits::default(),
        cluster: None,
        events: None,
    };
    let node = Node::start(options).await.expect("the node starts");
    for _ in 0..2_000 {
        let loaded = node.models().list().iter().filter(|model| model.replicas > 0).count();
        if node.readiness().ready && loaded == all {
            return node;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not ready: {:?}", node.readiness().reasons);
}

/// A node with its face, without a socket.
pub(super) struct Face {
    pub(super) node: Node,
    router: Router,
    _close: watch::Sender<bool>,
    _data: TempDir,
}

/// What was answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Face {
    pub(super) async fn new(script: &str) -> Self {
        Self::with(script, IngressOptions::local([7; 32])).await
    }

    pub(super) async fn with(script: &str, options: IngressOptions) -> Self {
        Self::serving(vec![scripted(script)], options).await
    }

    pub(super) async fn serving(models: Vec<ModelSpec>, options: IngressOptions) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let node = node(data.path(), models).await;
        let (close, closing) = watch::channel(false);
        let listen = "127.0.0.1:8080".parse().expect("an address");
        let app = app::App::new(&options, node.clone(), listen, closing).expect("good options");
        Self { node, router: app::router(app), _close: close, _data: data }
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("the router is infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("the body is whole").to_bytes();
        let body = String::from_utf8(bytes.to_vec()).expect("bodies are text");
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.send(request(Method::POST, path, headers, body)).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, &[], Body::empty())).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, &[], Body::empty())).await
    }
}

pub(super) fn request(method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut builder = Request::builder().method(method.clone()).uri(path);
    if method == Method::POST && !headers.iter().any(|(name, _)| *name == "content-type") {
        builder = builder.header("content-type", "application/json");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).expect("a good request")
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The values of an event stream; `[DONE]` is the string of that name.
    pub(super) fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.into()))).collect()
    }

    /// Status, code and param of an error.
    pub(super) fn error(&self) -> (u16, String, Option<String>) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.body);
        assert!(error["type"].is_string(), "{}", self.body);
        let code = error["code"].as_str().unwrap_or_default().to_owned();
        (self.status.as_u16(), code, error["param"].as_str().map(str::to_owned))
    }
}

/// What the scripted model's answer to `text` begins with.
pub(super) fn mark(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
