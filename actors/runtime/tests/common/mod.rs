//! A node over the embedded log and records in a temporary directory, answered by the scripted replica.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part of this module")]

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use parlance_actors_runtime::{
    AcceptedTurn, Guards, Idempotency, Limits, LoadProgress, LocalLimiter, ModelMemory, ModelSpec, Node, NodeOptions,
    TurnEvent, TurnOutcome, TurnRequest, TurnStream,
};
use parlance_cluster_log::{LocalLog, LocalLogOptions, LogError, ShardLog};
use parlance_cluster_protocol::{
    FinishReason, GenerationOptions, History, Item, Origin, Replied, Role, SessionKey, TurnId,
};
use parlance_cluster_records::{LocalRecords, RecordStore, RecordsError};
use parlance_inference_engine::{ModelReplica, ScriptedOptions, ScriptedReplica};

pub(crate) fn log(data: &Path, shards: u16) -> Arc<dyn ShardLog> {
    let options = LocalLogOptions { shards, ..LocalLogOptions::new(data.join("log")) };
    // The actors of a node that was just stopped may hold the log for another moment.
    for _ in 0..200 {
        match LocalLog::open(options.clone()) {
            Err(LogError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            opened => return Arc::new(opened.expect("the log opens")),
        }
    }
    panic!("the log of the stopped node is still in use");
}

pub(crate) fn records(data: &Path) -> Arc<dyn RecordStore> {
    for _ in 0..200 {
        match LocalRecords::open(data.join("records")) {
            Err(RecordsError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            opened => return Arc::new(opened.expect("the records open")),
        }
    }
    panic!("the records of the stopped node are still in use");
}

/// A small node, so that each of its shards has something to do.
pub(crate) fn options(data: &Path, script: &str) -> NodeOptions {
    options_with_shards(data, script, 4)
}

pub(crate) fn options_with_shards(data: &Path, script: &str, shards: u16) -> NodeOptions {
    let script = ScriptedOptions::parse(script).expect("the script is valid");
    let load =
        move |_: &(dyn Fn(LoadProgress) + Sync)| Ok(ModelReplica::Chat(Arc::new(ScriptedReplica::new(script.clone()))));
    NodeOptions {
        node: "test".into(),
        log: log(data, shards),
        records: records(data),
        models: vec![ModelSpec::new("scripted", Arc::new(load))],
        memory: ModelMemory::default(),
        sources: None,
        guards: Guards::default(),
        limiter: Arc::new(LocalLimiter::new(NonZeroUsize::MIN)),
        limits: Limits::default(),
        cluster: None,
        events: None,
    }
}

pub(crate) async fn start(options: NodeOptions) -> Node {
    let node = Node::start(options).await.expect("the node starts");
    for _ in 0..2_000 {
        if node.readiness().ready {
            return node;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not ready: {:?}", node.readiness().reasons);
}

pub(crate) async fn stop(node: Node) {
    node.drain(Duration::from_secs(5)).await;
}

pub(crate) fn session(chat: &str) -> SessionKey {
    SessionKey::api("default", chat)
}

pub(crate) fn item(role: Role, text: &str) -> Item {
    Item { role, text: text.into() }
}

pub(crate) fn request(text: &str) -> TurnRequest {
    TurnRequest {
        turn: TurnId(rand::random()),
        idempotency: None,
        input: vec![item(Role::User, text)],
        history: History::Session,
        options: GenerationOptions::default(),
        seed: None,
        origin: Origin::ChatCompletion,
        user: None,
        create: true,
        behind: None,
        instructions: None,
    }
}

pub(crate) fn keyed(text: &str, key: &str, body: u8) -> TurnRequest {
    TurnRequest { idempotency: Some(Idempotency { key: key.into(), body_hash: [body; 32] }), ..request(text) }
}

/// What the scripted replica's answer to `text` begins with.
pub(crate) fn mark(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a stream to its end; the text of its deltas, and the end.
pub(crate) async fn finish(mut stream: TurnStream) -> (String, TurnOutcome) {
    let mut text = String::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("the turn ends in time") {
            Some(TurnEvent::Delta { text: more, .. }) => text.push_str(&more),
            Some(TurnEvent::Ended(outcome)) => return (text, outcome),
            other => panic!("after {text:?}: {other:?}"),
        }
    }
}

/// The reply of an accepted turn.
pub(crate) async fn reply(accepted: AcceptedTurn) -> Arc<Replied> {
    match finish(accepted.stream).await {
        (text, TurnOutcome::Replied(replied)) => {
            assert_eq!(text, replied.text, "the deltas are the reply");
            replied
        }
        (_, TurnOutcome::Failed(failed)) => panic!("failed: {failed:?}"),
    }
}

/// Says `text` in the session and returns the complete reply.
pub(crate) async fn say(node: &Node, session: &SessionKey, text: &str) -> String {
    let accepted = node.sessions().submit(session, request(text)).await.expect("the turn is accepted");
    let replied = reply(accepted).await;
    assert_eq!(replied.finish, FinishReason::Stop);
    replied.text.clone()
}
