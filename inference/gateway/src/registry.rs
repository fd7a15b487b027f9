//! Which models this node serves, under which names, and which of a model's replicas answers a turn.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use parlance_inference_engine::{Replica, ReplicaInfo, ReplicaLoad};

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
    /// It is being fetched, read or warmed up. A model that is loaded anew serves meanwhile.
    Loading {
        /// How much is done, 0 to 100.
        percent: u8,
    },
    /// It serves.
    Ready,
    /// The last attempt to load it failed, or its last replica ended.
    Failed {
        /// Why.
        reason: String,
    },
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
    /// How many replicas serve it. May be more than 0 in any state.
    pub replicas: usize,
    /// What they serve, where there are any.
    pub info: Option<ReplicaInfo>,
    /// Their requests together.
    pub load: ReplicaLoad,
}

/// The models of this node. Every method takes effect at once; requests that run on a replaced replica keep it until they end.
#[derive(Default)]
pub struct ModelRegistry {
    inner: RwLock<Models>,
}

#[derive(Default)]
struct Models {
    models: BTreeMap<String, Model>,
    aliases: BTreeMap<String, String>,
    seats: u64,
}

struct Model {
    state: ModelState,
    seats: Vec<Seat>,
}

/// A replica and the number that conversations find it by, whatever becomes of the others.
#[derive(Clone)]
struct Seat {
    number: u64,
    replica: Arc<dyn Replica>,
}

impl ModelRegistry {
    /// No models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports that a model is loading.
    pub fn set_loading(&self, name: &str, percent: u8) {
        self.write().model(name).state = ModelState::Loading { percent: percent.min(100) };
    }

    /// Reports that a model could not be loaded. Replicas of an earlier load go on serving.
    pub fn set_failed(&self, name: &str, reason: impl Into<String>) {
        self.write().model(name).state = ModelState::Failed { reason: reason.into() };
    }

    /// Serves a model by these replicas, in place of those it had.
    pub fn publish(&self, name: &str, replicas: Vec<Arc<dyn Replica>>) {
        let mut inner = self.write();
        let first = inner.seats;
        inner.seats += replicas.len() as u64;
        let seats = (first..).zip(replicas).map(|(number, replica)| Seat { number, replica }).collect();
        *inner.model(name) = Model { state: ModelState::Ready, seats };
    }

    /// Takes one replica out, for example because it died. A model without replicas is [`ModelState::Failed`] for `reason`.
    pub fn withdraw(&self, name: &str, replica: &Arc<dyn Replica>, reason: impl Into<String>) {
        let mut inner = self.write();
        let Some(model) = inner.models.get_mut(name) else { return };
        model.seats.retain(|seat| !Arc::ptr_eq(&seat.replica, replica));
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
    /// [`GatewayError::ModelNotFound`], [`GatewayError::ModelLoading`] or [`GatewayError::ModelUnavailable`].
    pub fn route(&self, name: &str, affinity: u64) -> Result<Arc<dyn Replica>, GatewayError> {
        let inner = self.read();
        let (name, model) = inner.find(name)?;
        choose(&model.seats, affinity).ok_or_else(|| model.unavailable(name))
    }

    /// Whether calls that name no model are served.
    ///
    /// # Errors
    ///
    /// As [`route`](Self::route): why they are not.
    pub fn readiness(&self) -> Result<(), GatewayError> {
        self.route(DEFAULT_MODEL, 0).map(drop)
    }

    /// Every model, sorted by name.
    pub fn list(&self) -> Vec<ModelListing> {
        let inner = self.read();
        inner.models.iter().map(|(name, model)| model.listing(name, inner.aliases_of(name))).collect()
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
        let new = || Model { state: ModelState::Loading { percent: 0 }, seats: Vec::new() };
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

    fn aliases_of(&self, name: &str) -> Vec<String> {
        let leading =
            self.aliases.iter().filter(|(alias, target)| *target == name && !self.models.contains_key(*alias));
        leading.map(|(alias, _)| alias.clone()).collect()
    }
}

impl Model {
    fn unavailable(&self, name: &str) -> GatewayError {
        let name = name.to_owned();
        match &self.state {
            ModelState::Loading { percent } => GatewayError::ModelLoading { name, percent: *percent },
            ModelState::Failed { reason } => GatewayError::ModelUnavailable { name, reason: reason.clone() },
            ModelState::Ready if self.seats.is_empty() => {
                GatewayError::ModelUnavailable { name, reason: "it has no replicas".into() }
            }
            ModelState::Ready => GatewayError::ModelUnavailable { name, reason: "its engine has stopped".into() },
        }
    }

    fn listing(&self, name: &str, aliases: Vec<String>) -> ModelListing {
        let loads = self.seats.iter().map(|seat| seat.replica.load());
        let load = loads.fold(ReplicaLoad::default(), |sum, load| ReplicaLoad {
            running: sum.running + load.running,
            waiting: sum.waiting + load.waiting,
        });
        ModelListing {
            name: name.to_owned(),
            aliases,
            state: self.state.clone(),
            replicas: self.seats.len(),
            info: self.seats.first().map(|seat| seat.replica.info().clone()),
            load,
        }
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998) for conversations, overridden where the load is far from even. A replica that
/// has stopped is passed over, even before its worker takes it out.
fn choose(seats: &[Seat], affinity: u64) -> Option<Arc<dyn Replica>> {
    let living = || seats.iter().filter(|seat| !seat.replica.is_stopped());
    if let [only] = seats {
        return living().next().map(|_| only.replica.clone());
    }
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
