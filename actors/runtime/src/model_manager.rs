//! The models of a node: which of them are in memory, within a budget that they share.
//!
//! Owns every loading of every model: a supervisor with one worker per replica. One per node, spawned by the node's root supervisor. A
//! restart loses all loaded models and those that were added at run time, and loads again what the configuration wants loaded.
//!
//! ```text
//! unloaded ─▶ loading ─▶ warming ─▶ ready ─▶ draining ─▶ unloaded        a reload: another loading beside the serving one;
//!                └──────────┴─▶ failed                                    when it is whole it takes over, and the old one drains
//! ```
//!
//! A loading that leaves is taken out of the registry first; requests that were routed to its replicas before hold them until they end.

mod entry;
mod memory;
mod state;

use std::{sync::Arc, time::Duration};

use parlance_inference_engine::Replica;
use parlance_inference_gateway::ModelListing;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use thiserror::Error;
use tokio::sync::oneshot;

pub use self::memory::{ModelMemory, NoRoom};
use self::state::ModelManagerState;
use crate::{
    Refusal,
    model_worker::{LoadModel, LoadProgress},
    models::Models,
};

/// How long a question to the manager may take: its handlers never wait for slow work.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A model that the node may serve.
#[derive(Clone)]
pub struct ModelSpec {
    /// The name that it is served under.
    pub name: String,
    /// How one replica is loaded.
    pub load: LoadModel,
    /// How many replicas serve it.
    pub replicas: usize,
    /// What one replica takes at most: its weights, and keys and values of full lanes. In bytes.
    pub replica_bytes: u64,
    /// Whether its memory is kept for it from the start on, and never taken for another model.
    pub pinned: bool,
    /// Whether it is loaded at the start, and the node takes no traffic before. Otherwise the first request loads it.
    pub preload: bool,
}

impl ModelSpec {
    /// One replica, loaded at the start, whose memory counts nothing.
    pub fn new(name: impl Into<String>, load: LoadModel) -> Self {
        Self { name: name.into(), load, replicas: 1, replica_bytes: 0, pinned: false, preload: true }
    }

    /// What all its replicas take at most, in bytes.
    pub fn bytes(&self) -> u64 {
        self.replica_bytes.saturating_mul(self.replicas as u64)
    }
}

/// Why a model is not loaded or unloaded. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelRefusal {
    /// No such model.
    #[error("there is no model `{name}`; known are {known}")]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// The names that there are, comma-separated.
        known: String,
    },
    /// Its source or one of its settings cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// It does not fit beside the others.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It is being loaded; only one loading at a time.
    #[error("the model `{0}` is being loaded already")]
    Busy(String),
    /// It is pinned.
    #[error("the model `{0}` is pinned, so it stays; a reload replaces it")]
    Pinned(String),
    /// The manager does not answer: the node is about to end, or the manager is being restarted.
    #[error("the node's models cannot be changed now")]
    Unavailable,
}

/// One model, for the operator.
#[derive(Debug, Clone)]
pub struct ModelReport {
    /// What the node's clients see of it.
    pub listing: ModelListing,
    /// How many replicas it should have.
    pub replicas: usize,
    /// What they take together at most, in bytes.
    pub bytes: u64,
    /// What it takes of the budget now, with what still drains, in bytes.
    pub held_bytes: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is loaded at the start.
    pub preload: bool,
    /// Earlier loadings of it that finish what they have taken on.
    pub draining: usize,
}

/// All models, for the operator.
#[derive(Debug, Clone)]
pub struct ModelsReport {
    /// What they may take together, in bytes.
    pub budget_bytes: u64,
    /// What they take of it, with what is kept for pinned ones, in bytes.
    pub held_bytes: u64,
    /// The models, by name.
    pub models: Vec<ModelReport>,
}

/// Names one loading of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadingId {
    pub(crate) model: Arc<str>,
    pub(crate) number: u64,
}

type Answer<T> = oneshot::Sender<Result<T, ModelRefusal>>;

pub(crate) enum ModelManagerMessage {
    /// Load a model; again, if `reload` and it is loaded. `spec` takes the place of what is known of it. The answer comes when it is
    /// decided, not when it is done.
    Load {
        name: String,
        spec: Option<Box<ModelSpec>>,
        reload: bool,
        reply: Answer<()>,
    },
    /// Take a model out of memory. Requests that run at the deadline are ended.
    Unload {
        name: String,
        deadline: Duration,
        reply: Answer<()>,
    },
    /// Load a model for a request that waits for it, if somebody waits.
    Demand {
        name: String,
        reply: Option<oneshot::Sender<Result<(), Refusal>>>,
    },
    /// What there is.
    Report {
        reply: oneshot::Sender<ModelsReport>,
    },
    /// A worker's news.
    Worker {
        loading: LoadingId,
        number: usize,
        news: WorkerNews,
    },
    Internal(Internal),
}

