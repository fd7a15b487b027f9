//! The shard and its log: claiming, appending, replaying.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parlance_cluster_log::{
    AppendOutcome, LogError, StoredEntry,
    ownership::{AppendTag, Output, Ticket},
};
use parlance_cluster_protocol::{Nonce, Offset, Position, SessionKey, SessionRecord};
use ractor::ActorId;

use super::{Committed, Internal, Proposed, ShardMessage, ShardState};
use crate::{ShardError, metrics, session::SessionMessage};

/// The most bytes of one read from the log.
const READ_BYTES: usize = 1 << 20;
/// The pause before an empty read is repeated, and before a claim; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The pause before a log that cannot be reached is read again.
const AFTER_OUTAGE: Duration = Duration::from_millis(500);
/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(2);

impl ShardState {
    pub(super) fn claim(&mut self) {
        let mut outputs = Vec::new();
        self.ownership.claim(Nonce(rand::random()), self.services.clock.now(), &mut outputs);
        // A claim asks for reads and appends only, neither of which can fail here.
        if let Err(error) = self.perform(outputs) {
            tracing::error!(shard = self.shard.0, %error, "cannot claim");
        }
    }

    pub(super) fn on_append(&mut self, from: ActorId, session: Arc<SessionKey>, record: Arc<SessionRecord>, tag: u64) {
        let current = self.live.get(&session).filter(|live| live.actor.get_id() == from).map(|live| live.actor.clone());
        // An incarnation that was replaced: its successor replays what counts.
        let Some(actor) = current else { return };
        if !self.propose(&session, record, Some((from, tag))) {
            let _stopping = actor.cast(SessionMessage::NeverCommitted { tag });
        }
    }

    /// Records something about a session without its actor.
    pub(super) fn propose_own(&mut self, session: Arc<SessionKey>, record: SessionRecord) {
        if !self.propose(&session, Arc::new(record), None) {
            tracing::warn!(
                shard = self.shard.0,
                "a record of the shard's own was refused; it is tried again after a restart"
            );
        }
    }

    fn propose(&mut self, session: &Arc<SessionKey>, record: Arc<SessionRecord>, by: Option<(ActorId, u64)>) -> bool {
        match self.ownership.propose(session.slot(), record.encode()) {
            Ok(ticket) => {
                self.proposed.push_back(Proposed { ticket, session: session.clone(), by, record });
                if let Some(live) = self.live.get_mut(session) {
                    live.proposed += 1;
                }
                if !self.flush_due {
                    self.flush_due = true;
                    self.tell_self(Internal::FlushDue);
                }
                true
            }
            Err(error) => {
                tracing::debug!(shard = self.shard.0, %error, "proposal refused");
                false
            }
        }
    }

    /// Everything that was proposed by messages before this one goes to the log as one append.
    pub(super) fn on_flush_due(&mut self) -> Result<(), ShardError> {
        self.flush_due = false;
        let mut outputs = Vec::new();
        self.ownership.flush(&mut outputs);
        self.perform(outputs)
    }

    pub(super) fn on_appended(&mut self, tag: AppendTag, outcomes: &[AppendOutcome]) -> Result<(), ShardError> {
        let mut outputs = Vec::new();
        self.ownership.on_appended(tag, outcomes, &mut outputs);
        self.perform(outputs)
    }

    pub(super) fn on_log_read(
        &mut self,
        from: Offset,
        result: Result<Vec<StoredEntry>, LogError>,
    ) -> Result<(), ShardError> {
        let entries = match result {
            // It passes, and nothing that is known gets wrong meanwhile.
            Err(error @ LogError::Unreachable { .. }) => {
                tracing::warn!(shard = self.shard.0, %error, "cannot read the log, trying again");
                self.tell_self_after(AFTER_OUTAGE, Internal::ReadDue { from });
                return Ok(());
            }
            // The owner has forgotten what its checkpoint covers: a follower begins anew there, and who took itself for the owner learns that it is not.
            Err(error @ LogError::OutOfRange { .. }) if self.services.is_clustered() => {
                self.end_term(&error.to_string());
                return Ok(());
            }
            result => result?,
        };
        let mut outputs = Vec::new();
        self.ownership.on_read(from, entries, &mut outputs);
        self.perform(outputs)
    }

