//! Models of other nodes answering for sessions of this one, and ours for theirs.
//!
//! ```text
//! session's node                                                node with a model
//! session/generation ── generate ──▶ Workers ══ Generate ══▶ Workers::serve ──▶ Models::plan ──▶ engine thread
//!      guard, session ◀── Worked ◀── Workers ◀══ Generated … ══ a task per reply ◀── its events ◀──┘
//! ```
//!
//! The guard stays with the session: prompts arrive reviewed, and tokens are reviewed where they come back. When the link is lost the listener is
//! dropped, which is what happens when an engine dies: the turn is tried again, here or elsewhere, from its recorded tokens.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_actors_dialogue::GenerationOrder;
use parlance_cluster_node::{
    identity::{Incarnation, NodeName},
    links::{Failure, Links},
};
use parlance_cluster_protocol::{
    History, Item, ModelTag, Origin, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnAccepted, TurnId,
    WireError,
    peer::{
        self, Answer, Answered, CheckTurn, Done, Finished, Generate, Generated, GeneratedKind, ModelName, More,
        Started, Unwatch,
    },
};
use parlance_inference_engine::{EngineError, Finish, GenerateEvent, TokenUsage};
use prost::Message as _;
use tokio::sync::mpsc;

use super::{
    kind,
    peers::{MALFORMED, Peers, cast_patiently},
    wire,
};
use crate::{Refusal, node::Services};

/// Replies that other nodes make for this one, and this one for others, each.
const MOST_REPLIES: usize = 100_000;
/// How long the answer to a question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Hears what becomes of a reply that another node makes. Dropped before the end, it learns that the worker died.
pub(crate) trait Worked: Send {
    /// A model has taken it up. `false`: nobody listens any more; so below.
    fn started(&mut self, model: ModelTag, continues: bool, prompt_tokens: u32) -> bool;
    /// More of it, or its end.
    fn event(&mut self, event: GenerateEvent) -> bool;
    /// There will be none.
    fn failed(&mut self, refusal: Refusal);
}

struct Listening {
    to: Incarnation,
    /// Absent while it is told something.
    listener: Option<Box<dyn Worked>>,
}

/// The way to other nodes' models. One per node in a cluster.
pub(crate) struct Workers {
    peers: Arc<Peers>,
    next: AtomicU64,
    /// By number: what other nodes generate for this one.
    asked: Mutex<HashMap<u64, Listening>>,
    /// By asker and number: what this node generates for others. Dropping it ends the generation.
    serving: Mutex<HashMap<(Incarnation, u64), mpsc::UnboundedSender<()>>>,
}

impl Workers {
    pub(super) fn new(peers: Arc<Peers>) -> Self {
        Self { peers, next: AtomicU64::new(1), asked: Mutex::default(), serving: Mutex::default() }
    }

