//! Turns and a model without room: refused before they are accepted, and never after.

mod common;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::*;
use parlance_actors_runtime::{Limit, Limits, LoadProgress, ModelSpec, Node, NodeOptions, Refusal, StatelessRequest};
use parlance_cluster_protocol::{GenerationOptions, Role, SessionKey, TurnId};
use parlance_inference_engine::{
    CancelHandle, ChatMessage, EngineError, EventSink, GenerateRequest, Grammar, Lifeline, ModelReplica,
    PreparedPrompt, PromptBudget, Replica, ReplicaInfo, ReplicaLoad, ScriptedOptions, ScriptedReplica,
};

/// The scripted replica, with a queue that is as full as the test says.
struct Busy {
    replica: ScriptedReplica,
    refuses: AtomicBool,
    /// Submissions that are refused before one is taken.
    refusals: AtomicUsize,
}

const FULL: EngineError = EngineError::QueueFull { retry_after: Duration::from_millis(30) };

impl Replica for Busy {
    fn info(&self) -> &ReplicaInfo {
        self.replica.info()
    }

    fn prepare(&self, messages: &[ChatMessage<'_>], budget: PromptBudget) -> Result<PreparedPrompt, EngineError> {
        self.replica.prepare(messages, budget)
    }

    fn compile(&self, schema: &str) -> Result<Grammar, EngineError> {
        self.replica.compile(schema)
    }

    fn submit(&self, request: GenerateRequest, sink: Box<dyn EventSink>) -> Result<CancelHandle, EngineError> {
        assert!(request.promised, "an accepted turn is promised its answer");
        let left = self.refusals.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { Err(FULL) } else { self.replica.submit(request, sink) }
    }

    fn admits(&self, tenant: &str, prompt_tokens: u32) -> Result<(), EngineError> {
        assert_eq!((tenant, prompt_tokens), ("default", 3), "the turn's own words");
        if self.refuses.load(SeqCst) { Err(FULL) } else { Ok(()) }
    }

    fn lifeline(&self) -> Lifeline {
        self.replica.lifeline()
    }

    fn load(&self) -> ReplicaLoad {
        self.replica.load()
    }
}

async fn node(data: &std::path::Path, refusals: usize) -> (Node, Arc<Busy>) {
    let replica = ScriptedReplica::new(ScriptedOptions::parse("scripted:tokens=4").expect("valid"));
    let (refuses, refusals) = (AtomicBool::new(false), AtomicUsize::new(refusals));
    let busy = Arc::new(Busy { replica, refuses, refusals });
    let served = busy.clone();
    let load = move |_: &(dyn Fn(LoadProgress) + Sync)| Ok(ModelReplica::Chat(served.clone()));
    let models = vec![ModelSpec::new("scripted", Arc::new(load))];
    (start(NodeOptions { models, ..options(data, "scripted") }).await, busy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_without_room_is_refused_and_leaves_no_trace() {
    let data = tempfile::tempdir().expect("a directory");
    let (node, busy) = node(data.path(), 0).await;
    let key = session("crowded");
    let first = node.sessions().submit(&key, keyed("say it once", "key", 1)).await.expect("accepted");
    let (turn, text) = (first.turn, reply(first).await.text.clone());
    busy.refuses.store(true, SeqCst);
    let refused = node.sessions().submit(&key, request("and again now")).await;
    assert_eq!(refused.err(), Some(Refusal::Engine(FULL)));
    assert_eq!(Refusal::Engine(FULL).code(), "queue_full");
    // What was accepted before is joined, room or not.
    let again = node.sessions().submit(&key, keyed("say it once", "key", 1)).await.expect("joined");
    assert_eq!((again.turn, again.replayed), (turn, true));
    assert_eq!(reply(again).await.text, text);
    busy.refuses.store(false, SeqCst);
    say(&node, &key, "and again now").await;
    let info = node.sessions().info(&key).await.expect("readable").expect("there");
    assert_eq!(info.items, 4, "the refused turn was not recorded");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_turn_waits_for_a_place_however_often_there_is_none() {
    let data = tempfile::tempdir().expect("a directory");
    // More often than an attempt may fail.
    let (node, busy) = node(data.path(), 8).await;
    let reply = say(&node, &session("patient"), "I can wait").await;
    assert!(reply.starts_with(&mark("I can wait")));
    assert_eq!(busy.refusals.load(SeqCst), 0);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_its_rate_of_durable_and_stateless_turns() {
    let data = tempfile::tempdir().expect("a directory");
    let hour = Duration::from_secs(3_600);
    let rate = Limit { tokens: NonZeroU32::MIN, per: hour, burst: NonZeroU32::new(3).expect("not zero") };
    let limits = Limits { turn_rate: Some(rate), ..Limits::default() };
    let node = start(NodeOptions { limits, ..options(data.path(), "scripted:tokens=4") }).await;
    let stateless = |tenant: &str| StatelessRequest {
        id: TurnId(rand::random()),
        tenant: tenant.into(),
        input: vec![item(Role::User, "in passing")],
        options: GenerationOptions::default(),
        seed: None,
        logprobs: None,
        tools: None,
    };
    say(&node, &session("one"), "first").await;
    finish(node.generate(stateless("default")).await.expect("the second")).await;
    say(&node, &session("two"), "third").await;
    let durable = node.sessions().submit(&session("one"), request("fourth")).await.err();
    let in_passing = node.generate(stateless("default")).await.err();
    for refused in [durable, in_passing] {
        let Some(Refusal::RateLimited { retry_after, .. }) = refused else { panic!("{refused:?}") };
        assert!(retry_after <= hour && retry_after > hour / 2, "{retry_after:?}");
    }
    let other = SessionKey::api("other", "one");
    node.sessions().submit(&other, request("another tenant's first")).await.expect("it has its own");
    let info = node.sessions().info(&session("one")).await.expect("readable").expect("there");
    assert_eq!(info.items, 2, "what was refused was not recorded");
    stop(node).await;
}
