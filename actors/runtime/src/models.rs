//! The models of this node: which worker answers, and what exactly it is asked.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use parlance_actors_dialogue::GenerationOrder;
use parlance_cluster_protocol::{GenerationOptions, History, Item, ModelTag, Role};
use parlance_inference_engine::{GenerateRequest, Replica};
use parlance_inference_gateway::{GatewayError, ModelRegistry, Turn, prepare_turn, validate_options};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
    time::Instant,
};

use crate::{Refusal, clock::Clock, model_worker::ModelWorkerHandle};

/// Reaches every model of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Models(Arc<Shared>);

struct Shared {
    registry: ModelRegistry,
    /// The worker of each published replica.
    workers: RwLock<Vec<(Arc<dyn Replica>, ModelWorkerHandle)>>,
}

/// A generation that is ready to be handed to its worker.
pub(crate) struct Planned {
    pub(crate) worker: ModelWorkerHandle,
    pub(crate) request: GenerateRequest,
    pub(crate) tag: ModelTag,
}

/// A generation outside any session.
pub(crate) struct Stateless<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) input: &'a [&'a Item],
    pub(crate) options: &'a GenerationOptions,
    pub(crate) seed: u64,
    pub(crate) logprobs: Option<u32>,
    pub(crate) deadline: Instant,
    /// Whether it was admitted before, by a replica that has died since.
    pub(crate) promised: bool,
}

impl Models {
    pub(crate) fn new(registry: ModelRegistry) -> Self {
        Self(Arc::new(Shared { registry, workers: RwLock::default() }))
    }

    pub(crate) fn registry(&self) -> &ModelRegistry {
        &self.0.registry
    }

    /// Serves `model` by a worker's replica. Replicas of the same model that other workers brought go on serving.
    pub(crate) fn attach(&self, model: &str, replica: Arc<dyn Replica>, worker: ModelWorkerHandle) {
        let mut workers = self.0.workers.write().unwrap_or_else(PoisonError::into_inner);
        workers.push((replica, worker));
        let of_model = workers.iter().map(|(replica, _)| replica).filter(|replica| replica.info().name == model);
        self.0.registry.publish(model, of_model.cloned().collect());
    }

