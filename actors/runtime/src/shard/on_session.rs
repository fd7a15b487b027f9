//! The shard and its sessions: starting, passivating, restarting and parking them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parlance_cluster_protocol::{SessionEvent, SessionKey, SessionRecord, TurnFailed, TurnId};
use ractor::{ActorId, ActorRef};
use tokio::time::Instant;

use super::{LiveSession, SWEEP_EVERY, ShardState};
use crate::{
    Refusal, metrics,
    request::SessionCommand,
    session::{Session, SessionArguments, SessionMessage},
    supervisor::{RestartPolicy, Verdict},
};

/// A session that panics this often is parked: its input does it, and the next restart would only do it again.
const RESTARTS: RestartPolicy = RestartPolicy {
    max_restarts: 3,
    within: Duration::from_secs(60),
    first_delay: Duration::from_millis(20),
    max_delay: Duration::from_secs(1),
};
/// How often a session is brought back that owes an answer and could not be loaded, because its records cannot be read.
const LOAD_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// How often a shard looks for sessions that could leave while the node holds as many as it may.
const SEEK_ROOM_EVERY: Duration = Duration::from_millis(10);
/// How many leave at once then, so that not every new session looks through all.
const ROOM_TO_MAKE: usize = 64;
/// The most sessions that one sweep passivates, so that a sweep stays short.
const PASSIVATIONS_PER_SWEEP: usize = 1_000;

impl ShardState {
    pub(super) fn on_command(&mut self, session: Arc<SessionKey>, command: SessionCommand) {
        if !self.serves() {
            return self.put_off(session, command);
        }
        if let Some(refusal) = self.refusal_for(&session, &command) {
            return command.refuse(refusal);
        }
        let actor = match self.live_actor(&session) {
            None if !self.take_place() => {
                return command
                    .refuse(Refusal::Overloaded { what: "sessions in memory".into(), retry_after: SWEEP_EVERY });
            }
            None => self.bring_in(&session),
            live => live,
        };
        match actor {
            // A session that is just failing drops the command; its reply port tells the caller.
            Some(actor) => {
                if actor.cast(SessionMessage::Command(command)).is_ok()
                    && let Some(live) = self.live.get_mut(&session)
                {
                    live.commands += 1;
                }
            }
            None => command.refuse(Refusal::Parked((*session).clone())),
        }
    }

    pub(super) fn on_handled(&mut self, from: ActorId, session: &SessionKey) {
        if let Some(live) = self.live.get_mut(session).filter(|live| live.actor.get_id() == from) {
            live.commands = live.commands.saturating_sub(1);
        }
    }

    /// What keeps the shard from handing a command on.
    fn refusal_for(&self, session: &SessionKey, command: &SessionCommand) -> Option<Refusal> {
        if command.request.makes_records() && self.tail.lag() >= self.services.limits.projection_lag {
            return Some(Refusal::RecordsUnavailable("the record store lags behind the log".into()));
        }
        let failed = self.failed.get(session)?;
        let restarting = |retry_after| Some(Refusal::Overloaded { what: "session restart".into(), retry_after });
        if self.is_unsettled(session) {
            return restarting(RESTARTS.first_delay);
        }
        if failed.parked {
            return Some(Refusal::Parked(session.clone()));
        }
        restarting(failed.not_before?.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?)
    }

    /// Whether an incarnation that is gone left proposals whose fate is open. A new one must know it before it starts.
    fn is_unsettled(&self, session: &SessionKey) -> bool {
        !self.live.contains_key(session) && self.proposed.iter().any(|proposed| *proposed.session == *session)
    }

    fn is_parked(&self, session: &SessionKey) -> bool {
        self.failed.get(session).is_some_and(|failed| failed.parked)
    }

    /// The actor of a session that is in memory, which it stays for now.
    fn live_actor(&mut self, session: &SessionKey) -> Option<ActorRef<SessionMessage>> {
        let live = self.live.get_mut(session)?;
        live.last_used = Instant::now();
        Some(live.actor.clone())
    }

