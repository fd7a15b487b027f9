//! The guard's hooks on either side of the model, for durable turns and for stateless generations.

mod common;

use std::sync::Arc;

use common::*;
use parlance_actors_guard::{Block, InputGuard, InputVerdict, OutputGuard, OutputReview, OutputVerdict};
use parlance_actors_runtime::{Guards, ItemQuery, Node, NodeOptions, Refusal, StatelessRequest, TurnOutcome};
use parlance_cluster_protocol::{GenerationOptions, Item, Role, TurnId};
use parlance_inference_engine::EngineError;

const ALL: ItemQuery = ItemQuery { from: None, descending: false, limit: 1_000 };
const SECRET: &str = "hunter2";

/// Masks the secret on its way in; lets nothing in that says "locked", and panics at "explode".
struct Door;

impl InputGuard for Door {
    fn review(&self, _tenant: &str, messages: &[&Item]) -> InputVerdict {
        assert!(messages.iter().all(|item| item.text != "explode"), "a guard with a bug");
        if messages.iter().any(|item| item.text == "locked") {
            return InputVerdict::Blocked(block());
        }
        let masked = |item: &&Item| Item { role: item.role, text: item.text.replace(SECRET, "***") };
        InputVerdict::Masked(messages.iter().map(masked).collect())
    }
}

/// Lets out capitals, the last one at the end, and no answer to "whisper" behind its first four letters. Panics at one to "burst", and at
/// the end of one to "sting".
struct Window;

#[derive(Default)]
struct Capitals {
    held: String,
    stings: bool,
}

impl OutputGuard for Window {
    fn begin(&self, _tenant: &str) -> Box<dyn OutputReview> {
        Box::new(Capitals::default())
    }
}

impl OutputReview for Capitals {
    fn push(&mut self, delta: String) -> OutputVerdict {
        if delta.starts_with(&mark("whisper")) {
            return OutputVerdict::Blocked(block());
        }
        assert!(!delta.starts_with(&mark("burst")), "a guard with a bug");
        self.stings |= delta.starts_with(&mark("sting"));
        self.held.push_str(&delta.to_uppercase());
        let last = self.held.pop().unwrap_or_default();
        OutputVerdict::Release(std::mem::replace(&mut self.held, last.into()))
    }

    fn finish(&mut self) -> OutputVerdict {
        assert!(!self.stings, "a guard with a bug in its tail");
        OutputVerdict::Release(std::mem::take(&mut self.held))
    }
}

fn block() -> Block {
    Block { code: "content_blocked", message: "This cannot be said here.".into() }
}

async fn guarded(data: &std::path::Path) -> Node {
    let guards = Guards { input: Arc::new(Door), output: Arc::new(Window) };
    start(NodeOptions { guards, ..options(data, "scripted:token_ms=1,tokens=4") }).await
}

async fn ask(node: &Node, text: &str) -> Result<TurnOutcome, Refusal> {
    let request = StatelessRequest {
        id: TurnId(1),
        tenant: "default".into(),
        input: vec![item(Role::User, text)],
        options: GenerationOptions::default(),
        logprobs: None,
        tools: None,
        seed: None,
    };
    Ok(finish(node.generate(request).await?).await.1)
}

fn text_of(outcome: TurnOutcome) -> String {
    let TurnOutcome::Replied(replied) = outcome else { panic!("{outcome:?}") };
    replied.text.clone()
}

fn code_of(outcome: TurnOutcome) -> String {
    let TurnOutcome::Failed(failed) = outcome else { panic!("{outcome:?}") };
    failed.code.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_turns_are_guarded_on_both_sides() {
    let data = tempfile::tempdir().expect("a directory");
    let node = guarded(data.path()).await;
    let key = session("guarded");
    let reply = say(&node, &key, "it is hunter2").await;
    assert!(reply.starts_with(&mark("it is ***").to_uppercase()), "{reply}");
    assert_eq!(reply.split_whitespace().count(), 4, "nothing is held back at the end: {reply}");
    let items = node.sessions().items(&key, ALL).await.expect("readable").expect("there");
    assert_eq!((&*items[0].text, &*items[1].text), ("it is hunter2", &*reply), "the record has what was said");
    for (text, code) in [("whisper", "content_blocked"), ("locked", "content_blocked")] {
        let accepted = node.sessions().submit(&session(text), request(text)).await.expect("accepted");
        let (shown, outcome) = finish(accepted.stream).await;
        assert_eq!((shown, code_of(outcome)), (String::new(), code.to_owned()));
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_panics_fails_the_turn_and_nothing_else() {
    let data = tempfile::tempdir().expect("a directory");
    let node = guarded(data.path()).await;
    let key = session("unlucky");
    for text in ["explode", "burst", "sting"] {
        let accepted = node.sessions().submit(&key, request(text)).await.expect("accepted");
        assert_eq!(code_of(finish(accepted.stream).await.1), "model_failed", "{text}");
    }
    assert_eq!(code_of(ask(&node, "burst").await.expect("begun")), "model_failed");
    assert_eq!(code_of(ask(&node, "sting").await.expect("begun")), "model_failed");
    let refused = ask(&node, "explode").await;
    assert!(matches!(refused, Err(Refusal::Engine(EngineError::ModelFailed(_)))), "{refused:?}");
    assert_eq!(node.status().parked_sessions, 0);
    say(&node, &session("lucky"), "hello").await;
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stateless_generations_are_guarded_on_both_sides() {
    let data = tempfile::tempdir().expect("a directory");
    let node = guarded(data.path()).await;
    let reply = text_of(ask(&node, "it is hunter2").await.expect("answered"));
    assert!(reply.starts_with(&mark("it is ***").to_uppercase()), "{reply}");
    assert_eq!(code_of(ask(&node, "whisper").await.expect("begun")), "content_blocked");
    let refused = ask(&node, "locked").await;
    assert!(matches!(refused, Err(Refusal::Blocked { code: "content_blocked", .. })), "{refused:?}");
    stop(node).await;
}
