//! Performing what the machine asks for.

use std::{sync::Arc, time::Duration};

use parlance_actors_dialogue::{self as dialogue, Answer, Effect, Joined, RequestId, Tag};
#[cfg(feature = "planted-bugs")]
use parlance_cluster_protocol::SessionEvent;
use parlance_cluster_protocol::{SessionRecord, TurnId};

use super::{OpenStream, SessionMessage, SessionState, Waiting, stream};
use crate::{
    AcceptedTurn, Refusal, metrics,
    request::{BoundKey, SessionAnswer},
    shard::ShardMessage,
};

/// The shard wakes its sessions for deadlines; only what is due sooner gets a timer of its own.
const OWN_TIMER_WITHIN_MS: u64 = 5_000;

impl SessionState {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Propose { tag, record } => self.propose(tag, record),
            Effect::Done { request } => self.on_done(request),
            Effect::Bound { request, target, turn, first } => self.on_bound(request, BoundKey { target, turn, first }),
            Effect::Accepted { request, turn } => self.on_accepted(request, turn),
            Effect::Joined { request, turn, state } => self.on_joined(request, turn, state),
            Effect::Refused { request, refusal } => self.on_refused(request, refusal),
            Effect::StartGeneration(order) => self.start_generation(*order),
            Effect::CancelGeneration { turn, attempt } => self.cancel_generation(turn, attempt),
            Effect::Final { turn, answer } => self.on_final(turn, &answer),
        }
    }

    fn propose(&mut self, tag: Tag, record: SessionRecord) {
        let message = ShardMessage::Append {
            from: self.myself.get_id(),
            session: self.session.clone(),
            record: Arc::new(record),
            tag: tag.0,
        };
        #[cfg(feature = "planted-bugs")]
        let Some(message) = self.acknowledge_too_early(message) else { return };
        // A shard that is stopping takes its sessions along.
        let _stopping = self.shard.cast(message);
    }

    /// Answers the request that waits for a turn as if its record were in the log, which gets it a little later.
    #[cfg(feature = "planted-bugs")]
    fn acknowledge_too_early(&mut self, message: ShardMessage) -> Option<ShardMessage> {
        let ShardMessage::Append { record, .. } = &message else { return Some(message) };
        let SessionEvent::TurnAccepted(accepted) = &record.event else { return Some(message) };
        if !crate::planted::acks_before_append() {
            return Some(message);
        }
        let submits = self.waiting.iter().filter(|(_, waiting)| matches!(waiting, Waiting::Submit { .. }));
        if let Some(request) = submits.map(|(request, _)| *request).max() {
            self.on_accepted(request, accepted.turn);
        }
        self.shard.send_after(crate::planted::APPEND_DELAY, || message);
        None
    }

    /// The text of an open turn, from here on kept until the turn ends.
    pub(super) fn stream(&mut self, turn: TurnId) -> &mut OpenStream {
        self.streams.entry(turn).or_insert_with(OpenStream::new)
    }

    fn on_done(&mut self, request: RequestId) {
        if let Some(Waiting::Done(reply)) = self.waiting.remove(&request) {
            let _gone = reply.send(Ok(SessionAnswer::Done));
        }
    }

    fn on_bound(&mut self, request: RequestId, bound: BoundKey) {
        if let Some(Waiting::Bind(reply)) = self.waiting.remove(&request) {
            let _gone = reply.send(Ok(SessionAnswer::Bound(bound)));
        }
    }

    fn on_accepted(&mut self, request: RequestId, turn: TurnId) {
        let Some(Waiting::Submit { reply, permit }) = self.waiting.remove(&request) else { return };
        let open = self.stream(turn);
        open.hold(permit);
        let accepted = AcceptedTurn { turn, replayed: false, stream: open.watch() };
        let _gone = reply.send(Ok(SessionAnswer::Accepted(accepted)));
    }

    fn on_joined(&mut self, request: RequestId, turn: TurnId, state: Joined) {
        let Some(Waiting::Submit { reply, permit: _ }) = self.waiting.remove(&request) else { return };
        metrics::dedupe_hit();
        let stream = match state {
            Joined::Open => self.stream(turn).watch(),
            Joined::Answered(answer) => stream::ended(&answer),
            Joined::Over => return drop(reply.send(Err(Refusal::IdempotencyConflict))),
        };
        let _gone = reply.send(Ok(SessionAnswer::Accepted(AcceptedTurn { turn, replayed: true, stream })));
    }

    fn on_refused(&mut self, request: RequestId, refusal: dialogue::Refusal) {
        let refusal = self.refusal(refusal);
        match self.waiting.remove(&request) {
            Some(Waiting::Submit { reply, .. }) => drop(reply.send(Err(refusal))),
            Some(Waiting::Bind(reply)) => drop(reply.send(Err(refusal))),
            Some(Waiting::Done(reply)) => drop(reply.send(Err(refusal))),
            None => {}
        }
    }

    fn refusal(&self, refusal: dialogue::Refusal) -> Refusal {
        let invalid = |param: &str| Refusal::InvalidValue { param: param.into(), message: refusal.to_string() };
        match refusal {
            dialogue::Refusal::QueueFull | dialogue::Refusal::SessionBusy => {
                Refusal::SessionBusy { queued: self.services.dialogue_limits.queue }
            }
            dialogue::Refusal::IdempotencyConflict => Refusal::IdempotencyConflict,
            dialogue::Refusal::DedupeFull => {
                Refusal::RateLimited { message: refusal.to_string(), retry_after: Duration::from_secs(1) }
            }
            dialogue::Refusal::NotFound | dialogue::Refusal::Deleted => Refusal::SessionNotFound,
            dialogue::Refusal::MovedOn => Refusal::SessionMovedOn,
            dialogue::Refusal::AlreadyExists => Refusal::SessionExists,
            dialogue::Refusal::InvalidRegenerate | dialogue::Refusal::TurnIdInUse => invalid("turn"),
            dialogue::Refusal::BadPart(_) => invalid("part"),
            dialogue::Refusal::InputTooLarge => Refusal::ContextExceeded(refusal.to_string()),
            dialogue::Refusal::NotRecorded | dialogue::Refusal::NotReady => {
                Refusal::LogUnavailable(refusal.to_string())
            }
        }
    }

    fn on_final(&mut self, turn: TurnId, answer: &Answer) {
        if let Some(open) = self.streams.remove(&turn) {
            open.end(answer);
        }
    }

    /// Retries and checkpoints are due sooner than the shard's sweep for deadlines comes by.
    pub(super) fn schedule_wake(&mut self) {
        let Ok(dialogue) = &self.dialogue else { return };
        let Some(at) = dialogue.wake_at() else { return };
        let wait = at.0.saturating_sub(self.services.clock.now().0);
        if wait <= OWN_TIMER_WITHIN_MS && self.wake_at.is_none_or(|earlier| at < earlier) {
            self.wake_at = Some(at);
            self.myself.send_after(Duration::from_millis(wait), || SessionMessage::Tick);
        }
    }
}
