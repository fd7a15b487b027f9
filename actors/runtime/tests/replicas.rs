//! Engines that fail, under their supervisor: who is told, who is answered by the next one, and what the node says of itself meanwhile.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::*;
use futures_util::future::join_all;
use parlance_actors_runtime::{LoadProgress, ModelSpec, Node, NodeOptions, StatelessRequest, TurnOutcome, TurnStream};
use parlance_cluster_protocol::{GenerationOptions, Role, TurnId};
use parlance_inference_engine::{
    Block, BlockCopy, ChatMessage, Engine, EngineError, EngineOptions, Lane, LaneInput, ModelReplica, ReplicaInfo,
    ReplicaLoad, TextCodec, TokenId, TokenModel,
};

const VOCABULARY: usize = 8;
const CONTEXT: usize = 64;

/// What the model does instead of computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Panic,
    NotANumber,
    Error,
}

/// What a test does to the model from outside.
struct Hands {
    fault: AtomicU8,
    /// Whether steps wait.
    holds_steps: AtomicBool,
    /// Whether every load but the first waits.
    holds_loads: AtomicBool,
    /// Whether the next load mends the fault.
    mends: bool,
    loads: AtomicUsize,
}

impl Hands {
    fn new(mends: bool) -> Arc<Self> {
        Arc::new(Self {
            fault: AtomicU8::new(Fault::None as u8),
            holds_steps: AtomicBool::new(false),
            holds_loads: AtomicBool::new(false),
            mends,
            loads: AtomicUsize::new(0),
        })
    }