    pub(super) fn read(&self, from: Offset) {
        let (log, shard, myself) = (self.services.log.clone(), self.shard, self.myself.clone());
        tokio::spawn(async move {
            let result = log.read(shard, from, READ_BYTES).await;
            let _stopping = myself.cast(ShardMessage::Internal(Internal::LogRead { from, result }));
        });
    }

    pub(super) fn perform(&mut self, outputs: Vec<Output>) -> Result<(), ShardError> {
        let mut outputs = outputs.into_iter().peekable();
        while let Some(output) = outputs.next() {
            match output {
                Output::Append { tag, entries } => self.append(tag, entries),
                Output::Read { from, attempt: 0 } => self.read(from),
                Output::Read { from, attempt } => self.tell_self_after(pause(attempt), Internal::ReadDue { from }),
                Output::ClaimWanted { attempt } => self.tell_self_after(pause(attempt), Internal::ClaimDue),
                Output::BecameOwner { epoch } => self.on_became_owner(epoch),
                // A record of our own is known decoded: its ticket follows at once.
                Output::Apply { offset, payload, .. } => match outputs.peek() {
                    Some(Output::Committed { .. }) => {}
                    _ => self.on_replayed(offset, payload)?,
                },
                Output::Committed { ticket, offset } => self.on_committed(ticket, offset),
                Output::Failed { ticket } | Output::Unresolved { ticket } => self.on_never_committed(ticket),
                Output::SteppedDown { reason } => self.on_stepped_down(reason)?,
                Output::Fenced { .. } => metrics::records_fenced(1),
                Output::ForeignClaim { epoch, node, at } => self.on_foreign_claim(epoch, node, at),
                Output::ForeignRelease { to, .. } => self.on_foreign_release(&to),
                Output::CaughtUp { next } => self.on_caught_up(next),
            }
        }
        self.tell_publisher();
        Ok(())
    }

    /// A record that no session of this incarnation proposed.
    fn on_replayed(&mut self, offset: Offset, payload: Bytes) -> Result<(), ShardError> {
        let record = Arc::new(SessionRecord::decode(payload)?);
        let session = Arc::new(record.session.clone());
        self.enter(&session, Position(offset.0), record, None);
        Ok(())
    }

    fn on_committed(&mut self, ticket: Ticket, offset: Offset) {
        if let Some(proposed) = self.settle(ticket) {
            self.enter(&proposed.session, Position(offset.0), proposed.record, proposed.by);
        }
    }

    fn on_never_committed(&mut self, ticket: Ticket) {
        let Some(proposed) = self.settle(ticket) else { return };
        let Some((from, tag)) = proposed.by else { return };
        if let Some(live) = self.live.get(&proposed.session).filter(|live| live.actor.get_id() == from) {
            let _stopping = live.actor.cast(SessionMessage::NeverCommitted { tag });
        }
    }

    /// Proposals are settled in the order of their tickets.
    fn settle(&mut self, ticket: Ticket) -> Option<Proposed> {
        let proposed = self.proposed.pop_front_if(|proposed| proposed.ticket == ticket);
        debug_assert!(proposed.is_some(), "{ticket:?} was proposed and not settled before");
        if let Some(live) = proposed.as_ref().and_then(|proposed| self.live.get_mut(&proposed.session)) {
            live.proposed = live.proposed.saturating_sub(1);
        }
        proposed
    }

    /// Enters a committed record into everything that follows the log.
    fn enter(
        &mut self,
        session: &Arc<SessionKey>,
        position: Position,
        record: Arc<SessionRecord>,
        proposed: Option<(ActorId, u64)>,
    ) {
        self.open.apply(&record);
        let committed = Committed { position, record };
        self.tail.push(session, committed.clone());
        if let Some(live) = self.live.get(session) {
            let tag = proposed.filter(|(from, _)| *from == live.actor.get_id()).map(|(_, tag)| tag);
            let _stopping = live.actor.cast(SessionMessage::Committed { committed, tag });
        }
    }

    fn append(&self, tag: AppendTag, entries: Vec<Bytes>) {
        let myself = self.myself.clone();
        let done = move |outcomes| {
            let _stopping = myself.cast(ShardMessage::Internal(Internal::Appended { tag, outcomes }));
        };
        self.services.log.append(self.shard, entries, Box::new(done));
    }
}

fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(MAX_PAUSE)
}
