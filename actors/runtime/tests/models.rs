//! Models that come and go while the node runs: loading, unloading, reloading, on demand, within their memory.

mod common;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use common::{finish, item, request, session, start, stop};
use parlance_actors_runtime::{
    LoadModel, LoadProgress, ModelMemory, ModelOrder, ModelRefusal, ModelSpec, Node, NodeOptions, Refusal,
    StatelessRequest, TurnOutcome,
};
use parlance_cluster_protocol::{FinishReason, GenerationOptions, Replied, Role, TurnId};
use parlance_inference_engine::{
    Block, BlockCopy, ChatMessage, Engine, EngineError, EngineOptions, Lane, LaneInput, ModelReplica, ReplicaInfo,
    ScriptedOptions, ScriptedReplica, TextCodec, TokenId, TokenModel,
};
use parlance_inference_gateway::ModelState;

const MIB: u64 = 1 << 20;
const QUICK: &str = "scripted:tokens=4";
const SLOW: &str = "scripted:token_ms=20,tokens=20";

/// Loads of one model, which the test lets happen one by one or all.
#[derive(Clone, Default)]
struct Loads {
    /// How many were begun.
    begun: Arc<AtomicUsize>,
    /// Where a load waits, if it does.
    gate: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
    broken: Arc<AtomicBool>,
    replicas: Arc<Mutex<Vec<std::sync::Weak<ScriptedReplica>>>>,
}

impl Loads {
    fn model(&self, script: &str) -> LoadModel {
        let (loads, script) = (self.clone(), ScriptedOptions::parse(script).expect("the script is valid"));
        Arc::new(move |progress| {
            loads.begun.fetch_add(1, Ordering::SeqCst);
            progress(LoadProgress::Reading { percent: 40 });
            if let Some(gate) = &*loads.gate.lock().expect("no test panicked") {
                gate.recv_timeout(Duration::from_secs(20)).map_err(|_| "the test has ended".to_owned())?;
            }
            if loads.broken.load(Ordering::SeqCst) {
                return Err("the file is damaged".into());
            }
            progress(LoadProgress::Warming);
            let replica = Arc::new(ScriptedReplica::new(script.clone()));
            loads.replicas.lock().expect("no test panicked").push(Arc::downgrade(&replica));
            Ok(ModelReplica::Chat(replica))
        })
    }

    /// From now on each load waits for a word.
    fn gated(&self) -> mpsc::Sender<()> {
        let (open, gate) = mpsc::channel();
        *self.gate.lock().expect("no test panicked") = Some(gate);
        open
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many of the loaded replicas are alive.
    fn alive(&self) -> usize {
        let replicas = self.replicas.lock().expect("no test panicked");
        replicas.iter().filter(|replica| replica.strong_count() > 0).count()
    }
}

fn spec(name: &str, loads: &Loads, script: &str) -> ModelSpec {
    ModelSpec { replica_bytes: 10 * MIB, ..ModelSpec::new(name, loads.model(script)) }
}

fn options(data: &Path, models: Vec<ModelSpec>) -> NodeOptions {
    NodeOptions { models, ..common::options(data, QUICK) }
}

fn budget(mebibytes: u64, evict_idle: bool) -> ModelMemory {
    ModelMemory { budget_bytes: mebibytes * MIB, evict_idle }
}

fn state(node: &Node, name: &str) -> ModelState {
    node.models().listing(name).expect("a known model").state
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..4_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} does not come");
}

async fn until_state(node: &Node, name: &str, wanted: ModelState) {
    until(&format!("{name} {wanted:?}"), async || state(node, name) == wanted).await;
}

async fn load(node: &Node, model: &str, reload: bool) -> Result<String, ModelRefusal> {
    node.load_model(ModelOrder { model: model.into(), ..ModelOrder::default() }, reload).await
}

fn stateless(model: &str) -> StatelessRequest {
    StatelessRequest {
        id: TurnId(rand::random()),
        tenant: "t".into(),
        input: vec![item(Role::User, "hello")],
        options: GenerationOptions { model: model.into(), ..GenerationOptions::default() },
        seed: None,
        logprobs: None,
        tools: None,
    }
}

async fn ask(node: &Node, model: &str) -> Result<Arc<Replied>, Refusal> {
    match finish(node.generate(stateless(model)).await?).await.1 {
        TurnOutcome::Replied(replied) => Ok(replied),
        TurnOutcome::Failed(failed) => panic!("{failed:?}"),
    }
}

