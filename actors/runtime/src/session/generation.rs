//! The running generation of a session: started on a model worker, reported back as messages.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use parlance_actors_dialogue::{Command, DialogueError, Failure, GenerationOrder};
use parlance_cluster_node::identity::Incarnation;
use parlance_cluster_protocol::{FinishReason, Item, ModelTag, TurnId, Usage};
use parlance_inference_engine::{CancelHandle, EngineError, EventSink, GenerateEvent};
use ractor::ActorRef;
use tokio::time;

use super::{Internal, SessionMessage, SessionState};
use crate::{
    Refusal,
    cluster::workers::{self, Worked},
    guarded::{Blockable, Guarded, Reviewed},
    node::{Services, finish_reason, token_counts},
};

/// How long an attempt waits behind a failure that may pass.
const RETRY_AFTER_MS: u64 = 200;

/// How often an attempt looks whether its model is ready.
const MODEL_POLL: Duration = Duration::from_millis(20);
/// The longest that an attempt waits until it asks a full queue again.
const LONGEST_POLL: Duration = Duration::from_secs(1);

/// What a generation reports.
pub(crate) enum Event {
    /// A model has taken it up.
    Started { model: ModelTag, continues: bool, prompt_tokens: u32 },
    /// This ends it early.
    Cancellable(CancelHandle),
    /// More of the reply.
    Tokens { ids: Vec<u32>, text: String },
    /// The reply is complete.
    Finished { finish: FinishReason, usage: Usage },
    /// There will be no reply from this attempt.
    Failed(Failure),
}

/// The attempt that this session waits for.
pub(super) struct Generation {
    turn: TurnId,
    attempt: u32,
    cancelled: Arc<AtomicBool>,
    handle: Option<CancelHandle>,
}

impl Generation {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(handle) = &self.handle {
            handle.cancel();
        }
    }
}

impl Drop for Generation {
    /// A session that dies leaves no lane occupied.
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Reports one attempt to its session.
#[derive(Clone)]
struct Reporter {
    session: ActorRef<SessionMessage>,
    turn: TurnId,
    attempt: u32,
    cancelled: Arc<AtomicBool>,
}

impl Reporter {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// `false`: nobody listens any more.
    fn report(&self, event: Event) -> bool {
        let internal = Internal::Generation { turn: self.turn, attempt: self.attempt, event };
        !self.is_cancelled() && self.session.cast(SessionMessage::Internal(internal)).is_ok()
    }
}

/// The engine's end of a [`Reporter`]. Dropped before the end, it reports that the engine died, if the engine had taken the request.
struct Sink {
    reporter: Reporter,
    ended: bool,
    /// Set by the first of two: the engine has taken the request, this was dropped. The second one reports.
    taken: Arc<AtomicBool>,
}

impl EventSink for Sink {
    fn send(&mut self, event: GenerateEvent) -> bool {
        let event = match event {
            GenerateEvent::Tokens { ids, text, .. } => Event::Tokens { ids, text },
            GenerateEvent::Finished { finish, usage } => {
                Event::Finished { finish: finish_reason(finish), usage: token_counts(usage) }
            }
            GenerateEvent::Failed(error) => Event::Failed(failure(&error.into())),
        };
        self.ended |= !matches!(event, Event::Tokens { .. });
        self.reporter.report(event)
    }
}

impl Blockable for Sink {
    fn blocked(&mut self, refusal: Refusal) {
        self.ended = true;
        self.reporter.report(Event::Failed(failure(&refusal)));
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.ended && self.taken.swap(true, Ordering::Relaxed) {
            self.reporter.report(Event::Failed(broke_off("the model worker stopped")));
        }
    }
}

impl SessionState {
    pub(super) fn start_generation(&mut self, order: GenerationOrder) {
        #[cfg(feature = "planted-bugs")]
        crate::planted::taste(&order.messages);
        let (turn, attempt) = (order.turn, order.attempt);
        self.stream(turn).restart();
        let cancelled = Arc::new(AtomicBool::new(false));
        self.generation = Some(Generation { turn, attempt, cancelled: cancelled.clone(), handle: None });
        let reporter = Reporter { session: self.myself.clone(), turn, attempt, cancelled };
        let (services, session) = (self.services.clone(), self.session.clone());
        tokio::spawn(async move {
            let ran = AssertUnwindSafe(run(&services, &session.tenant, order, &reporter)).catch_unwind().await;
            match ran {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => drop(reporter.report(Event::Failed(failure(&refusal)))),
                Err(_panic) => drop(reporter.report(Event::Failed(broke_off("the prompt could not be prepared")))),
            }
        });
    }

    pub(super) fn cancel_generation(&mut self, turn: TurnId, attempt: u32) {
        self.generation.take_if(|running| running.turn == turn && running.attempt == attempt);
    }

