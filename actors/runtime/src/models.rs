//! The models of this node: which worker answers, and what exactly it is asked.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use parlance_actors_dialogue::GenerationOrder;
use parlance_cluster_protocol::{GenerationOptions, History, Item, ModelTag, Role};
use parlance_inference_engine::{CancelHandle, EmbeddingReplica, EngineError, EventSink, GenerateRequest, Replica};
use parlance_inference_gateway::{
    CallSyntax, GatewayError, ModelRegistry, ToolUse, Turn, call_syntax, prepare_turn, validate_options,
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
    time::{Instant, timeout},
};

use crate::{Refusal, clock::Clock, model_manager::ManagerHandle};

/// Reaches every model of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Models(Arc<Shared>);

struct Shared {
    registry: ModelRegistry,
    /// The living incarnation of the manager, which loads what is loaded on demand.
    manager: RwLock<Option<ManagerHandle>>,
    /// How long a request waits for a model that is loaded on demand.
    patience: Duration,
}

/// A generation that is ready to be handed to its replica, which lives at least as long as this: it may be replaced meanwhile.
pub(crate) struct Planned {
    pub(crate) replica: Arc<dyn Replica>,
    pub(crate) request: GenerateRequest,
    pub(crate) tag: ModelTag,
}

impl Planned {
    /// Has the request generated; what becomes of it is told to `sink`.
    ///
    /// # Errors
    ///
    /// Why the engine did not take it; then nothing is told.
    pub(crate) fn start(self, sink: Box<dyn EventSink>) -> Result<CancelHandle, EngineError> {
        self.replica.submit(self.request, sink)
    }
}

/// A generation outside any session.
pub(crate) struct Stateless<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) input: &'a [&'a Item],
    pub(crate) options: &'a GenerationOptions,
    pub(crate) seed: u64,
    pub(crate) logprobs: Option<u32>,
    pub(crate) tools: Option<&'a ToolUse>,
    pub(crate) deadline: Instant,
    /// Whether it was admitted before, by a replica that has died since.
    pub(crate) promised: bool,
}

impl Models {
    /// `patience`: how long a request waits for a model that is loaded on demand.
    pub(crate) fn new(registry: ModelRegistry, patience: Duration) -> Self {
        Self(Arc::new(Shared { registry, manager: RwLock::default(), patience }))
    }

    pub(crate) fn registry(&self) -> &ModelRegistry {
        &self.0.registry
    }

    /// A new incarnation of the manager.
    pub(crate) fn set_manager(&self, manager: ManagerHandle) {
        *self.0.manager.write().unwrap_or_else(PoisonError::into_inner) = Some(manager);
    }

    /// The manager, if it lives.
    pub(crate) fn manager(&self) -> Option<ManagerHandle> {
        self.0.manager.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has a model loaded that is loaded on demand and is not there, and waits for it up to the stated bound. Says nothing of other
    /// models: whether a model serves is told when a request is routed to it.
    ///
    /// # Errors
    ///
    /// Why it cannot be loaded.
    pub(crate) async fn fetch(&self, model: &str) -> Result<(), Refusal> {
        let Some(name) = self.0.registry.absent_on_demand(model) else { return Ok(()) };
        let Some(manager) = self.manager() else { return Ok(()) };
        match timeout(self.0.patience, manager.demand(&name)).await {
            Ok(there) => there,
            Err(_late) => Ok(()),
        }
    }

    /// Whether it makes sense to ask for the model again that was refused so. One that is loaded on demand is called for.
    pub(crate) fn may_come(&self, model: &str, refusal: &Refusal) -> bool {
        let on_demand = self.0.registry.absent_on_demand(model);
        if let (Some(name), Some(manager)) = (&on_demand, self.manager()) {
            manager.call_for(name);
        }
        match refusal {
            Refusal::ModelNotReady { .. } => true,
            Refusal::ModelUnloaded { .. } => on_demand.is_some(),
            _ => false,
        }
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

    /// Whether requests wait for the model on this node.
    pub(crate) fn is_crowded(&self, model: &str) -> bool {
        let name = self.0.registry.canonical_name(model);
        name.ok().and_then(|name| self.0.registry.listing(&name)).is_some_and(|listing| listing.load.waiting > 0)
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
        Ok(Planned { replica, request, tag })
    }

    /// Renders a generation outside any session.
    pub(crate) fn plan_stateless(&self, stateless: Stateless<'_>) -> Result<Planned, Refusal> {
        let replica = self.0.registry.route(&stateless.options.model, 0)?;
        let request = prepare(
            &*replica,
            Turn {
                seed: stateless.seed,
                logprobs: stateless.logprobs,
                tools: stateless.tools,
                deadline: Some(stateless.deadline.into_std()),
                tenant: stateless.tenant,
                promised: stateless.promised,
                ..turn(stateless.input, stateless.options, History::Given)
            },
        )?;
        let tag = tag(&*replica);
        Ok(Planned { replica, request, tag })
    }

    /// How the calls of tools are written in what the model replies, if it may have any.
    ///
    /// # Errors
    ///
    /// If the model is not there, or has no tools.
    pub(crate) fn call_syntax(&self, model: &str, tools: &ToolUse) -> Result<Option<CallSyntax>, Refusal> {
        let replica = self.0.registry.route(model, 0)?;
        Ok(call_syntax(&*replica, tools)?)
    }

    /// The replica of an embedding model that has least to do.
    pub(crate) fn embedding(&self, model: &str) -> Result<Arc<dyn EmbeddingReplica>, Refusal> {
        Ok(self.0.registry.route_embedding(model)?)
    }
}

/// Compiling a format may take tenths of a second, for which no other task of a worker thread shall wait.
fn prepare(replica: &dyn Replica, turn: Turn<'_>) -> Result<GenerateRequest, GatewayError> {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    let compiles = turn.options.format.is_some() || turn.tools.is_some();
    if compiles && matches!(flavor, Ok(RuntimeFlavor::MultiThread)) {
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
        tools: None,
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
            GatewayError::ModelUnloaded { name } => Self::ModelUnloaded { model: name },
            GatewayError::ModelUnavailable { name, reason } => Self::ModelNotReady { model: name, reason },
            wrong @ GatewayError::WrongKind { .. } => {
                Self::InvalidValue { param: "model".into(), message: wrong.to_string() }
            }
            GatewayError::InvalidValue { param, message } => {
                Self::InvalidValue { param: param.into(), message: format!("`{param}` {message}") }
            }
            GatewayError::Engine(error) => Self::Engine(error),
        }
    }
}