    /// The actor of a session that owes an answer; `None` if it is parked. It needs no place of its own: it has one among the open
    /// turns.
    fn owing_session(&mut self, session: &Arc<SessionKey>) -> Option<ActorRef<SessionMessage>> {
        if let Some(actor) = self.live_actor(session) {
            return Some(actor);
        }
        self.services.census.session_started();
        self.bring_in(session)
    }

    /// Starts a session that is not in memory, and whose place was taken. `None`, and no place is taken, if it is parked.
    fn bring_in(&mut self, session: &Arc<SessionKey>) -> Option<ActorRef<SessionMessage>> {
        if self.is_parked(session) {
            self.services.census.session_ended();
            return None;
        }
        let arguments = SessionArguments {
            session: session.clone(),
            shard: self.myself.clone(),
            services: self.services.clone(),
            tail: self.tail.of(session),
        };
        match Session::spawn(arguments, self.myself.get_cell()) {
            Ok(actor) => {
                self.by_actor.insert(actor.get_id(), session.clone());
                let live = LiveSession { actor: actor.clone(), last_used: Instant::now(), commands: 0, proposed: 0 };
                self.live.insert(session.clone(), live);
                Some(actor)
            }
            Err(error) => {
                self.services.census.session_ended();
                tracing::error!(shard = self.shard.0, %error, "cannot start a session");
                None
            }
        }
    }

    /// Every turn without a final answer goes on.
    pub(super) fn recover_open_turns(&mut self) {
        let sessions: BTreeSet<_> = self.open.iter().map(|(_, turn)| turn.session.clone()).collect();
        for session in sessions {
            self.recover(&Arc::new(session));
        }
    }

    fn recover(&mut self, session: &Arc<SessionKey>) {
        if let Some(actor) = self.owing_session(session) {
            let _failing = actor.cast(SessionMessage::Recover);
        }
    }

    /// Brings sessions back that owe an answer and are not in memory: their records could not be read.
    pub(super) fn sweep_unloaded(&mut self) {
        if !self.serves() || self.recovered.elapsed() < LOAD_AGAIN_EVERY {
            return;
        }
        let now = Instant::now();
        self.recovered = now;
        // One that failed has its own pauses.
        let pauses = |session: &SessionKey| {
            self.failed.get(session).and_then(|failed| failed.not_before).is_some_and(|due| due > now)
        };
        let is_due =
            |session: &SessionKey| !self.live.contains_key(session) && !pauses(session) && !self.is_unsettled(session);
        let open = self.open.iter().map(|(_, turn)| &turn.session);
        let owing: BTreeSet<_> = open.filter(|session| is_due(session)).cloned().collect();
        for session in owing {
            self.recover(&Arc::new(session));
        }
    }

    /// Wakes the sessions of overdue turns, whatever became of the actor or the worker that should have ended them.
    pub(super) fn sweep_deadlines(&mut self) {
        if !self.serves() {
            return;
        }
        let now = self.services.clock.now();
        let overdue: BTreeSet<_> =
            self.open.iter().filter(|(_, turn)| turn.deadline <= now).map(|(_, turn)| turn.session.clone()).collect();
        for session in overdue {
            if !self.is_unsettled(&session)
                && let Some(actor) = self.owing_session(&Arc::new(session))
            {
                let _failing = actor.cast(SessionMessage::Tick);
            }
        }
    }

    /// Takes a place in memory for one more session. Where the node is at its bound, others leave for it if they can.
    fn take_place(&mut self) -> bool {
        let services = self.services.clone();
        let take = || services.census.session_starts_below(services.limits.live_sessions);
        if take() {
            return true;
        }
        // Sessions leave once their records are projected: to look again sooner is wasted.
        if self.sought_room.is_none_or(|sought| sought.elapsed() >= SEEK_ROOM_EVERY) {
            self.sought_room = Some(Instant::now());
            self.passivate_idle(ROOM_TO_MAKE);
            self.start_projection();
        }
        take()
    }

    /// How many sessions in memory this shard has beyond its share of the node's bound.
    pub(super) fn excess_sessions(&self) -> usize {
        let share = self.services.limits.live_sessions / usize::from(self.services.log.shards()).max(1);
        self.live.len().saturating_sub(share.max(1))
    }

