use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parlance_inference_engine::{
    CancelHandle, ChatMessage, EngineError, EventSink, GenerateRequest, Grammar, PreparedPrompt, PromptBudget,
};

use super::*;

/// A replica whose load the test sets.
struct Loaded {
    info: ReplicaInfo,
    running: AtomicUsize,
    stopped: AtomicBool,
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

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn load(&self) -> ReplicaLoad {
        ReplicaLoad { running: self.running.load(Ordering::Relaxed), waiting: 0 }
    }
}

fn replica(digest: &str) -> Arc<Loaded> {
    let info = ReplicaInfo { name: "m".into(), digest: digest.into(), numerics: "n".into(), context_tokens: 10 };
    Arc::new(Loaded { info, running: AtomicUsize::new(0), stopped: AtomicBool::new(false) })
}

fn serving(count: usize) -> (ModelRegistry, Vec<Arc<Loaded>>) {
    let replicas: Vec<_> = (0..count).map(|n| replica(&n.to_string())).collect();
    let registry = ModelRegistry::new();
    registry.publish("m", replicas.iter().map(|r| r.clone() as Arc<dyn Replica>).collect());
    (registry, replicas)
}

fn digest(registry: &ModelRegistry, affinity: u64) -> String {
    registry.route("m", affinity).expect("served").info().digest.clone()
}

#[test]
fn a_model_passes_through_its_states() {
    let registry = ModelRegistry::new();
    let none = GatewayError::ModelNotFound { name: "default".into(), available: vec![] };
    assert_eq!(registry.readiness(), Err(none.clone()));
    assert_eq!(none.to_string(), "there is no model `default`; available: none");

    registry.set_alias(DEFAULT_MODEL, "m");
    registry.set_loading("m", 40);
    assert_eq!(registry.readiness(), Err(GatewayError::ModelLoading { name: "m".into(), percent: 40 }));
    registry.set_failed("m", "not a GGUF");
    let failed = GatewayError::ModelUnavailable { name: "m".into(), reason: "not a GGUF".into() };
    assert_eq!(registry.readiness(), Err(failed));
    registry.publish("m", vec![replica("1")]);
    assert_eq!(registry.readiness(), Ok(()));

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

    registry.publish("default", vec![replica("own")]);
    assert_eq!(registry.route("", 0).expect("served").info().digest, "own");
    assert!(registry.remove("default") && !registry.remove("default"));
}

#[test]
fn a_reload_serves_the_old_replica_until_the_new_one_is_there() {
    let (registry, _) = serving(1);
    for state in [ModelState::Loading { percent: 100 }, ModelState::Failed { reason: "bad".into() }] {
        match &state {
            ModelState::Failed { reason } => registry.set_failed("m", reason.clone()),
            _ => registry.set_loading("m", 200),
        }
        assert_eq!((digest(&registry, 0), &registry.list()[0].state), ("0".into(), &state));
    }
    let held = registry.route("m", 0).expect("served");
    registry.publish("m", vec![replica("new")]);
    assert_eq!((digest(&registry, 0).as_str(), held.info().digest.as_str()), ("new", "0"));
}

#[test]
fn a_dead_replica_is_taken_out() {
    let (registry, replicas) = serving(2);
    let as_dyn = |n: usize| replicas[n].clone() as Arc<dyn Replica>;
    registry.withdraw("m", &as_dyn(0), "died");
    assert!((0..50).all(|affinity| digest(&registry, affinity) == "1"));
    registry.withdraw("m", &as_dyn(1), "died");
    let dead = GatewayError::ModelUnavailable { name: "m".into(), reason: "died".into() };
    assert_eq!(registry.route("m", 0).err(), Some(dead));
}

#[test]
fn a_stopped_replica_is_passed_over_before_it_is_taken_out() {
    let (registry, replicas) = serving(2);
    replicas[0].stopped.store(true, Ordering::Relaxed);
    assert!((0..50).all(|affinity| digest(&registry, affinity) == "1"));
    replicas[1].stopped.store(true, Ordering::Relaxed);
    let dead = GatewayError::ModelUnavailable { name: "m".into(), reason: "its engine has stopped".into() };
    assert_eq!(registry.route("m", 7).err(), Some(dead.clone()));
    let (registry, replicas) = serving(1);
    registry.set_alias(DEFAULT_MODEL, "m");
    assert_eq!(registry.readiness(), Ok(()));
    replicas[0].stopped.store(true, Ordering::Relaxed);
    assert_eq!(registry.readiness(), Err(dead));
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
    registry.withdraw("m", &(replicas[1].clone() as Arc<dyn Replica>), "died");
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