    fn wait_while(flag: &AtomicBool) {
        while flag.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Says the same word again and again.
struct Parrot(Arc<Hands>);

impl TokenModel for Parrot {
    fn lanes(&self) -> usize {
        1
    }

    fn block_tokens(&self) -> usize {
        CONTEXT
    }

    fn blocks(&self) -> usize {
        1
    }

    fn place(&mut self, _: Lane, _: &[Block]) {}

    fn copy(&mut self, _: BlockCopy) {}

    fn context_tokens(&self) -> usize {
        CONTEXT
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        Hands::wait_while(&self.0.holds_steps);
        let fault = self.0.fault.load(SeqCst);
        assert_ne!(fault, Fault::Panic as u8, "as it was told");
        if fault == Fault::Error as u8 {
            return Err(EngineError::ModelFailed("as it was told".into()));
        }
        logits.clear();
        for _ in 0..inputs.iter().map(|input| input.logits).sum() {
            let mut row = [0.0; VOCABULARY];
            row[1] = if fault == Fault::NotANumber as u8 { f32::NAN } else { 1.0 };
            logits.extend(row);
        }
        Ok(())
    }
}

struct Words(ReplicaInfo);

impl TextCodec for Words {
    fn info(&self) -> &ReplicaInfo {
        &self.0
    }

    fn encode_chat(&self, messages: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError> {
        Ok(vec![2; messages.len()])
    }

    fn token_bytes(&self, _: TokenId) -> &[u8] {
        b" word"
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == 0
    }
}

/// A node whose one model is in the test's hands.
async fn node(data: &std::path::Path, hands: &Arc<Hands>) -> Node {
    let hands = hands.clone();
    let load = move |_: &(dyn Fn(LoadProgress) + Sync)| {
        if hands.loads.fetch_add(1, SeqCst) > 0 {
            Hands::wait_while(&hands.holds_loads);
            if hands.mends {
                hands.fault.store(Fault::None as u8, SeqCst);
            }
        }
        let (name, digest, numerics) = ("parrot".into(), "d".into(), "n".into());
        let codec = Words(ReplicaInfo { name, digest, numerics, context_tokens: CONTEXT as u32 });
        let options = EngineOptions { target_first_token: Duration::from_secs(3_600), ..EngineOptions::default() };
        let engine = Engine::start(Box::new(Parrot(hands.clone())), Arc::new(codec), options);
        Ok(ModelReplica::Chat(Arc::new(engine)))
    };
    let models = vec![ModelSpec::new("parrot", Arc::new(load))];
    start(NodeOptions { models, ..options(data, "scripted") }).await
}

async fn stateless(node: &Node, id: u128) -> TurnStream {
    let request = StatelessRequest {
        id: TurnId(id),
        tenant: "default".into(),
        input: vec![item(Role::User, "hello")],
        options: GenerationOptions { max_tokens: Some(3), ..GenerationOptions::default() },
        seed: None,
        logprobs: None,
        tools: None,
    };
    node.generate(request).await.expect("taken")
}

/// So many, one after the other.
async fn several(node: &Node, count: u128) -> Vec<TurnStream> {
    let mut streams = Vec::new();
    for id in 0..count {
        streams.push(stateless(node, id).await);
    }
    streams
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..4_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} does not come");
}

fn code_of(outcome: &TurnOutcome) -> &str {
    match outcome {
        TurnOutcome::Replied(replied) => {
            assert_eq!(replied.text, " word word word");
            "replied"
        }
        TurnOutcome::Failed(failed) => &failed.code,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_not_started_is_answered_by_the_next_replica_and_the_node_is_not_ready_meanwhile() {
    for fault in [Fault::Panic, Fault::NotANumber, Fault::Error] {
        let data = tempfile::tempdir().expect("a directory");
        let hands = Hands::new(true);
        let node = node(data.path(), &hands).await;
        hands.holds_steps.store(true, SeqCst);
        hands.holds_loads.store(true, SeqCst);
        let mut streams = Vec::new();
        for id in 0..8 {
            streams.push(stateless(&node, id).await);
            until("its place", || node.models().list()[0].load.waiting == id as usize).await;
        }
        let mut turns = Vec::new();
        for chat in ["a", "b", "c"] {
            let short = GenerationOptions { max_tokens: Some(3), ..GenerationOptions::default() };
            let asked = parlance_actors_runtime::TurnRequest { options: short, ..request("hello") };
            turns.push(node.sessions().submit(&session(chat), asked).await.expect("accepted").stream);
        }
        until("the turns' places", || node.models().list()[0].load.waiting == 10).await;
        hands.fault.store(fault as u8, SeqCst);
        hands.holds_steps.store(false, SeqCst);

        until("the model's next load", || hands.loads.load(SeqCst) == 2).await;
        let readiness = node.readiness();
        assert!(!readiness.ready && readiness.reasons[0].contains("parrot"), "{readiness:?}");
        hands.holds_loads.store(false, SeqCst);

        let told = join_all(streams.into_iter().map(finish)).await;
        let told: Vec<_> = told.iter().map(|(_, outcome)| code_of(outcome)).collect();
        // One lane, and so one request in each of the three batches that failed.
        assert_eq!(told, [["model_failed"; 3].as_slice(), &["replied"; 5]].concat(), "{fault:?}");
        for (_, outcome) in join_all(turns.into_iter().map(finish)).await {
            assert_eq!(code_of(&outcome), "replied", "an accepted turn is answered: {outcome:?}");
        }
        assert_eq!(hands.loads.load(SeqCst), 2);
        assert!(node.readiness().ready);
        stop(node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_engine_that_died_is_noticed_without_a_request() {
    let data = tempfile::tempdir().expect("a directory");
    let hands = Hands::new(true);
    let node = node(data.path(), &hands).await;
    hands.holds_loads.store(true, SeqCst);
    hands.fault.store(Fault::Error as u8, SeqCst);
    for id in 0..3 {
        assert_eq!(code_of(&finish(stateless(&node, id).await).await.1), "model_failed");
    }
    until("the truth", || !node.readiness().ready).await;
    hands.holds_loads.store(false, SeqCst);
    until("the next replica", || node.readiness().ready).await;
    assert_eq!(code_of(&finish(stateless(&node, 3).await).await.1), "replied");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_for_a_model_that_never_works() {
    let data = tempfile::tempdir().expect("a directory");
    let hands = Hands::new(false);
    let node = node(data.path(), &hands).await;
    hands.holds_steps.store(true, SeqCst);
    let streams = several(&node, 40).await;
    hands.fault.store(Fault::Panic as u8, SeqCst);
    hands.holds_steps.store(false, SeqCst);
    for (_, outcome) in join_all(streams.into_iter().map(finish)).await {
        assert_eq!(code_of(&outcome), "model_failed");
    }
    node.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_dying_engine_is_not_answered_by_the_next() {
    let data = tempfile::tempdir().expect("a directory");
    let hands = Hands::new(true);
    let node = node(data.path(), &hands).await;
    hands.holds_steps.store(true, SeqCst);
    hands.holds_loads.store(true, SeqCst);
    let streams = several(&node, 6).await;
    until("their places", || node.models().list()[0].load.waiting == 5).await;
    hands.fault.store(Fault::Error as u8, SeqCst);
    hands.holds_steps.store(false, SeqCst);
    until("the model's next load", || hands.loads.load(SeqCst) == 2).await;
    drop(streams);
    hands.holds_loads.store(false, SeqCst);
    until("their end", || node.status().stateless == 0).await;
    until("the next replica", || node.readiness().ready).await;
    assert_eq!(node.models().list()[0].load, ReplicaLoad::default());
    stop(node).await;
}
