//! The shard and its term: following another owner, taking over, handing over, stepping down.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use parlance_cluster_log::ownership::StepDown;
use parlance_cluster_protocol::{Epoch, Offset, Position, SessionKey, ShardId, TimestampMs};
use tokio::time::{Instant, sleep};

use super::{Internal, ShardState};
use crate::{
    Refusal, ShardError,
    checkpoint::Checkpoint,
    clock::as_millis,
    cluster::{DISPUTE, Reign, ShardNews},
    metrics,
    node::Services,
    request::SessionCommand,
    shards::Stage,
};

/// The pause before a record store that does not answer is asked for the checkpoint again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often a follower looks what its owner has written into the record store, so that it need not remember that.
const OWNER_PROJECTED_EVERY: Duration = Duration::from_secs(5);
/// How long an owner that found nothing new in its log leaves it alone: it reads along only to learn that it was deposed.
const OWNER_LOOKS_EVERY: Duration = Duration::from_millis(250);
/// Claims that are remembered, for the pause before a further one.
const REMEMBERED_CLAIMS: usize = 16;

/// How far the shard's actor has come in its term.
#[derive(Default)]
pub(super) struct Term {
    phase: Phase,
    /// Why it claimed, for the metrics.
    cause: &'static str,
    /// Who owns the shard, as its log says.
    reign: Option<Reign>,
    /// When others claimed lately. Bound: [`REMEMBERED_CLAIMS`].
    claims: VecDeque<TimestampMs>,
    /// The last thing in the log was a release to this node.
    is_released_to_us: bool,
    /// Whether the log was read to its end once.
    is_warm: bool,
    /// Whether the next arrival is waited for.
    awaits_arrival: bool,
    owner_projected_asked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Reads along.
    #[default]
    Following,
    /// Claims, or owns.
    Serving,
    /// Has asked for its own release.
    Releasing,
    /// Over; the actor is about to stop.
    Over,
}