pub(crate) enum WorkerNews {
    Progressed(LoadProgress),
    Loaded(Result<Arc<dyn Replica>, String>),
    /// Its engine ended; its supervisor has it loaded again.
    Lost,
}

pub(crate) enum Internal {
    /// Nothing of this loading is left in memory.
    Left(LoadingId),
}

impl ractor::Message for ModelManagerMessage {}

#[derive(Clone)]
pub(crate) struct ModelManagerArguments {
    pub(crate) specs: Vec<ModelSpec>,
    pub(crate) memory: ModelMemory,
    /// How long a replaced or evicted loading may finish what it has taken on.
    pub(crate) drain: Duration,
    pub(crate) models: Models,
}

#[derive(Clone, Copy)]
pub(crate) struct ModelManager;

/// Reaches the manager. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ManagerHandle(ActorRef<ModelManagerMessage>);

impl ManagerHandle {
    /// Decides on loading a model, which then happens in the background.
    ///
    /// # Errors
    ///
    /// Why it is not loaded.
    pub(crate) async fn load(&self, name: String, spec: Option<ModelSpec>, reload: bool) -> Result<(), ModelRefusal> {
        self.ask(|reply| ModelManagerMessage::Load { name, spec: spec.map(Box::new), reload, reply }).await
    }

    /// Takes a model out of service; its memory is free once its requests have ended.
    ///
    /// # Errors
    ///
    /// Why it stays.
    pub(crate) async fn unload(&self, name: String, deadline: Duration) -> Result<(), ModelRefusal> {
        self.ask(|reply| ModelManagerMessage::Unload { name, deadline, reply }).await
    }

    /// What there is.
    ///
    /// # Errors
    ///
    /// [`ModelRefusal::Unavailable`].
    pub(crate) async fn report(&self) -> Result<ModelsReport, ModelRefusal> {
        let (reply, answer) = oneshot::channel();
        self.0.cast(ModelManagerMessage::Report { reply }).map_err(|_| ModelRefusal::Unavailable)?;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, answer).await;
        answered.ok().and_then(Result::ok).ok_or(ModelRefusal::Unavailable)
    }

    /// Has a model loaded and waits until it serves. Without a bound of its own.
    ///
    /// # Errors
    ///
    /// Why it will not.
    pub(crate) async fn demand(&self, name: &str) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        // A manager that is gone is being restarted; what is routed then is told so.
        let _gone = self.0.cast(ModelManagerMessage::Demand { name: name.to_owned(), reply: Some(reply) });
        answer.await.unwrap_or(Ok(()))
    }

    /// Has a model loaded for somebody who looks for it by himself.
    pub(crate) fn call_for(&self, name: &str) {
        let _gone = self.0.cast(ModelManagerMessage::Demand { name: name.to_owned(), reply: None });
    }

    pub(crate) fn tell(&self, loading: &LoadingId, number: usize, news: WorkerNews) {
        // A manager that is gone took its loadings along.
        let _gone = self.0.cast(ModelManagerMessage::Worker { loading: loading.clone(), number, news });
    }

    async fn ask<T>(&self, message: impl FnOnce(Answer<T>) -> ModelManagerMessage) -> Result<T, ModelRefusal> {
        let (reply, answer) = oneshot::channel();
        self.0.cast(message(reply)).map_err(|_| ModelRefusal::Unavailable)?;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, answer).await;
        answered.ok().and_then(Result::ok).unwrap_or(Err(ModelRefusal::Unavailable))
    }
}

impl Actor for ModelManager {
    type Msg = ModelManagerMessage;
    type State = ModelManagerState;
    type Arguments = ModelManagerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ModelManagerMessage>,
        arguments: ModelManagerArguments,
    ) -> Result<ModelManagerState, ActorProcessingErr> {
        arguments.models.set_manager(ManagerHandle(myself.clone()));
        Ok(ModelManagerState::start(myself, arguments).await)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ModelManagerMessage>,
        message: ModelManagerMessage,
        state: &mut ModelManagerState,
    ) -> Result<(), ActorProcessingErr> {
        // Nobody waits for an answer any more whose receiver is gone.
        match message {
            ModelManagerMessage::Load { name, spec, reload, reply } => {
                drop(reply.send(state.on_load(&name, spec.map(|spec| *spec), reload).await));
            }
            ModelManagerMessage::Unload { name, deadline, reply } => drop(reply.send(state.on_unload(&name, deadline))),
            ModelManagerMessage::Demand { name, reply } => state.on_demand(&name, reply).await,
            ModelManagerMessage::Report { reply } => drop(reply.send(state.on_report())),
            ModelManagerMessage::Worker { loading, number, news } => state.on_worker(&loading, number, news),
            ModelManagerMessage::Internal(Internal::Left(loading)) => state.on_left(&loading).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ModelManagerMessage>,
        event: SupervisionEvent,
        state: &mut ModelManagerState,
    ) -> Result<(), ActorProcessingErr> {
        // A supervisor that ends otherwise was told to.
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            state.on_loading_failed(&cell, &error.to_string());
        }
        Ok(())
    }
}