    /// Has a node make the reply to a turn. `messages` are the order's, as the guard lets them through.
    ///
    /// # Errors
    ///
    /// Why it does not; then `listener` hears nothing.
    pub(crate) async fn generate(
        &self,
        at: &Incarnation,
        turn: Generate,
        listener: Box<dyn Worked>,
    ) -> Result<(), Refusal> {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut asked = self.asked();
            if asked.len() >= MOST_REPLIES {
                let what = "replies by other nodes".into();
                return Err(Refusal::Overloaded { what, retry_after: Duration::from_secs(1) });
            }
            asked.insert(stream, Listening { to: at.clone(), listener: Some(listener) });
        }
        let ask = Generate { stream, ..turn }.encode_to_vec().into();
        let answer = self.peers.ask(&at.name, kind::GENERATE, ask, ANSWER_WITHIN).await;
        let refusal = match answer.map(|answer| answer.answered) {
            Ok(Some(Answered::Done(_))) => return Ok(()),
            Ok(Some(Answered::Refused(refused))) => wire::decode_refusal(refused),
            Ok(_) => Refusal::Engine(EngineError::ModelFailed("another node gave an answer that does not fit".into())),
            // It may have begun: then what it sends finds nobody, and it is told so.
            Err(_) => Refusal::Engine(EngineError::Stopped),
        };
        self.asked().remove(&stream);
        Err(refusal)
    }

    /// Asks a node that serves the model whether a turn fits it, and how many tokens it has.
    ///
    /// # Errors
    ///
    /// Why it does not fit, or why the node does not say.
    pub(crate) async fn check(&self, at: &NodeName, turn: Bytes) -> Result<u32, Refusal> {
        let ask = CheckTurn { turn }.encode_to_vec().into();
        match self.peers.ask(at, kind::CHECK, ask, ANSWER_WITHIN).await.map(|answer| answer.answered) {
            Ok(Some(Answered::Fits(tokens))) => Ok(tokens),
            Ok(Some(Answered::Refused(refused))) => Err(wire::decode_refusal(refused)),
            Ok(_) => Err(Refusal::Engine(EngineError::Stopped)),
            Err(error) => {
                tracing::debug!(%at, %error, "cannot ask a node about its model");
                Err(Refusal::Engine(EngineError::Stopped))
            }
        }
    }

    /// More of a reply that this node asked for.
    pub(super) fn on_generated(&self, from: &Incarnation, generated: Generated) {
        let Generated { stream, kind } = generated;
        let listener = match self.asked().get_mut(&stream).filter(|known| known.to == *from) {
            Some(known) => known.listener.take(),
            None => None,
        };
        let Some(mut listener) = listener else { return self.refuse(from, stream) };
        let goes_on = match kind {
            Some(GeneratedKind::Started(Started { model, continues, prompt_tokens })) => {
                listener.started(model.map(tag).unwrap_or_default(), continues, prompt_tokens)
            }
            Some(GeneratedKind::More(More { ids, text })) => {
                listener.event(GenerateEvent::Tokens { ids, text, logprobs: Vec::new() })
            }
            Some(GeneratedKind::Finished(finished)) => {
                listener.event(finish(finished));
                return self.forget(stream);
            }
            Some(GeneratedKind::Failed(refused)) => {
                listener.failed(wire::decode_refusal(refused));
                return self.forget(stream);
            }
            // A listener that is dropped before the end knows what that means.
            Some(GeneratedKind::Died(_)) | None => return self.forget(stream),
        };
        match self.asked().get_mut(&stream).filter(|_| goes_on) {
            Some(known) => known.listener = Some(listener),
            // Nobody listens, or the link was lost meanwhile.
            None => self.refuse(from, stream),
        }
    }

    fn forget(&self, stream: u64) {
        let _known = self.asked().remove(&stream);
    }

    fn refuse(&self, from: &Incarnation, stream: u64) {
        self.forget(stream);
        self.peers.cast(&from.name, kind::UNWANTED, Unwatch { stream }.encode_to_vec().into());
    }

    /// A node does not want a reply of ours any more.
    pub(super) fn on_unwatch(&self, from: &Incarnation, unwatch: Unwatch) {
        self.serving().remove(&(from.clone(), unwatch.stream));
    }

    /// The link is lost: what came over it comes no more, and what was made for it is not wanted.
    pub(super) fn on_link_down(&self, peer: &Incarnation) {
        let lost: Vec<Listening> = {
            let mut asked = self.asked();
            let streams: Vec<u64> = asked.iter().filter(|(_, known)| known.to == *peer).map(|(n, _)| *n).collect();
            streams.into_iter().filter_map(|stream| asked.remove(&stream)).collect()
        };
        // Outside the lock: whoever hears of it may ask another node.
        drop(lost);
        self.serving().retain(|(to, _), _| to != peer);
    }

    /// Makes a reply for a session of another node.
    pub(super) fn serve(
        self: &Arc<Self>,
        services: &Arc<Services>,
        from: &Incarnation,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let (workers, services, from) = (self.clone(), services.clone(), from.clone());
        Box::pin(async move {
            let malformed = |error: WireError| Failure { code: MALFORMED, reason: error.to_string() };
            let ask: Generate = peer::decode("request for a reply", payload).map_err(malformed)?;
            let answered = match workers.begin(&services, &from, ask).map_err(malformed)? {
                Ok(()) => Answered::Done(Done {}),
                Err(refusal) => Answered::Refused(wire::encode_refusal(&refusal)),
            };
            Ok(Answer { answered: Some(answered) }.encode_to_vec().into())
        })
    }

    fn begin(
        self: &Arc<Self>,
        services: &Arc<Services>,
        from: &Incarnation,
        ask: Generate,
    ) -> Result<Result<(), Refusal>, WireError> {
        let stream = ask.stream;
        let (tenant, order) = order(ask, services.clock.now())?;
        let Some(links) = self.peers.links() else { return Ok(Err(Refusal::Engine(EngineError::Stopped))) };
        let messages: Vec<&Item> = order.messages.iter().map(|item| &**item).collect();
        let planned = match services.models.plan(services.clock, &tenant, &order, &messages) {
            Ok(planned) => planned,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let started = Started {
            model: Some(name(&planned.tag)),
            continues: !planned.request.forced.is_empty(),
            prompt_tokens: planned.request.prompt.token_count,
        };
        // Bound: the tokens of one reply.
        let (events, told) = mpsc::unbounded_channel();
        let (wanted, unwanted) = mpsc::unbounded_channel();
        {
            let mut serving = self.serving();
            if serving.len() >= MOST_REPLIES {
                let what = "replies for other nodes".into();
                return Ok(Err(Refusal::Overloaded { what, retry_after: Duration::from_secs(1) }));
            }
            serving.insert((from.clone(), stream), wanted);
        }
        if let Err(error) = planned.start(Box::new(move |event| events.send(event).is_ok())) {
            self.serving().remove(&(from.clone(), stream));
            return Ok(Err(error.into()));
        }
        let (workers, to) = (Arc::downgrade(self), from.clone());
        tokio::spawn(async move {
            pump(&*links, &to.name, stream, started, told, unwanted).await;
            if let Some(workers) = workers.upgrade() {
                workers.serving().remove(&(to, stream));
            }
        });
        Ok(Ok(()))
    }

    /// Says whether a turn fits a model of this node.
    pub(super) fn serve_check(services: &Arc<Services>, payload: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let services = services.clone();
        Box::pin(async move {
            let malformed = |error: WireError| Failure { code: MALFORMED, reason: error.to_string() };
            let CheckTurn { turn } = peer::decode("question about a model", payload).map_err(malformed)?;
            let (_, turn) = accepted(turn).map_err(malformed)?;
            let fits = services.models.check(&turn.options, &turn.input, turn.instructions.as_deref(), turn.history);
            let answered = match fits {
                Ok(tokens) => Answered::Fits(tokens),
                Err(refusal) => Answered::Refused(wire::encode_refusal(&refusal)),
            };
            Ok(Answer { answered: Some(answered) }.encode_to_vec().into())
        })
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<u64, Listening>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serving(&self) -> MutexGuard<'_, HashMap<(Incarnation, u64), mpsc::UnboundedSender<()>>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What asks another node for an order's reply; [`Workers::generate`] gives it its number.
pub(crate) fn request(tenant: &str, order: &GenerationOrder, messages: &[&Item], now: TimestampMs) -> Generate {
    let turn = TurnAccepted {
        turn: order.turn,
        event_id: String::new(),
        body_hash: None,
        input: messages.iter().map(|item| (*item).clone()).collect(),
        history: order.history,
        options: order.options.clone(),
        seed: order.seed,
        origin: Origin::ChatCompletion,
        regenerates: None,
        instructions: None,
        deadline: order.deadline,
    };
    Generate {
        stream: 0,
        turn: encode_turn(tenant, turn),
        attempt: order.attempt,
        forced: order.forced.clone(),
        forced_model: order.forced_model.as_ref().map(name),
        affinity: order.affinity,
        left_ms: order.deadline.0.saturating_sub(now.0),
    }
}

/// A turn, on its way to a node with its model.
pub(crate) fn encode_turn(tenant: &str, turn: TurnAccepted) -> Bytes {
    let (session, event) = (SessionKey::api(tenant, ""), SessionEvent::TurnAccepted(turn));
    SessionRecord { session, user: None, key_id: 0, at: TimestampMs(0), event }.encode()
}

fn accepted(turn: Bytes) -> Result<(String, TurnAccepted), WireError> {
    match SessionRecord::decode(turn)? {
        SessionRecord { session, event: SessionEvent::TurnAccepted(turn), .. } => Ok((session.tenant, turn)),
        _ => Err(WireError::Malformed { what: "request for a reply", reason: "it is no turn".into() }),
    }
}

fn order(ask: Generate, now: TimestampMs) -> Result<(String, GenerationOrder), WireError> {
    let (tenant, turn) = accepted(ask.turn)?;
    let order = GenerationOrder {
        turn: turn.turn,
        attempt: ask.attempt,
        messages: turn.input.into_iter().map(Arc::new).collect(),
        history: turn.history,
        options: turn.options,
        seed: turn.seed,
        forced: ask.forced,
        forced_model: ask.forced_model.map(tag),
        deadline: TimestampMs(now.0.saturating_add(ask.left_ms.min(MOST_LEFT_MS))),
        affinity: ask.affinity,
    };
    Ok((tenant, order))
}

/// A day: no turn has longer.
const MOST_LEFT_MS: u64 = 24 * 60 * 60 * 1_000;

fn name(tag: &ModelTag) -> ModelName {
    ModelName { name: tag.name.clone(), digest: tag.digest.clone(), numerics: tag.numerics.clone() }
}

fn tag(name: ModelName) -> ModelTag {
    ModelTag { name: name.name, digest: name.digest, numerics: name.numerics }
}

fn finish(finished: Finished) -> GenerateEvent {
    GenerateEvent::Finished {
        finish: if finished.by_length { Finish::Length } else { Finish::Stop },
        usage: TokenUsage { prompt: finished.prompt, completion: finished.completion, cached: finished.cached },
    }
}

/// Sends what an engine says, until it has ended, or nobody wants it.
async fn pump(
    links: &dyn Links,
    to: &NodeName,
    stream: u64,
    started: Started,
    mut told: mpsc::UnboundedReceiver<GenerateEvent>,
    mut unwanted: mpsc::UnboundedReceiver<()>,
) {
    let mut next = Some(GeneratedKind::Started(started));
    loop {
        if let Some(kind) = next.take() {
            let ends = !matches!(kind, GeneratedKind::Started(_) | GeneratedKind::More(_));
            let payload: Bytes = Generated { stream, kind: Some(kind) }.encode_to_vec().into();
            if cast_patiently(links, to, kind::GENERATED, payload).await.is_err() || ends {
                return;
            }
        }
        next = Some(tokio::select! {
            biased;
            _ = unwanted.recv() => return,
            event = told.recv() => said(event),
        });
    }
}

fn said(event: Option<GenerateEvent>) -> GeneratedKind {
    match event {
        None => GeneratedKind::Died(Done {}),
        Some(GenerateEvent::Finished { finish, usage }) => GeneratedKind::Finished(Finished {
            by_length: finish == Finish::Length,
            prompt: usage.prompt,
            completion: usage.completion,
            cached: usage.cached,
        }),
        Some(GenerateEvent::Failed(error)) => GeneratedKind::Failed(wire::encode_refusal(&error.into())),
        Some(GenerateEvent::Tokens { ids, text, .. }) => GeneratedKind::More(More { ids, text }),
    }
}

/// What a turn would be, for [`Workers::check`].
pub(crate) fn turn_to_check(
    options: &parlance_cluster_protocol::GenerationOptions,
    input: &[Item],
    instructions: Option<&str>,
    history: History,
) -> TurnAccepted {
    TurnAccepted {
        turn: TurnId(0),
        event_id: String::new(),
        body_hash: None,
        input: input.to_vec(),
        history,
        options: options.clone(),
        seed: 0,
        origin: Origin::ChatCompletion,
        regenerates: None,
        instructions: instructions.map(str::to_owned),
        deadline: TimestampMs(0),
    }
}