    pub(super) fn on_generation(&mut self, turn: TurnId, attempt: u32, event: Event) -> Result<(), DialogueError> {
        let current = self.generation.as_mut().filter(|running| running.turn == turn && running.attempt == attempt);
        // A word of an attempt that was given up.
        let Some(running) = current else { return Ok(()) };
        match event {
            Event::Cancellable(handle) => {
                running.handle = Some(handle);
                Ok(())
            }
            Event::Started { model, continues, prompt_tokens } => {
                self.tell(Command::GenerationStarted { turn, attempt, model, continues, prompt_tokens })
            }
            Event::Tokens { ids, text } => {
                self.stream(turn).push(&text);
                self.tell(Command::TokensArrived { turn, attempt, ids, text })
            }
            Event::Finished { finish, usage } => {
                self.generation = None;
                self.tell(Command::GenerationFinished { turn, attempt, finish, usage })
            }
            Event::Failed(failure) => {
                self.generation = None;
                self.tell(Command::GenerationFailed { turn, attempt, failure })
            }
        }
    }
}

/// Asks until a model takes the order up. An accepted turn waits for a model that is loading, as after every start, for one whose engine
/// has died, and for a place where others wait too; its deadline ends that.
async fn run(services: &Services, tenant: &str, order: GenerationOrder, reporter: &Reporter) -> Result<(), Refusal> {
    let reviewed = Reviewed::new(&services.guards, tenant, order.messages.iter().map(|item| &**item).collect())?;
    let messages = reviewed.messages();
    loop {
        let wait = match attempt(services, tenant, &order, &messages, reporter).await {
            Err(Refusal::Engine(EngineError::Stopped)) => MODEL_POLL,
            Err(Refusal::Engine(EngineError::QueueFull { retry_after })) => retry_after.clamp(MODEL_POLL, LONGEST_POLL),
            Err(refusal) if services.models.may_come(&order.options.model, &refusal) => MODEL_POLL,
            ended => return ended,
        };
        if reporter.is_cancelled() {
            return Ok(());
        }
        time::sleep(wait).await;
    }
}

/// Has a model answer: one of this node, or of another one where this one has none, or has others waiting for it.
async fn attempt(
    services: &Services,
    tenant: &str,
    order: &GenerationOrder,
    messages: &[&Item],
    reporter: &Reporter,
) -> Result<(), Refusal> {
    let elsewhere = |idle| services.worker_elsewhere(&order.options.model, order.affinity, idle);
    if services.cluster.is_some()
        && services.models.is_crowded(&order.options.model)
        && let Some(node) = elsewhere(true)
        && attempt_there(services, tenant, order, messages, reporter, &node).await.is_ok()
    {
        return Ok(());
    }
    match attempt_here(services, tenant, order, messages, reporter).await {
        Err(refusal) if is_missing(&refusal) => match elsewhere(false) {
            Some(node) => attempt_there(services, tenant, order, messages, reporter, &node).await,
            None => Err(refusal),
        },
        answer => answer,
    }
}

/// Whether another node may have the model that this one lacks.
pub(crate) fn is_missing(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::ModelNotFound { .. } | Refusal::ModelUnloaded { .. } | Refusal::ModelNotReady { .. })
}

/// Has a model of another node answer.
async fn attempt_there(
    services: &Services,
    tenant: &str,
    order: &GenerationOrder,
    messages: &[&Item],
    reporter: &Reporter,
    node: &Incarnation,
) -> Result<(), Refusal> {
    let Some(cluster) = &services.cluster else { return Err(Refusal::Engine(EngineError::Stopped)) };
    let taken = Arc::new(AtomicBool::new(false));
    let sink = Sink { reporter: reporter.clone(), ended: false, taken: taken.clone() };
    let sink = Guarded::new(&services.guards, tenant, sink)?;
    let listener = Box::new(There { reporter: reporter.clone(), sink });
    let turn = workers::request(tenant, order, messages, services.clock.now());
    cluster.workers.generate(node, turn, listener).await?;
    if taken.swap(true, Ordering::Relaxed) {
        reporter.report(Event::Failed(broke_off("the model's node is gone")));
    }
    Ok(())
}

/// Hears what a model of another node says.
struct There {
    reporter: Reporter,
    sink: Guarded<Sink>,
}

impl Worked for There {
    fn started(&mut self, model: ModelTag, continues: bool, prompt_tokens: u32) -> bool {
        self.reporter.report(Event::Started { model, continues, prompt_tokens })
    }

    fn event(&mut self, event: GenerateEvent) -> bool {
        self.sink.send(event)
    }

    fn failed(&mut self, refusal: Refusal) {
        self.sink.fail(refusal);
    }
}

/// Has a model of this node answer.
async fn attempt_here(
    services: &Services,
    tenant: &str,
    order: &GenerationOrder,
    messages: &[&Item],
    reporter: &Reporter,
) -> Result<(), Refusal> {
    let planned = services.models.plan(services.clock, tenant, order, messages)?;
    let started = Event::Started {
        model: planned.tag.clone(),
        continues: !planned.request.forced.is_empty(),
        prompt_tokens: planned.request.prompt.token_count,
    };
    if !reporter.report(started) {
        return Ok(());
    }
    let taken = Arc::new(AtomicBool::new(false));
    let sink = Sink { reporter: reporter.clone(), ended: false, taken: taken.clone() };
    let sink = Guarded::new(&services.guards, tenant, sink)?;
    let handle = planned.start(Box::new(sink))?;
    reporter.report(Event::Cancellable(handle));
    if taken.swap(true, Ordering::Relaxed) {
        reporter.report(Event::Failed(broke_off("the model worker stopped")));
    }
    Ok(())
}

/// An attempt that ended without a word of its own.
fn broke_off(message: &str) -> Failure {
    Failure { code: "model_failed".into(), message: message.into(), retry_after_ms: Some(RETRY_AFTER_MS) }
}

/// Which failures may pass, so that another attempt makes sense.
fn failure(refusal: &Refusal) -> Failure {
    let passing = matches!(refusal.code(), "overloaded" | "model_failed");
    Failure {
        code: refusal.code().into(),
        message: refusal.to_string(),
        retry_after_ms: passing.then_some(RETRY_AFTER_MS),
    }
}
