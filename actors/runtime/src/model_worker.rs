//! The owner of one loaded model replica: loads it, feeds its engine thread, loads it again when the engine dies.
//!
//! One per replica, spawned by the node's model supervisor. It fails when its engine ends, and a restart loads the model anew. Lost is
//! what the engine was computing: its requests are told, and those that had not started are tried again by whoever waits for them.

use std::sync::Arc;

use parlance_inference_engine::{CancelHandle, EngineError, EventSink, GenerateRequest, Replica};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::{sync::oneshot, task::AbortHandle};

use crate::models::Models;

/// Loads a model, down to its warm-up. Runs on a thread that may block; the reason of a failure is for the operator.
/// The argument takes the progress in per cent.
pub type LoadModel = Arc<dyn Fn(&(dyn Fn(u8) + Sync)) -> Result<Arc<dyn Replica>, String> + Send + Sync>;

/// A model that the node serves.
#[derive(Clone)]
pub struct ModelSpec {
    /// The name that it is served under.
    pub name: String,
    /// How it is loaded.
    pub load: LoadModel,
}

pub(crate) enum ModelWorkerMessage {
    /// Hand a request to the engine. The reply is the handle that cancels it; the rest is told to `sink`.
    Generate {
        request: Box<GenerateRequest>,
        sink: Box<dyn EventSink>,
        reply: oneshot::Sender<Result<CancelHandle, EngineError>>,
    },
    Internal(Internal),
}

pub(crate) enum Internal {
    /// The model was loaded, or not.
    Loaded(Result<Arc<dyn Replica>, String>),
    /// The replica ended by itself.
    Ended,
}

impl ractor::Message for ModelWorkerMessage {}

#[derive(Clone)]
pub(crate) struct ModelWorkerArguments {
    pub(crate) spec: ModelSpec,
    pub(crate) models: Models,
}

#[derive(Clone, Copy)]
pub(crate) struct ModelWorker;

pub(crate) struct ModelWorkerState {
    name: String,
    myself: ActorRef<ModelWorkerMessage>,
    models: Models,
    /// `None` while it loads. With what waits for its end.
    replica: Option<(Arc<dyn Replica>, AbortHandle)>,
}

/// Reaches one model worker.
#[derive(Clone)]
pub(crate) struct ModelWorkerHandle(ActorRef<ModelWorkerMessage>);

impl ModelWorkerHandle {
    /// Has the request generated; what becomes of it is told to `sink`.
    ///
    /// # Errors
    ///
    /// Why the engine did not take it; then nothing is told.
    pub(crate) async fn generate(
        &self,
        request: GenerateRequest,
        sink: Box<dyn EventSink>,
    ) -> Result<CancelHandle, EngineError> {
        let (reply, answer) = oneshot::channel();
        let message = ModelWorkerMessage::Generate { request: Box::new(request), sink, reply };
        self.0.cast(message).map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }
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
        let ModelWorkerArguments { spec, models } = arguments;
        models.registry().set_loading(&spec.name, 0);
        let (loader, name, actor) = (spec.load, spec.name.clone(), myself.clone());
        let progress_to = models.clone();
        tokio::task::spawn_blocking(move || {
            let loaded = loader(&|percent| progress_to.registry().set_loading(&name, percent));
            let _stopping = actor.cast(ModelWorkerMessage::Internal(Internal::Loaded(loaded)));
        });
        Ok(ModelWorkerState { name: spec.name, myself, models, replica: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<ModelWorkerMessage>,
        message: ModelWorkerMessage,
        state: &mut ModelWorkerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ModelWorkerMessage::Generate { request, sink, reply } => state.on_generate(*request, sink, reply)?,
            ModelWorkerMessage::Internal(Internal::Loaded(result)) => state.on_loaded(result),
            ModelWorkerMessage::Internal(Internal::Ended) => state.on_ended()?,
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<ModelWorkerMessage>,
        state: &mut ModelWorkerState,
    ) -> Result<(), ActorProcessingErr> {
        state.withdraw("it was stopped");
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
    fn on_generate(
        &mut self,
        request: GenerateRequest,
        sink: Box<dyn EventSink>,
        reply: oneshot::Sender<Result<CancelHandle, EngineError>>,
    ) -> Result<(), EngineError> {
        let submitted =
            self.replica.as_ref().ok_or(EngineError::Stopped).and_then(|(replica, _)| replica.submit(request, sink));
        let died = matches!(submitted, Err(EngineError::Stopped)) && self.replica.is_some();
        // A caller that is gone has dropped what its sink reports to.
        let _gone = reply.send(submitted);
        if died { self.on_ended() } else { Ok(()) }
    }

    /// The error has the supervisor load the model again.
    fn on_ended(&mut self) -> Result<(), EngineError> {
        self.withdraw("its engine has stopped");
        Err(EngineError::Stopped)
    }

    fn withdraw(&mut self, reason: &str) {
        if let Some((replica, watch)) = self.replica.take() {
            watch.abort();
            self.models.detach(&self.name, &replica, reason);
        }
    }

    fn on_loaded(&mut self, result: Result<Arc<dyn Replica>, String>) {
        match result {
            Ok(replica) => {
                tracing::info!(model = self.name, digest = replica.info().digest, "model is ready");
                let (ended, actor) = (replica.stopped(), self.myself.clone());
                let watch = tokio::spawn(async move {
                    ended.await;
                    let _stopping = actor.cast(ModelWorkerMessage::Internal(Internal::Ended));
                });
                self.replica = Some((replica.clone(), watch.abort_handle()));
                self.models.attach(&self.name, replica, ModelWorkerHandle(self.myself.clone()));
            }
            Err(reason) => {
                // Loading it again would fail again: what is wrong is outside.
                tracing::error!(model = self.name, reason, "model cannot be loaded");
                self.models.registry().set_failed(&self.name, reason);
            }
        }
    }
}