    pub(crate) fn detach(&self, model: &str, replica: &Arc<dyn Replica>, reason: &str) {
        let mut workers = self.0.workers.write().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|(known, _)| !Arc::ptr_eq(known, replica));
        self.0.registry.withdraw(model, replica, reason);
    }

    /// Checks what can be checked before a turn is accepted: options, model, and that what is to be answered fits its context. Answers
    /// how many tokens that has; earlier turns are mostly in a cache, and are not counted.
    pub(crate) fn check(
        &self,
        options: &GenerationOptions,
        input: &[Item],
        instructions: Option<&str>,
        history: History,
    ) -> Result<u32, Refusal> {
        validate_options(options)?;
        let replica = self.0.registry.route(&options.model, 0)?;
        let latest = match history {
            History::Session => input.iter().rfind(|item| item.role != Role::System),
            History::Given => None,
        };
        let items: Vec<&Item> = latest.map_or_else(|| input.iter().collect(), |latest| vec![latest]);
        let instructions = instructions.map(|text| Item { role: Role::System, text: text.to_owned() });
        let items: Vec<&Item> = instructions.iter().chain(items).collect();
        if items.is_empty() {
            return Ok(0);
        }
        Ok(prepare(&*replica, turn(&items, options, History::Given))?.prompt.token_count)
    }

    /// Whether a turn of that size may be accepted now. A model that is not ready has its turns wait for it.
    ///
    /// # Errors
    ///
    /// [`Refusal::Engine`] with the time after which it is worth another try.
    pub(crate) fn admits(&self, model: &str, tenant: &str, prompt_tokens: u32) -> Result<(), Refusal> {
        match self.0.registry.route(model, 0) {
            Ok(replica) => Ok(replica.admits(tenant, prompt_tokens)?),
            Err(_not_ready) => Ok(()),
        }
    }

    /// Renders a session's turn for the replica that is to answer it. `messages` are the order's, as the guard lets them through.
    pub(crate) fn plan(
        &self,
        clock: Clock,
        tenant: &str,
        order: &GenerationOrder,
        messages: &[&Item],
    ) -> Result<Planned, Refusal> {
        let replica = self.0.registry.route(&order.options.model, order.affinity)?;
        let tag = tag(&*replica);
        let continues = order.forced_model.as_ref() == Some(&tag);
        let forced = if continues { order.forced.clone() } else { Vec::new() };
        let left = Duration::from_millis(order.deadline.0.saturating_sub(clock.now().0));
        let request = prepare(
            &*replica,
            Turn {
                seed: order.seed,
                forced,
                deadline: Some((Instant::now() + left).into_std()),
                tenant,
                affinity: order.affinity,
                promised: true,
                ..turn(messages, &order.options, order.history)
            },
        )?;
        self.planned(&replica, request, tag)
    }

    /// Renders a generation outside any session.
    pub(crate) fn plan_stateless(&self, stateless: Stateless<'_>) -> Result<Planned, Refusal> {
        let replica = self.0.registry.route(&stateless.options.model, 0)?;
        let request = prepare(
            &*replica,
            Turn {
                seed: stateless.seed,
                logprobs: stateless.logprobs,
                deadline: Some(stateless.deadline.into_std()),
                tenant: stateless.tenant,
                promised: stateless.promised,
                ..turn(stateless.input, stateless.options, History::Given)
            },
        )?;
        let tag = tag(&*replica);
        self.planned(&replica, request, tag)
    }

    fn planned(&self, replica: &Arc<dyn Replica>, request: GenerateRequest, tag: ModelTag) -> Result<Planned, Refusal> {
        let workers = self.0.workers.read().unwrap_or_else(PoisonError::into_inner);
        let found = workers.iter().find(|(known, _)| Arc::ptr_eq(known, replica));
        let gone = || Refusal::ModelNotReady { model: tag.name.clone(), reason: "its worker is restarting".into() };
        let worker = found.map(|(_, worker)| worker.clone()).ok_or_else(gone)?;
        Ok(Planned { worker, request, tag })
    }
}

/// Compiling a format may take tenths of a second, for which no other task of a worker thread shall wait.
fn prepare(replica: &dyn Replica, turn: Turn<'_>) -> Result<GenerateRequest, GatewayError> {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if turn.options.format.is_some() && matches!(flavor, Ok(RuntimeFlavor::MultiThread)) {
        return block_in_place(|| prepare_turn(replica, turn));
    }
    prepare_turn(replica, turn)
}

fn turn<'a>(items: &'a [&'a Item], options: &'a GenerationOptions, history: History) -> Turn<'a> {
    Turn {
        items,
        options,
        seed: 0,
        logprobs: None,
        forced: Vec::new(),
        deadline: None,
        tenant: "",
        affinity: 0,
        promised: false,
        drop_oldest: history == History::Session,
    }
}

fn tag(replica: &dyn Replica) -> ModelTag {
    let info = replica.info();
    ModelTag { name: info.name.clone(), digest: info.digest.clone(), numerics: info.numerics.clone() }
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::ModelNotFound { name, available } => {
                Self::ModelNotFound { model: name, available: available.join(", ") }
            }
            GatewayError::ModelLoading { name, percent } => {
                Self::ModelNotReady { model: name, reason: format!("it is loading ({percent} %)") }
            }
            GatewayError::ModelUnavailable { name, reason } => Self::ModelNotReady { model: name, reason },
            GatewayError::InvalidValue { param, message } => {
                Self::InvalidValue { param: param.into(), message: format!("`{param}` {message}") }
            }
            GatewayError::Engine(error) => Self::Engine(error),
        }
    }
}