async fn held(node: &Node) -> u64 {
    node.report_models().await.expect("the manager answers").held_bytes / MIB
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_unloaded_and_loaded_again() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let node = start(options(data.path(), vec![spec("a", &Loads::default(), QUICK), spec("b", &loads, QUICK)])).await;
    assert!(ask(&node, "b").await.is_ok());
    for _ in 0..3 {
        node.unload_model("b", None).await.expect("unloaded");
        until_state(&node, "b", ModelState::Unloaded).await;
        assert_eq!((loads.alive(), held(&node).await), (0, 10));
        assert!(node.readiness().ready, "nobody wants it: {:?}", node.readiness());
        assert_eq!(ask(&node, "b").await.err(), Some(Refusal::ModelUnloaded { model: "b".into() }));
        load(&node, "b", false).await.expect("loaded");
        until_state(&node, "b", ModelState::Ready).await;
        assert!(ask(&node, "b").await.is_ok());
    }
    let begun = loads.begun();
    load(&node, "b", false).await.expect("there already");
    assert_eq!(loads.begun(), begun);
    let unknown = ModelRefusal::NotFound { name: "c".into(), known: "a, b".into() };
    assert_eq!(load(&node, "c", false).await, Err(unknown.clone()));
    assert_eq!(node.unload_model("c", None).await, Err(unknown));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_an_unloaded_model_is_finished() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let node = start(options(data.path(), vec![spec("a", &loads, SLOW)])).await;
    let running = node.generate(stateless("a")).await.expect("accepted");
    let turn = node.sessions().submit(&session("s"), request("hello")).await.expect("accepted");
    until("both lanes", async || node.models().list()[0].load.running == 2).await;
    node.unload_model("a", None).await.expect("unloaded");
    assert_eq!(state(&node, "a"), ModelState::Draining);
    assert!(matches!(ask(&node, "a").await, Err(Refusal::ModelNotReady { .. })), "nothing new is taken");
    for (_, outcome) in [finish(running).await, finish(turn.stream).await] {
        let TurnOutcome::Replied(replied) = outcome else { panic!("{outcome:?}") };
        assert_eq!((replied.finish, replied.usage.completion_tokens), (FinishReason::Stop, 20));
    }
    until_state(&node, "a", ModelState::Unloaded).await;
    assert_eq!(held(&node).await, 0);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_of_an_unload_what_still_runs_is_told() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let node = start(options(data.path(), vec![spec("a", &loads, "scripted:token_ms=60000")])).await;
    let running = node.generate(stateless("a")).await.expect("accepted");
    node.unload_model("a", Some(Duration::from_millis(50))).await.expect("unloaded");
    let (_, outcome) = finish(running).await;
    assert!(matches!(&outcome, TurnOutcome::Failed(failed) if failed.code == "model_failed"), "{outcome:?}");
    until_state(&node, "a", ModelState::Unloaded).await;
    assert_eq!((loads.alive(), held(&node).await), (0, 0));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_serves_all_the_time() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let two = ModelSpec { replicas: 2, ..spec("a", &loads, "scripted:token_ms=1,tokens=10") };
    let node = start(options(data.path(), vec![two])).await;
    until("both replicas", async || node.models().list()[0].replicas == 2).await;
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (node, over) = (node.clone(), over.clone());
            tokio::spawn(async move {
                let (session, mut asked) = (session(&format!("s{caller}")), 0_usize);
                while !over.load(Ordering::Relaxed) {
                    ask(&node, "a").await.expect("a reload drops nothing");
                    common::say(&node, &session, "hello").await;
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    for reload in 0..10 {
        let open = loads.gated();
        load(&node, "a", true).await.expect("reloaded");
        until("both loads", async || loads.begun() == 4 + 2 * reload).await;
        until_state(&node, "a", ModelState::Loading { percent: 40 }).await;
        assert_eq!(load(&node, "a", true).await, Err(ModelRefusal::Busy("a".into())));
        open.send(()).expect("a load waits");
        until("the first of them", async || loads.alive() == 3).await;
        assert_eq!((node.models().list()[0].replicas, held(&node).await), (2, 40), "half of it serves nobody");
        open.send(()).expect("a load waits");
        until_state(&node, "a", ModelState::Ready).await;
        until("the old ones' end", async || loads.alive() == 2 && held(&node).await == 20).await;
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.expect("no call failed") > 0);
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_leaves_what_serves() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let node = start(options(data.path(), vec![spec("a", &loads, QUICK)])).await;
    loads.broken.store(true, Ordering::SeqCst);
    load(&node, "a", true).await.expect("begun");
    until_state(&node, "a", ModelState::Failed { reason: "the file is damaged".into() }).await;
    assert!(ask(&node, "a").await.is_ok() && node.readiness().ready);
    until("its memory", async || held(&node).await == 10).await;
    loads.broken.store(false, Ordering::SeqCst);
    load(&node, "a", true).await.expect("begun");
    until_state(&node, "a", ModelState::Ready).await;
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_ready_when_its_wanted_models_are() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let open = loads.gated();
    let on_demand = ModelSpec { preload: false, ..spec("c", &Loads::default(), QUICK) };
    let models = vec![spec("a", &Loads::default(), QUICK), spec("b", &loads, QUICK), on_demand];
    let node = Node::start(options(data.path(), models)).await.expect("the node starts");
    until_state(&node, "a", ModelState::Ready).await;
    until_state(&node, "b", ModelState::Loading { percent: 40 }).await;
    let reasons = node.readiness().reasons;
    assert!(reasons.iter().any(|reason| reason.contains("`b` is loading (40 %)")), "{reasons:?}");
    open.send(()).expect("the load waits");
    until("readiness", async || node.readiness().ready).await;
    assert_eq!(state(&node, "c"), ModelState::Unloaded);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_when_it_is_asked_for() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let models = vec![spec("a", &Loads::default(), QUICK), ModelSpec { preload: false, ..spec("b", &loads, QUICK) }];
    let mut options = options(data.path(), models);
    options.limits.model_wait = Duration::from_millis(200);
    let node = start(options).await;
    let open = loads.gated();
    let late = ask(&node, "b").await;
    assert!(matches!(&late, Err(Refusal::ModelNotReady { .. })), "the wait has a bound: {late:?}");
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let node = node.clone();
            async move { ask(&node, "b").await }
        })
        .collect();
    let turn = async {
        let options = GenerationOptions { model: "b".into(), ..GenerationOptions::default() };
        let asked = parlance_actors_runtime::TurnRequest { options, ..request("hello") };
        node.sessions().submit(&session("s"), asked).await
    };
    let opened = async { open.send(()).expect("the load waits") };
    let (answers, turn, ()) = tokio::join!(futures_util::future::join_all(waiting), turn, opened);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    common::reply(turn.expect("accepted")).await;
    assert_eq!(loads.begun(), 1, "one load for all");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_is_refused_with_figures() {
    let data = tempfile::tempdir().expect("a directory");
    let models = ["a", "b", "c"].map(|name| ModelSpec { preload: name != "c", ..spec(name, &Loads::default(), QUICK) });
    let node = start(NodeOptions { memory: budget(25, false), ..options(data.path(), models.into()) }).await;
    let refused = load(&node, "c", false).await.expect_err("two of three fit").to_string();
    assert!(refused.contains("needs 10 MiB") && refused.contains("5 MiB of the 25 MiB"), "{refused}");
    let refused = load(&node, "a", true).await.expect_err("a second one beside it does not fit");
    assert!(matches!(refused, ModelRefusal::NoRoom(_)), "{refused}");
    assert!(matches!(ask(&node, "c").await, Err(Refusal::ModelNotReady { reason, .. }) if reason.contains("10 MiB")));
    assert!(ask(&node, "a").await.is_ok() && ask(&node, "b").await.is_ok());
    node.unload_model("a", None).await.expect("unloaded");
    until("its memory", async || held(&node).await == 10).await;
    assert!(ask(&node, "c").await.is_ok());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_models_make_room_and_pinned_and_busy_ones_do_not() {
    let data = tempfile::tempdir().expect("a directory");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| spec(name, &Loads::default(), SLOW));
    let models = vec![ModelSpec { pinned: true, ..a }, b, c, ModelSpec { preload: false, ..d }];
    let node = start(NodeOptions { memory: budget(30, true), ..options(data.path(), models) }).await;
    // `b` was asked last, but it is busy no more; `c` was never asked.
    assert!(ask(&node, "b").await.is_ok());
    assert!(ask(&node, "d").await.is_ok());
    assert_eq!((state(&node, "b"), state(&node, "c")), (ModelState::Ready, ModelState::Unloaded));
    assert_eq!(held(&node).await, 30);
    assert!(node.readiness().ready, "what made room comes when it is asked for");
    let running = [node.generate(stateless("b")).await, node.generate(stateless("d")).await];
    let refused = ask(&node, "c").await;
    assert!(matches!(&refused, Err(Refusal::ModelNotReady { .. })), "all others are busy or pinned: {refused:?}");
    for running in running {
        finish(running.expect("accepted")).await;
    }
    until("rest", async || node.models().list().iter().all(|listing| listing.load.running == 0)).await;
    assert_eq!(node.unload_model("a", None).await, Err(ModelRefusal::Pinned("a".into())));
    assert!(ask(&node, "c").await.is_ok(), "`b` made room");
    assert_eq!((state(&node, "a"), held(&node).await), (ModelState::Ready, 30));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_added_at_run_time_goes_when_it_is_unloaded() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let added = loads.clone();
    let sources = move |order: &ModelOrder| match order.source.as_deref() {
        Some("good") => Ok(spec(&order.model, &added, QUICK)),
        _ => Err("there is no such file".to_owned()),
    };
    let options = options(data.path(), vec![spec("a", &Loads::default(), QUICK)]);
    let node = start(NodeOptions { sources: Some(Arc::new(sources)), ..options }).await;
    let order = |source: &str| ModelOrder { model: "b".into(), source: Some(source.into()), ..ModelOrder::default() };
    let refused = node.load_model(order("bad"), false).await;
    assert_eq!(refused, Err(ModelRefusal::Unusable("there is no such file".into())));
    assert_eq!(node.load_model(order("good"), false).await, Ok("b".into()));
    until_state(&node, "b", ModelState::Ready).await;
    assert!(ask(&node, "b").await.is_ok());
    node.unload_model("b", None).await.expect("unloaded");
    until("its end", async || node.models().listing("b").is_none()).await;
    assert!(matches!(ask(&node, "b").await, Err(Refusal::ModelNotFound { .. })));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unload_during_a_load_keeps_the_memory_until_the_load_has_ended() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Loads::default());
    let open = loads.gated();
    let models = vec![spec("a", &Loads::default(), QUICK), ModelSpec { preload: false, ..spec("b", &loads, QUICK) }];
    let node = start(options(data.path(), models)).await;
    load(&node, "b", false).await.expect("begun");
    until("the load", async || loads.begun() == 1).await;
    node.unload_model("b", Some(Duration::ZERO)).await.expect("unloaded");
    assert_eq!((state(&node, "b"), held(&node).await), (ModelState::Draining, 20));
    open.send(()).expect("the load waits");
    until_state(&node, "b", ModelState::Unloaded).await;
    assert_eq!((loads.alive(), held(&node).await), (0, 10));
    stop(node).await;
}

/// A model whose engine ends with the first step.
struct Mortal(ReplicaInfo);

impl TokenModel for Mortal {
    fn lanes(&self) -> usize {
        1
    }

    fn context_tokens(&self) -> usize {
        16
    }

    fn vocabulary(&self) -> usize {
        4
    }

    fn block_tokens(&self) -> usize {
        16
    }

    fn blocks(&self) -> usize {
        1
    }

    fn place(&mut self, _: Lane, _: &[Block]) {}

    fn copy(&mut self, _: BlockCopy) {}

    fn step(&mut self, _: &[LaneInput<'_>], _: &mut Vec<f32>) -> Result<(), EngineError> {
        Err(EngineError::Stopped)
    }
}

impl TextCodec for Mortal {
    fn info(&self) -> &ReplicaInfo {
        &self.0
    }

    fn encode_chat(&self, _: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError> {
        Ok(vec![1])
    }

    fn token_bytes(&self, _: TokenId) -> &[u8] {
        b"a"
    }

    fn is_end(&self, _: TokenId) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_engine_ends_is_loaded_again() {
    let (data, loads) = (tempfile::tempdir().expect("a directory"), Arc::new(AtomicUsize::new(0)));
    let (open, gate) = mpsc::channel::<()>();
    let (begun, gate) = (loads.clone(), Mutex::new(gate));
    let load: LoadModel = Arc::new(move |_| {
        if begun.fetch_add(1, Ordering::SeqCst) > 0 {
            gate.lock().expect("no test panicked").recv().map_err(|_| "the test has ended".to_owned())?;
        }
        let info = ReplicaInfo { name: "a".into(), digest: String::new(), numerics: String::new(), context_tokens: 16 };
        let (model, codec) = (Box::new(Mortal(info.clone())), Arc::new(Mortal(info)));
        Ok(ModelReplica::Chat(Arc::new(Engine::start(model, codec, EngineOptions::default()))))
    });
    let node = start(options(data.path(), vec![ModelSpec::new("a", load)])).await;
    let (_, outcome) = finish(node.generate(stateless("a")).await.expect("accepted")).await;
    assert!(matches!(&outcome, TurnOutcome::Failed(failed) if failed.code == "model_failed"), "{outcome:?}");
    until("the second load", async || loads.load(Ordering::SeqCst) == 2).await;
    assert!(!node.readiness().ready && matches!(ask(&node, "a").await, Err(Refusal::ModelNotReady { .. })));
    open.send(()).expect("the load waits");
    until("readiness", async || node.readiness().ready).await;
    stop(node).await;
}
