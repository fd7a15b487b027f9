//! Generations outside any session: nothing is recorded, and they end with their client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parlance_cluster_protocol::{FinishReason, GenerationOptions, Item, ModelTag, Replied, TurnFailed, TurnId, Usage};
use parlance_inference_engine::{EngineError, EventSink, Finish, GenerateEvent, TokenUsage};
use parlance_inference_gateway::ToolUse;
use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

use super::{Node, Services};
use crate::{
    Refusal, TurnOutcome, TurnStream,
    admission::Permit,
    guarded::{Blockable, Guarded, Reviewed},
    models::Stateless,
    turn::{Cancellation, TurnWriter},
};

/// What is asked of a model outside any session.
#[derive(Debug, Clone)]
pub struct StatelessRequest {
    /// A fresh id.
    pub id: TurnId,
    /// Whose it is.
    pub tenant: String,
    /// The whole prompt.
    pub input: Vec<Item>,
    /// How the reply is generated.
    pub options: GenerationOptions,
    /// The seed; drawn at random where absent.
    pub seed: Option<u64>,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub logprobs: Option<u32>,
    /// The tools, where there are any.
    pub tools: Option<ToolUse>,
}

/// Replicas that a generation may lose, one after the other, before it has shown anything. Then it fails.
const MOST_DEATHS: u32 = 3;
/// How often a generation whose replica died looks for another.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The longest that it waits for a place there.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

impl Node {
    /// Generates a reply. Dropping the stream ends it within one step. Where the replica dies before there is anything of the reply,
    /// it is tried again on another.
    ///
    /// # Errors
    ///
    /// Why nothing is generated.
    pub async fn generate(&self, request: StatelessRequest) -> Result<TurnStream, Refusal> {
        self.services.admit_by_rate(&request.tenant).await?;
        let permit = self.services.stateless.admit(&request.tenant)?;
        self.services.models.fetch(&request.options.model).await?;
        let syntax = |tools| self.services.models.call_syntax(&request.options.model, tools);
        let calls = request.tools.as_ref().map(syntax).transpose()?.flatten();
        let generation = Arc::new(Generation {
            _permit: permit,
            seed: request.seed.unwrap_or_else(rand::random),
            deadline: Instant::now() + self.services.limits.turn_deadline,
            services: self.services.clone(),
            runtime: Handle::current(),
            writer: TurnWriter::new(),
            cancellation: Cancellation::default(),
            deaths: AtomicU32::new(0),
            request,
        });
        let mut stream = generation.writer.watch();
        stream.cancel_on_drop(generation.cancellation.clone());
        stream.set_call_syntax(calls);
        match generation.clone().attempt().await {
            Err(Refusal::Engine(EngineError::Stopped)) => generation.died(),
            begun => begun?,
        }
        Ok(stream)
    }
}

/// A generation and what all its attempts need.
struct Generation {
    services: Arc<Services>,
    /// For attempts that are begun from an engine's thread.
    runtime: Handle,
    request: StatelessRequest,
    seed: u64,
    deadline: Instant,
    /// Dropped with the last attempt; where that left no end, the stream is interrupted.
    writer: TurnWriter,
    cancellation: Cancellation,
    deaths: AtomicU32,
    _permit: Permit,
}

impl Generation {
    async fn attempt(self: Arc<Self>) -> Result<(), Refusal> {
        let (services, request) = (&self.services, &self.request);
        let reviewed = Reviewed::new(&services.guards, &request.tenant, request.input.iter().collect())?;
        let planned = services.models.plan_stateless(Stateless {
            tenant: &request.tenant,
            input: &reviewed.messages(),
            options: &request.options,
            seed: self.seed,
            logprobs: request.logprobs,
            tools: request.tools.as_ref(),
            deadline: self.deadline,
            promised: self.deaths.load(Ordering::Relaxed) > 0,
        })?;
        let sink = Sink { generation: self.clone(), model: planned.tag.clone(), has_begun: false };
        let sink = Guarded::new(&services.guards, &request.tenant, sink)?;
        let handle = planned.start(Box::new(sink))?;
        self.cancellation.cover(handle);
        Ok(())
    }

    /// Looks for another replica, unless too many have died.
    fn died(self: Arc<Self>) {
        if self.deaths.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_DEATHS {
            return self.fail(&Refusal::Engine(EngineError::Stopped));
        }
        tracing::warn!(model = self.request.options.model, "the replica died, trying another");
        self.runtime.clone().spawn(self.again());
    }

    /// Tries until a replica has taken it up, the client has left, or it is too late.
    async fn again(self: Arc<Self>) {
        while Instant::now() < self.deadline && self.writer.has_watchers() {
            let wait = match self.clone().attempt().await {
                Ok(()) => return,
                Err(Refusal::Engine(EngineError::Stopped)) => LOOK_AGAIN,
                Err(Refusal::Engine(EngineError::QueueFull { retry_after })) => retry_after.min(LONGEST_LOOK),
                Err(refusal) if self.services.models.may_come(&self.request.options.model, &refusal) => LOOK_AGAIN,
                Err(refusal) => return self.fail(&refusal),
            };
            time::sleep(wait.max(LOOK_AGAIN)).await;
        }
        self.fail(&Refusal::Engine(EngineError::DeadlineExceeded));
    }

    fn fail(&self, refusal: &Refusal) {
        let (code, message) = (refusal.code().to_owned(), refusal.to_string());
        let failed = TurnFailed { turn: self.request.id, attempt: 1, code, message };
        self.writer.end(TurnOutcome::Failed(failed.into()));
    }
}

/// Writes one attempt's events to the generation's stream.
struct Sink {
    generation: Arc<Generation>,
    model: ModelTag,
    /// Whether there is anything of a reply.
    has_begun: bool,
}

impl EventSink for Sink {
    fn send(&mut self, event: GenerateEvent) -> bool {
        let generation = &self.generation;
        match event {
            GenerateEvent::Tokens { text, logprobs, .. } => {
                self.has_begun = true;
                generation.writer.push_scored(&text, logprobs);
            }
            GenerateEvent::Finished { finish, usage } => generation.writer.end(self.replied(finish, usage)),
            GenerateEvent::Failed(EngineError::Stopped) if !self.has_begun => generation.clone().died(),
            GenerateEvent::Failed(error) => generation.fail(&error.into()),
        }
        self.generation.writer.has_watchers()
    }
}

impl Blockable for Sink {
    fn blocked(&mut self, refusal: Refusal) {
        self.generation.fail(&refusal);
    }
}

impl Sink {
    fn replied(&self, finish: Finish, usage: TokenUsage) -> TurnOutcome {
        TurnOutcome::Replied(
            Replied {
                turn: self.generation.request.id,
                attempt: 1,
                text: self.generation.writer.text(),
                finish: finish_reason(finish),
                usage: token_counts(usage),
                model: self.model.clone(),
            }
            .into(),
        )
    }
}

pub(crate) fn finish_reason(finish: Finish) -> FinishReason {
    match finish {
        Finish::Stop => FinishReason::Stop,
        Finish::Length => FinishReason::Length,
    }
}

pub(crate) fn token_counts(usage: TokenUsage) -> Usage {
    Usage { prompt_tokens: usage.prompt, completion_tokens: usage.completion, cached_tokens: usage.cached }
}
