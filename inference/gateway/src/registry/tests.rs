use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use parlance_inference_engine::{
    CancelHandle, ChatMessage, EmbeddingInput, EmbeddingRequest, EngineError, EventSink, GenerateRequest, Grammar,
    Lifeline, PendingEmbeddings, PreparedPrompt, PromptBudget, ScriptedOptions, ScriptedReplica, TokenId,
};

use super::*;

/// A replica whose load the test sets.
struct Loaded {
    info: ReplicaInfo,
    running: AtomicUsize,
    /// Dropped, it ends.
    life: Mutex<Option<ScriptedReplica>>,
    lifeline: Lifeline,
}

impl Loaded {
    fn die(&self) {
        self.life.lock().expect("no test panicked").take();
    }
}

impl Replica for Loaded {
    fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    fn prepare(&self, _: &[ChatMessage<'_>], _: PromptBudget) -> Result<PreparedPrompt, EngineError> {
        Err(EngineError::Stopped)
    }

    fn compile(&self, _: &str) -> Result<Grammar, EngineError> {
        Err(EngineError::Stopped)
    }

    fn submit(&self, _: GenerateRequest, _: Box<dyn EventSink>) -> Result<CancelHandle, EngineError> {
        Err(EngineError::Stopped)
    }

    fn admits(&self, _: &str, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn load(&self) -> ReplicaLoad {
        ReplicaLoad { running: self.running.load(Ordering::Relaxed), waiting: 0 }
    }

    fn lifeline(&self) -> Lifeline {
        self.lifeline.clone()
    }
}

impl EmbeddingReplica for Loaded {
    fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    fn dimensions(&self) -> usize {
        3
    }

    fn prepare(&self, _: &[EmbeddingInput]) -> Result<Vec<Vec<TokenId>>, EngineError> {
        Err(EngineError::Stopped)
    }

    fn submit(&self, _: EmbeddingRequest) -> Result<PendingEmbeddings, EngineError> {
        Err(EngineError::Stopped)
    }

    fn load(&self) -> ReplicaLoad {
        Replica::load(self)
    }

    fn lifeline(&self) -> Lifeline {
        Replica::lifeline(self)
    }
}

fn replica(digest: &str) -> Arc<Loaded> {
    let info = ReplicaInfo { name: "m".into(), digest: digest.into(), numerics: "n".into(), context_tokens: 10 };
    let life = ScriptedReplica::new(ScriptedOptions::default());
    let lifeline = life.lifeline();
    Arc::new(Loaded { info, running: AtomicUsize::new(0), life: Mutex::new(Some(life)), lifeline })
}

fn serving(count: usize) -> (ModelRegistry, Vec<Arc<Loaded>>) {
    let replicas: Vec<_> = (0..count).map(|n| replica(&n.to_string())).collect();
    let registry = ModelRegistry::new();
    registry.publish("m", replicas.iter().map(|r| ModelReplica::Chat(r.clone())).collect());
    (registry, replicas)
}

fn digest(registry: &ModelRegistry, affinity: u64) -> String {
    registry.route("m", affinity).expect("served").info().digest.clone()
}

#[test]
fn a_model_passes_through_its_states() {
    let registry = ModelRegistry::new();
    let none = GatewayError::ModelNotFound { name: "default".into(), available: vec![] };
    assert_eq!(registry.missing(), std::slice::from_ref(&none));
    assert_eq!(none.to_string(), "there is no model `default`; available: none");

    registry.set_alias(DEFAULT_MODEL, "m");
    let name = || "m".to_owned();
    let unavailable = |reason: &str| GatewayError::ModelUnavailable { name: name(), reason: reason.into() };
    for (state, error) in [
        (ModelState::Unloaded, GatewayError::ModelUnloaded { name: name() }),
        (ModelState::Loading { percent: 40 }, GatewayError::ModelLoading { name: name(), percent: 40 }),
        (ModelState::Warming, GatewayError::ModelLoading { name: name(), percent: 100 }),
        (ModelState::Draining, unavailable("it is being unloaded")),
        (ModelState::Failed { reason: "not a GGUF".into() }, unavailable("not a GGUF")),
    ] {
        registry.set_state("m", state);
        assert_eq!((registry.route("m", 0).err(), registry.missing()), (Some(error.clone()), vec![error]));
    }
    registry.publish("m", vec![ModelReplica::Chat(replica("1"))]);
    assert_eq!(registry.missing(), []);

    let listed = registry.list();
    assert_eq!((listed.len(), listed[0].replicas, &listed[0].state), (1, 1, &ModelState::Ready));
    assert_eq!(listed[0].aliases, [DEFAULT_MODEL]);
}

#[test]
fn names_aliases_and_the_default_lead_to_the_model() {
    let (registry, _) = serving(1);
    registry.set_alias("small", "m");
    registry.set_alias(DEFAULT_MODEL, "m");
    for name in ["", "default", "small", "m"] {
        assert_eq!(registry.canonical_name(name), Ok("m".into()));
    }
    let unknown = GatewayError::ModelNotFound { name: "x".into(), available: vec!["m".into()] };
    assert_eq!(registry.route("x", 0).err(), Some(unknown.clone()));
    assert_eq!(unknown.to_string(), "there is no model `x`; available: m");

    registry.publish("default", vec![ModelReplica::Chat(replica("own"))]);
    assert_eq!(registry.route("", 0).expect("served").info().digest, "own");
    assert!(registry.remove("default") && !registry.remove("default"));
}

#[test]
fn a_reload_serves_the_old_replica_until_the_new_one_is_there() {
    let (registry, _) = serving(1);
    for state in [ModelState::Loading { percent: 50 }, ModelState::Warming, ModelState::Failed { reason: "bad".into() }]
    {
        registry.set_state("m", state.clone());
        assert_eq!((digest(&registry, 0), &registry.list()[0].state), ("0".into(), &state));
    }
    let held = registry.route("m", 0).expect("served");
    registry.publish("m", vec![ModelReplica::Chat(replica("new"))]);
    assert_eq!((digest(&registry, 0).as_str(), held.info().digest.as_str()), ("new", "0"));
}

#[test]
fn required_models_and_the_default_decide_on_readiness() {
    let (registry, _) = serving(1);
    registry.set_alias(DEFAULT_MODEL, "m");
    registry.set_demand("other", Demand::Optional);
    assert_eq!(registry.missing(), [], "an optional model may be away");
    registry.set_demand("other", Demand::Required);
    assert_eq!(registry.missing(), [GatewayError::ModelUnloaded { name: "other".into() }]);
    registry.publish("other", vec![ModelReplica::Chat(replica("1"))]);
    registry.clear("m", ModelState::Unloaded);
    assert_eq!(registry.missing(), [GatewayError::ModelUnloaded { name: "m".into() }], "the default is away");
    registry.set_demand("m", Demand::OnDemand);
    assert_eq!(registry.missing(), [], "it comes when it is asked for");
    assert_eq!(registry.absent_on_demand("default"), Some("m".into()));
    assert_eq!(registry.absent_on_demand("other"), None);
    registry.publish("m", vec![ModelReplica::Chat(replica("2"))]);
    assert_eq!(registry.absent_on_demand("m"), None);
}

#[test]
fn a_replica_that_stays_keeps_its_conversations() {
    let (registry, replicas) = serving(3);
    let before: Vec<_> = (1..=200).map(|affinity| digest(&registry, affinity)).collect();
    let kept = [2, 0].map(|at: usize| ModelReplica::Chat(replicas[at].clone()));
    registry.publish("m", kept.into_iter().chain([ModelReplica::Chat(replica("new"))]).collect());
    for (affinity, home) in (1..=200).zip(before) {
        let now = digest(&registry, affinity);
        assert!(home == "1" || now == home || now == "new", "conversation {affinity} moved from {home} to {now}");
    }
}

#[test]
fn a_dead_replica_is_taken_out() {
    let (registry, replicas) = serving(2);
    let as_dyn = |n: usize| ModelReplica::Chat(replicas[n].clone());
    registry.withdraw("m", &as_dyn(0), "died");
    assert!((0..50).all(|affinity| digest(&registry, affinity) == "1"));
    registry.withdraw("m", &as_dyn(1), "died");
    let dead = GatewayError::ModelUnavailable { name: "m".into(), reason: "died".into() };
    assert_eq!(registry.route("m", 0).err(), Some(dead));
}

#[test]
fn a_model_is_asked_only_for_what_it_does() {
    let (registry, _) = serving(1);
    registry.set_state("later", ModelState::Loading { percent: 0 });
    registry.publish("e", vec![ModelReplica::Embedding(replica("e"))]);
    assert_eq!(registry.route_embedding("e").expect("served").info().digest, "e");
    let refused = registry.route("e", 0).err().expect("it embeds");
    assert_eq!(refused.to_string(), "the model `e` embeds texts and does not answer messages; models that do: m");
    let refused = registry.route_embedding("m").err().expect("it answers");
    assert_eq!(refused.to_string(), "the model `m` answers messages and does not embed texts; models that do: e");
    assert!(matches!(registry.route_embedding("later"), Err(GatewayError::ModelLoading { .. })));
    assert!(matches!(registry.route_embedding("none"), Err(GatewayError::ModelNotFound { .. })));
    let kinds: Vec<_> = registry.list().into_iter().map(|model| (model.name, model.kind, model.dimensions)).collect();
    let expected =
        [("e", Some(ModelKind::Embedding), Some(3)), ("later", None, None), ("m", Some(ModelKind::Chat), None)];
    assert_eq!(kinds, expected.map(|(name, kind, dimensions)| (name.to_owned(), kind, dimensions)));
    registry.set_alias(DEFAULT_MODEL, "e");
    assert_eq!(registry.missing(), [], "a default that embeds is one");
}

#[test]
fn a_stopped_replica_is_passed_over_before_it_is_taken_out() {
    let (registry, replicas) = serving(2);
    replicas[0].die();
    assert!((0..50).all(|affinity| digest(&registry, affinity) == "1"));
    replicas[1].die();
    let dead = GatewayError::ModelUnavailable { name: "m".into(), reason: "its engine has stopped".into() };
    assert_eq!(registry.route("m", 7).err(), Some(dead.clone()));
    let (registry, replicas) = serving(1);
    registry.set_alias(DEFAULT_MODEL, "m");
    assert_eq!(registry.missing(), []);
    replicas[0].die();
    assert_eq!(registry.missing(), [dead]);
}

#[test]
fn conversations_stay_and_spread() {
    let (registry, _) = serving(3);
    let homes: Vec<_> = (1..=300).map(|affinity| digest(&registry, affinity)).collect();
    assert_eq!(homes, (1..=300).map(|affinity| digest(&registry, affinity)).collect::<Vec<_>>());
    for replica in ["0", "1", "2"] {
        let share = homes.iter().filter(|home| *home == replica).count();
        assert!((60..140).contains(&share), "{replica} has {share} of 300");
    }
}

#[test]
fn a_lost_replica_moves_only_its_own_conversations() {
    let (registry, replicas) = serving(3);
    let before: Vec<_> = (1..=200).map(|affinity| digest(&registry, affinity)).collect();
    registry.withdraw("m", &ModelReplica::Chat(replicas[1].clone()), "died");
    for (affinity, home) in (1..=200).zip(before) {
        assert!(home == "1" || digest(&registry, affinity) == home, "conversation {affinity} moved");
    }
}

#[test]
fn load_goes_before_affinity_where_it_is_far_from_even() {
    let (registry, replicas) = serving(2);
    let affinity = (1..).find(|&affinity| digest(&registry, affinity) == "0").expect("one of them");
    for (load, expected) in [(3, "0"), (4, "1"), (100, "1")] {
        replicas[0].running.store(load, Ordering::Relaxed);
        assert_eq!((load, digest(&registry, affinity).as_str()), (load, expected));
    }
    replicas[1].running.store(60, Ordering::Relaxed);
    assert_eq!(digest(&registry, affinity), "0");
    assert_eq!(digest(&registry, 0), "1");
    assert_eq!(registry.list()[0].load, ReplicaLoad { running: 160, waiting: 0 });
}
