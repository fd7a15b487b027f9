//! Which models this node serves, under which names, and which of a model's replicas answers a turn.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parlance_inference_engine::{EmbeddingReplica, ModelKind, ModelReplica, Replica, ReplicaInfo, ReplicaLoad};

use crate::GatewayError;

/// The name that a request without a model's name asks for.
pub const DEFAULT_MODEL: &str = "default";

/// A conversation leaves its replica, and the cache there, only for one with this many fewer requests ...
const IMBALANCE_REQUESTS: usize = 4;
/// ... and with less than its own number divided by this.
const IMBALANCE_FACTOR: usize = 2;

/// What becomes of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelState {
    /// It takes no memory.
    Unloaded,
    /// It is being fetched or read. A model that is loaded anew serves meanwhile.
    Loading {
        /// How much is done, 0 to 100.
        percent: u8,
    },
    /// It runs its first steps. A model that is loaded anew serves meanwhile.
    Warming,
    /// It serves.
    Ready,
    /// It takes nothing new, and finishes what it has taken on.
    Draining,
    /// The last attempt to load it failed, or its last replica ended. Replicas of an earlier load go on serving.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How much a node needs one of its models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Demand {
    /// It may come and go: somebody loads and unloads it.
    #[default]
    Optional,
    /// It is loaded when it is asked for.
    OnDemand,
    /// The node takes no traffic without it.
    Required,
}

/// One model, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelListing {
    /// The name that it is served under.
    pub name: String,
    /// Other names for it, sorted.
    pub aliases: Vec<String>,
    /// What becomes of it.
    pub state: ModelState,
    /// What it is for, once that is known.
    pub kind: Option<ModelKind>,
    /// How many values its vectors have, if it embeds.
    pub dimensions: Option<usize>,
    /// How many replicas serve it. May be more than 0 in any state.
    pub replicas: usize,
    /// What they serve, where there are any.
    pub info: Option<ReplicaInfo>,
    /// Their requests together.
    pub load: ReplicaLoad,
    /// How much the node needs it.
    pub demand: Demand,
    /// Since when nothing was asked of it.
    pub unused_for: Duration,
}

/// The models of this node. Every method takes effect at once, and holds its lock only for a choice among a few replicas; requests that
/// run on a replaced replica keep it until they end.
pub struct ModelRegistry {
    inner: RwLock<Models>,
    started: Instant,
}

impl Default for ModelRegistry {
    fn default() -> Self {
        Self { inner: RwLock::default(), started: Instant::now() }
    }
}

#[derive(Default)]
struct Models {
    models: BTreeMap<String, Model>,
    aliases: BTreeMap<String, String>,
    seats: u64,
}

struct Model {
    state: ModelState,
    demand: Demand,
    seats: Vec<Seat>,
    /// When something was asked of it last, in microseconds since the registry was made.
    used_us: AtomicU64,
}

/// A replica and the number that conversations find it by, whatever becomes of the others.
#[derive(Clone)]
struct Seat {
    number: u64,
    replica: ModelReplica,
}

impl ModelRegistry {
    /// No models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports what becomes of a model, which is made known by it.
    pub fn set_state(&self, name: &str, state: ModelState) {
        self.write().model(name).state = state;
    }

    /// Says how much the node needs a model, which is made known by it.
    pub fn set_demand(&self, name: &str, demand: Demand) {
        self.write().model(name).demand = demand;
    }

    /// Serves a model by these replicas, all of one kind, in place of those it had. One that it had already keeps its conversations.
    pub fn publish(&self, name: &str, replicas: Vec<ModelReplica>) {
        let now = self.now_us();
        let mut inner = self.write();
        let mut next = inner.seats;
        let model = inner.model(name);
        let old = std::mem::take(&mut model.seats);
        model.seats.extend(replicas.into_iter().map(|replica| {
            old.iter().find(|seat| seat.replica.is(&replica)).cloned().unwrap_or_else(|| {
                next += 1;
                Seat { number: next, replica }
            })
        }));
        model.state = ModelState::Ready;
        model.used_us.fetch_max(now, Ordering::Relaxed);
        inner.seats = next;
    }

    /// Takes all replicas of a model out. Requests that run on them keep them until they end.
    pub fn clear(&self, name: &str, state: ModelState) {
        let mut inner = self.write();
        let model = inner.model(name);
        model.seats.clear();
        model.state = state;
    }