/// The shard's checkpoint, however long the store takes to answer.
///
/// # Errors
///
/// A checkpoint that this build cannot use, or a store that never will serve.
pub(super) async fn patient_checkpoint(services: &Services, shard: ShardId) -> Result<Checkpoint, ShardError> {
    let mut told = false;
    loop {
        match checkpoint(services, shard).await {
            Ok(checkpoint) => return Ok(checkpoint.unwrap_or_else(Checkpoint::start)),
            Err(ShardError::Records(error)) if error.passes() => {
                if !mem::replace(&mut told, true) {
                    tracing::warn!(shard = shard.0, %error, "cannot read the shard's checkpoint, trying on");
                }
                sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn checkpoint(services: &Services, shard: ShardId) -> Result<Option<Checkpoint>, ShardError> {
    let stored = services.records.checkpoint(shard).await?;
    Ok(stored.map(|stored| Checkpoint::decode(&stored)).transpose()?)
}

impl ShardState {
    pub(super) fn begin_term(&mut self, claims: bool) -> Result<(), ShardError> {
        self.table.set(self.shard, self.myself.clone(), Stage::Following);
        if claims {
            self.on_claim("start");
            return Ok(());
        }
        self.catch_up()
    }

    fn catch_up(&mut self) -> Result<(), ShardError> {
        let mut outputs = Vec::new();
        self.ownership.catch_up(&mut outputs);
        self.perform(outputs)
    }

    pub(super) fn is_following(&self) -> bool {
        self.term.phase == Phase::Following
    }

    /// Whether sessions are served: effects are performed, and records taken.
    pub(super) fn serves(&self) -> bool {
        self.owner && self.term.phase == Phase::Serving
    }

    /// A command that cannot be handed on: it waits for our claim, or goes elsewhere.
    pub(super) fn put_off(&mut self, session: Arc<SessionKey>, command: SessionCommand) {
        match self.term.phase {
            Phase::Serving => self.waiting.push_back((session, command)),
            Phase::Following | Phase::Releasing | Phase::Over => command.refuse(Refusal::NotHere),
        }
    }

    pub(super) fn on_claim(&mut self, cause: &'static str) {
        if self.is_following() {
            (self.term.phase, self.term.cause) = (Phase::Serving, cause);
            self.table.set_stage(self.shard, Stage::Claiming);
            self.services.tell_of(self.shard, ShardNews::Claiming);
            self.claim();
        }
    }

    /// Everything before our claim is applied: from here on effects are performed.
    pub(super) fn on_became_owner(&mut self, epoch: Epoch) {
        self.services.tell_of(self.shard, ShardNews::Owned { claimed_at: epoch.offset });
        // A release that did not happen: its outcome was unknown, and we claimed over ourselves.
        let stays = self.term.phase == Phase::Releasing;
        if self.owner && !stays {
            return;
        }
        self.term.phase = Phase::Serving;
        if !mem::replace(&mut self.owner, true) {
            metrics::shard_owned(self.term.cause);
        }
        self.table.set_stage(self.shard, Stage::Owning);
        tracing::debug!(shard = self.shard.0, cause = self.term.cause, open_turns = self.open.len(), "owns the shard");
        self.start_publishing();
        self.recover_open_turns();
        for (session, command) in mem::take(&mut self.waiting) {
            self.on_command(session, command);
        }
        for reply in mem::take(&mut self.settling_next) {
            self.on_settle(reply);
        }
    }

    /// Hands the shard over: sessions leave memory where they are, what they have proposed is settled, then the release is recorded. The
    /// next owner goes on with their open turns.
    pub(super) fn on_release(&mut self, to: String) -> Result<(), ShardError> {
        if !self.serves() || self.draining {
            return Ok(());
        }
        self.term.phase = Phase::Releasing;
        self.table.set_stage(self.shard, Stage::Following);
        self.services.tell_of(self.shard, ShardNews::Releasing);
        self.dismiss_sessions();
        let mut outputs = Vec::new();
        let released = self.ownership.release(to, &mut outputs);
        self.perform(outputs)?;
        if released.is_err() {
            // Not possible for an owner that serves.
            self.term.phase = Phase::Serving;
            self.table.set_stage(self.shard, Stage::Owning);
        }
        Ok(())
    }

    fn dismiss_sessions(&mut self) {
        self.by_actor.clear();
        for (_, live) in self.live.drain() {
            self.services.census.session_ended();
            live.actor.stop(Some("the shard moves".into()));
        }
    }

    pub(super) fn on_stepped_down(&mut self, reason: StepDown) -> Result<(), ShardError> {
        let ends = matches!(reason, StepDown::Released { .. } | StepDown::Superseded { .. });
        if !ends || !self.services.is_clustered() {
            return Err(ShardError::SteppedDown(reason));
        }
        self.end_term(&reason.to_string());
        Ok(())
    }

    /// Ends the term without a failure: the actor stops, and another one may follow the log anew.
    pub(super) fn end_term(&mut self, reason: &str) {
        tracing::debug!(shard = self.shard.0, reason, "the term ends");
        self.term.phase = Phase::Over;
        self.publishing = None;
        self.table.clear(self.shard, self.myself.get_id());
        self.dismiss_sessions();
        for (_, command) in mem::take(&mut self.waiting) {
            command.refuse(Refusal::NotHere);
        }
        self.myself.stop(Some(reason.to_owned()));
    }

    pub(super) fn on_foreign_claim(&mut self, epoch: Epoch, node: String, at: TimestampMs) {
        self.term.is_released_to_us = false;
        self.term.reign = Some(Reign { by: node, claimed_at: epoch.offset, recent_claims: 0 });
        if self.term.claims.len() == REMEMBERED_CLAIMS {
            self.term.claims.pop_front();
        }
        self.term.claims.push_back(at);
        if self.term.is_warm {
            self.tell_reign();
        }
    }

    pub(super) fn on_foreign_release(&mut self, to: &str) {
        self.term.is_released_to_us = *to == *self.services.claim_name;
        // A claim behind a release is no dispute.
        self.term.claims.clear();
        if self.term.is_warm {
            self.take_what_was_released();
        }
    }

    fn take_what_was_released(&mut self) {
        if mem::take(&mut self.term.is_released_to_us) {
            self.on_claim("handover");
        }
    }

    fn tell_reign(&self) {
        let mut reign = self.term.reign.clone();
        let since = self.services.clock.now().0.saturating_sub(as_millis(DISPUTE));
        if let Some(reign) = &mut reign {
            reign.recent_claims = self.term.claims.iter().filter(|at| at.0 >= since).count();
        }
        self.services.tell_of(self.shard, ShardNews::Warm { reign });
    }

    pub(super) fn on_caught_up(&mut self, next: Offset) {
        if self.is_following() && !mem::replace(&mut self.term.is_warm, true) {
            self.tell_reign();
            self.take_what_was_released();
        }
        if self.services.is_clustered() && !mem::replace(&mut self.term.awaits_arrival, true) {
            self.await_arrival(next);
        }
    }

    fn await_arrival(&self, next: Offset) {
        let (log, shard, myself) = (self.services.log.clone(), self.shard, self.myself.clone());
        let pause = if self.is_following() { Duration::ZERO } else { OWNER_LOOKS_EVERY };
        tokio::spawn(async move {
            sleep(pause).await;
            if log.arrival(shard, next).await.is_err() {
                // The read that follows says why.
                sleep(ASK_AGAIN).await;
            }
            let _stopping = myself.cast(super::ShardMessage::Internal(Internal::Arrived));
        });
    }

    pub(super) fn on_arrived(&mut self) -> Result<(), ShardError> {
        self.term.awaits_arrival = false;
        self.catch_up()
    }

    /// A follower asks what it need not remember any more.
    pub(super) fn sweep_followed(&mut self) {
        let due = self.term.owner_projected_asked.is_none_or(|asked| asked.elapsed() >= OWNER_PROJECTED_EVERY);
        if !self.is_following() || self.tail.lag() == 0 || !due {
            return;
        }
        self.term.owner_projected_asked = Some(Instant::now());
        let (services, shard, myself) = (self.services.clone(), self.shard, self.myself.clone());
        tokio::spawn(async move {
            let result = checkpoint(&services, shard).await;
            let _stopping = myself.cast(super::ShardMessage::Internal(Internal::OwnerProjected { result }));
        });
    }

    pub(super) fn on_owner_projected(&mut self, result: Result<Option<Checkpoint>, ShardError>) {
        let Ok(Some(reached)) = result else { return };
        let next = reached.point.next;
        // What lies before us; our own state goes no further back.
        if self.owner || next <= self.checkpointed || next > self.ownership.point().next {
            return;
        }
        self.tail.forget_before(Position(next.0));
        (self.checkpointed, self.needed_from) = (next, reached.needed_from());
        self.projected_to = reached;
    }
}
