//! The owner of one loaded model replica, of either kind: loads it, reports it to the model manager, and fails when its engine ends, so that its
//! supervisor has it loaded again.
//!
//! One per replica, spawned by the supervisor of one loading of a model. A restart loses what the engine was computing: its requests are
//! told, and those that had shown nothing are tried again by whoever waits for them. Requests do not pass through here: they are handed
//! to the replica.

use std::sync::Arc;

use parlance_inference_engine::{EngineError, ModelReplica};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use crate::model_manager::{LoadingId, ManagerHandle, WorkerNews};

/// What a loader reports while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadProgress {
    /// It fetches or reads.
    Reading {
        /// How much is done, 0 to 100.
        percent: u8,
    },
    /// It runs the first steps.
    Warming,
}

/// Loads a model, down to its warm-up. Runs on a thread that may block; the reason of a failure is for the operator.
/// The argument takes the progress.
pub type LoadModel = Arc<dyn Fn(&(dyn Fn(LoadProgress) + Sync)) -> Result<ModelReplica, String> + Send + Sync>;

pub(crate) enum ModelWorkerMessage {
    Internal(Internal),
}

pub(crate) enum Internal {
    /// The model was loaded, or not.
    Loaded(Result<ModelReplica, String>),
    /// The replica's engine ended.
    Ended,
}

impl ractor::Message for ModelWorkerMessage {}

#[derive(Clone)]
pub(crate) struct ModelWorkerArguments {
    pub(crate) load: LoadModel,
    /// Which loading of which model it belongs to.
    pub(crate) loading: LoadingId,
    /// Its number among the replicas of that loading.
    pub(crate) number: usize,
    /// Held by every thread that loads: the loading's memory is in use until all are dropped.
    pub(crate) busy: Arc<watch::Sender<()>>,
    pub(crate) manager: ManagerHandle,
}

#[derive(Clone, Copy)]
pub(crate) struct ModelWorker;

pub(crate) struct ModelWorkerState {
    myself: ActorRef<ModelWorkerMessage>,
    loading: LoadingId,
    number: usize,
    manager: ManagerHandle,
}

impl Actor for ModelWorker {
    type Msg = ModelWorkerMessage;
    type State = ModelWorkerState;
    type Arguments = ModelWorkerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ModelWorkerMessage>,
        arguments: ModelWorkerArguments,
    ) -> Result<ModelWorkerState, ActorProcessingErr> {
        let ModelWorkerArguments { load, loading, number, busy, manager } = arguments;
        let (actor, of, reports_to) = (myself.clone(), loading.clone(), manager.clone());
        tokio::task::spawn_blocking(move || {
            let loaded = load(&|progress| reports_to.tell(&of, number, WorkerNews::Progressed(progress)));
            let _stopping = actor.cast(ModelWorkerMessage::Internal(Internal::Loaded(loaded)));
            drop(busy);
        });
        Ok(ModelWorkerState { myself, loading, number, manager })
    }

    async fn handle(
        &self,
        _myself: ActorRef<ModelWorkerMessage>,
        message: ModelWorkerMessage,
        state: &mut ModelWorkerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ModelWorkerMessage::Internal(Internal::Loaded(result)) => state.on_loaded(result),
            ModelWorkerMessage::Internal(Internal::Ended) => state.on_ended()?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ModelWorkerMessage>,
        _event: SupervisionEvent,
        _state: &mut ModelWorkerState,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        Ok(())
    }
}

impl ModelWorkerState {
    /// A model that cannot be loaded would fail again: what is wrong is outside. So the worker stays, and its manager decides.
    fn on_loaded(&mut self, result: Result<ModelReplica, String>) {
        if let Ok(replica) = &result {
            let (lifeline, actor) = (replica.lifeline(), self.myself.clone());
            tokio::spawn(async move {
                lifeline.ended().await;
                let _stopped = actor.cast(ModelWorkerMessage::Internal(Internal::Ended));
            });
        }
        self.manager.tell(&self.loading, self.number, WorkerNews::Loaded(result));
    }

    fn on_ended(&mut self) -> Result<(), EngineError> {
        self.manager.tell(&self.loading, self.number, WorkerNews::Lost);
        Err(EngineError::Stopped)
    }
}