    /// Sessions that were idle for long leave memory, and the longest idle of those that are too many.
    pub(super) fn sweep_idle(&mut self) {
        self.passivate_idle(self.excess_sessions());
    }

    /// The `excess` longest idle sessions leave memory, and all that were idle for long; of both those whose records the store has. While
    /// the store does not serve none leaves: none could come back, nor could another take its place.
    fn passivate_idle(&mut self, excess: usize) {
        if self.services.dependencies.are_records_down() {
            return;
        }
        let idle = self.services.limits.session_idle;
        let busy: BTreeSet<_> = self.open.iter().map(|(_, turn)| &turn.session).collect();
        let may_leave = |session: &SessionKey, live: &LiveSession| {
            live.commands == 0 && live.proposed == 0 && !busy.contains(session) && !self.tail.holds(session)
        };
        let mut leaving: Vec<_> = self
            .live
            .iter()
            .filter(|(session, live)| (excess > 0 || live.last_used.elapsed() >= idle) && may_leave(session, live))
            .map(|(session, live)| (live.last_used, session.clone()))
            .collect();
        leaving.sort_unstable_by_key(|(last_used, _)| *last_used);
        let expired = leaving.iter().take_while(|(last_used, _)| last_used.elapsed() >= idle).count();
        leaving.truncate(expired.max(excess).min(PASSIVATIONS_PER_SWEEP));
        for (_, session) in leaving {
            self.passivate(&session);
        }
    }

    fn passivate(&mut self, session: &Arc<SessionKey>) {
        if let Some(live) = self.live.remove(session) {
            self.by_actor.remove(&live.actor.get_id());
            self.services.census.session_ended();
            // Drained, not stopped: a command that is in its mailbox already is still answered.
            let _ended = live.actor.drain();
        }
    }

    pub(super) fn on_session_ended(&mut self, actor: ActorId) {
        if let Some(session) = self.by_actor.remove(&actor) {
            self.live.remove(&session);
            self.services.census.session_ended();
        }
    }

    /// A session panicked. It is brought back after a pause if it owes an answer, or parked if it failed too often.
    pub(super) fn on_session_failed(&mut self, actor: ActorId, error: &str) {
        let Some(session) = self.by_actor.get(&actor).cloned() else { return };
        self.on_session_ended(actor);
        let now = Instant::now();
        let failed = self.failed.entry(session.clone()).or_default();
        match failed.ledger.on_failure(&RESTARTS, now.into_std()) {
            Verdict::RestartAfter(delay) => {
                failed.not_before = Some(now + delay);
                metrics::actor_restarted("session");
                tracing::warn!(shard = self.shard.0, slot = session.slot().0, error, "session failed, restarting it");
                self.tell_self_after(delay, super::Internal::RestartDue { session });
            }
            Verdict::GiveUp => {
                failed.parked = true;
                self.services.census.session_parked();
                tracing::error!(
                    shard = self.shard.0,
                    slot = session.slot().0,
                    error,
                    "session failed too often, parked"
                );
                self.fail_open_turns(&session);
            }
        }
    }

    pub(super) fn on_restart_due(&mut self, session: &Arc<SessionKey>) {
        if self.is_unsettled(session) {
            self.tell_self_after(RESTARTS.first_delay, super::Internal::RestartDue { session: session.clone() });
        } else if self.open.iter().any(|(_, turn)| turn.session == **session) {
            self.recover(session);
        }
    }

    /// A parked session's accepted turns get their recorded end from the shard itself.
    fn fail_open_turns(&mut self, session: &Arc<SessionKey>) {
        let turns: Vec<TurnId> =
            self.open.iter().filter(|(_, turn)| turn.session == **session).map(|(turn, _)| turn).collect();
        for turn in turns {
            let event = SessionEvent::TurnFailed(TurnFailed {
                turn,
                attempt: 0,
                code: "session_parked".into(),
                message: "the session failed repeatedly while answering".into(),
            });
            let at = self.services.clock.now();
            let record = SessionRecord { session: (**session).clone(), user: None, key_id: 0, at, event };
            self.propose_own(session.clone(), record);
        }
    }
}