    /// Takes one replica out, for example because it died. A model without replicas is [`ModelState::Failed`] for `reason`.
    pub fn withdraw(&self, name: &str, replica: &ModelReplica, reason: impl Into<String>) {
        let mut inner = self.write();
        let Some(model) = inner.models.get_mut(name) else { return };
        model.seats.retain(|seat| !seat.replica.is(replica));
        if model.seats.is_empty() && model.state == ModelState::Ready {
            model.state = ModelState::Failed { reason: reason.into() };
        }
    }

    /// Forgets a model, and the aliases that lead to it. Says whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let mut inner = self.write();
        inner.aliases.retain(|_, target| target != name);
        inner.models.remove(name).is_some()
    }

    /// Lets `alias` lead to the model `name`, whether that is there yet or not. A model's own name goes before an alias.
    pub fn set_alias(&self, alias: &str, name: &str) {
        self.write().aliases.insert(alias.into(), name.into());
    }

    /// The model's own name for a name or alias; empty means [`DEFAULT_MODEL`].
    ///
    /// # Errors
    ///
    /// [`GatewayError::ModelNotFound`].
    pub fn canonical_name(&self, name: &str) -> Result<String, GatewayError> {
        Ok(self.read().find(name)?.0.to_owned())
    }

    /// Chooses the replica that answers: the one that holds the conversation `affinity` (0 is none), unless it has much more to
    /// do than the least loaded one.
    ///
    /// # Errors
    ///
    /// [`GatewayError::ModelNotFound`], [`GatewayError::ModelLoading`], [`GatewayError::ModelUnavailable`], or
    /// [`GatewayError::WrongKind`] for a model that embeds.
    pub fn route(&self, name: &str, affinity: u64) -> Result<Arc<dyn Replica>, GatewayError> {
        let inner = self.read();
        match inner.choose(name, affinity, self.now_us())? {
            (_, ModelReplica::Chat(replica)) => Ok(replica),
            (name, ModelReplica::Embedding(_)) => Err(inner.wrong_kind(name, ModelKind::Chat)),
        }
    }

    /// Chooses the replica that embeds: the least loaded one.
    ///
    /// # Errors
    ///
    /// As [`route`](Self::route), the other way round: [`GatewayError::WrongKind`] for a model that answers messages.
    pub fn route_embedding(&self, name: &str) -> Result<Arc<dyn EmbeddingReplica>, GatewayError> {
        let inner = self.read();
        match inner.choose(name, 0, self.now_us())? {
            (_, ModelReplica::Embedding(replica)) => Ok(replica),
            (name, ModelReplica::Chat(_)) => Err(inner.wrong_kind(name, ModelKind::Embedding)),
        }
    }

    /// The own name of a model that is loaded on demand and is not there.
    pub fn absent_on_demand(&self, name: &str) -> Option<String> {
        let inner = self.read();
        let (name, model) = inner.find(name).ok()?;
        (model.demand == Demand::OnDemand && model.seats.is_empty()).then(|| name.to_owned())
    }

    /// What keeps the node from taking traffic: required models that do not serve, or that calls which name no model find none.
    pub fn missing(&self) -> Vec<GatewayError> {
        let inner = self.read();
        let required = inner.models.iter().filter(|(_, model)| model.demand == Demand::Required && !model.serves());
        let missing: Vec<_> = required.map(|(name, model)| model.unavailable(name)).collect();
        let nameless = match inner.find(DEFAULT_MODEL) {
            Ok((name, model)) if !model.serves() && model.demand == Demand::Optional => Some(model.unavailable(name)),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        missing.into_iter().chain(nameless).collect()
    }

    /// Every model, sorted by name.
    pub fn list(&self) -> Vec<ModelListing> {
        let (inner, now) = (self.read(), self.now_us());
        inner.models.iter().map(|(name, model)| model.listing(name, inner.aliases_of(name), now)).collect()
    }

    /// One model by its own name.
    pub fn listing(&self, name: &str) -> Option<ModelListing> {
        let (inner, now) = (self.read(), self.now_us());
        inner.models.get(name).map(|model| model.listing(name, inner.aliases_of(name), now))
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, Models> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Models> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Models {
    fn model(&mut self, name: &str) -> &mut Model {
        let new = || Model {
            state: ModelState::Unloaded,
            demand: Demand::default(),
            seats: Vec::new(),
            used_us: AtomicU64::new(0),
        };
        self.models.entry(name.to_owned()).or_insert_with(new)
    }

    fn find(&self, name: &str) -> Result<(&str, &Model), GatewayError> {
        let asked = if name.is_empty() { DEFAULT_MODEL } else { name };
        let found = self.models.get_key_value(asked);
        let found = found.or_else(|| self.models.get_key_value(self.aliases.get(asked)?));
        found.map(|(name, model)| (name.as_str(), model)).ok_or_else(|| GatewayError::ModelNotFound {
            name: asked.to_owned(),
            available: self.models.keys().cloned().collect(),
        })
    }

    fn choose(&self, name: &str, affinity: u64, now_us: u64) -> Result<(&str, ModelReplica), GatewayError> {
        let (name, model) = self.find(name)?;
        model.used_us.store(now_us, Ordering::Relaxed);
        let chosen = choose(&model.seats, affinity).ok_or_else(|| model.unavailable(name))?;
        Ok((name, chosen))
    }

    fn wrong_kind(&self, name: &str, wanted: ModelKind) -> GatewayError {
        let of_kind = self.models.iter().filter(|(_, model)| model.kind() == Some(wanted));
        let available = of_kind.map(|(name, _)| name.clone()).collect();
        GatewayError::WrongKind { name: name.to_owned(), wanted, available }
    }

    fn aliases_of(&self, name: &str) -> Vec<String> {
        let leading =
            self.aliases.iter().filter(|(alias, target)| *target == name && !self.models.contains_key(*alias));
        leading.map(|(alias, _)| alias.clone()).collect()
    }
}

impl Seat {
    /// Whether its replica takes requests. One that has died does not, even before its worker takes it out.
    fn is_open(&self) -> bool {
        !self.replica.lifeline().is_closed()
    }
}

impl Model {
    fn kind(&self) -> Option<ModelKind> {
        self.seats.first().map(|seat| seat.replica.kind())
    }

    fn serves(&self) -> bool {
        self.seats.iter().any(Seat::is_open)
    }

    fn unavailable(&self, name: &str) -> GatewayError {
        let name = name.to_owned();
        match &self.state {
            ModelState::Unloaded => GatewayError::ModelUnloaded { name },
            ModelState::Loading { percent } => GatewayError::ModelLoading { name, percent: *percent },
            ModelState::Warming => GatewayError::ModelLoading { name, percent: 100 },
            ModelState::Draining => GatewayError::ModelUnavailable { name, reason: "it is being unloaded".into() },
            ModelState::Failed { reason } => GatewayError::ModelUnavailable { name, reason: reason.clone() },
            ModelState::Ready if self.seats.is_empty() => {
                GatewayError::ModelUnavailable { name, reason: "it has no replicas".into() }
            }
            ModelState::Ready => GatewayError::ModelUnavailable { name, reason: "its engine has stopped".into() },
        }
    }

    fn listing(&self, name: &str, aliases: Vec<String>, now_us: u64) -> ModelListing {
        let loads = self.seats.iter().map(|seat| seat.replica.load());
        let load = loads.fold(ReplicaLoad::default(), |sum, load| ReplicaLoad {
            running: sum.running + load.running,
            waiting: sum.waiting + load.waiting,
        });
        let dimensions = |seat: &Seat| match &seat.replica {
            ModelReplica::Chat(_) => None,
            ModelReplica::Embedding(replica) => Some(replica.dimensions()),
        };
        ModelListing {
            name: name.to_owned(),
            kind: self.kind(),
            dimensions: self.seats.first().and_then(dimensions),
            aliases,
            state: self.state.clone(),
            replicas: self.seats.len(),
            info: self.seats.first().map(|seat| seat.replica.info().clone()),
            load,
            demand: self.demand,
            unused_for: Duration::from_micros(now_us.saturating_sub(self.used_us.load(Ordering::Relaxed))),
        }
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998) for conversations, overridden where the load is far from even.
fn choose(seats: &[Seat], affinity: u64) -> Option<ModelReplica> {
    if let [only] = seats {
        return only.is_open().then(|| only.replica.clone());
    }
    let living = || seats.iter().filter(|seat| seat.is_open());
    let requests = |seat: &Seat| {
        let load = seat.replica.load();
        load.running + load.waiting
    };
    let idle = living().min_by_key(|seat| requests(seat))?;
    if affinity == 0 {
        return Some(idle.replica.clone());
    }
    let home = living().max_by_key(|seat| rank(affinity, seat.number))?;
    let (least, most) = (requests(idle), requests(home));
    let uneven = most >= least + IMBALANCE_REQUESTS && most > least * IMBALANCE_FACTOR;
    Some(if uneven { idle } else { home }.replica.clone())
}

fn rank(affinity: u64, seat: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (affinity, seat).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
