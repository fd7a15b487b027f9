//! The shard and the record store: projections, checkpoints, draining.

use std::{mem, time::Duration};

use parlance_cluster_protocol::Offset;
use tokio::{sync::oneshot, time::Instant};

use super::{Internal, Publishing, ShardState, projection};
use crate::{Refusal, ShardError, checkpoint::Checkpoint};

/// The pause after a failed write to the store.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A checkpoint is written when this many records were projected since the last one …
const CHECKPOINT_RECORDS: u64 = 4_096;
/// … or, with fewer, after this time: it bounds the replay after a crash.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

impl ShardState {
    pub(super) fn on_settle(&mut self, reply: oneshot::Sender<Result<(), Refusal>>) {
        if !self.owner {
            // What counts is known only once the log was replayed.
            self.settling_next.push(reply);
        } else if !self.tail.has_fresh() && !self.tail.is_projecting() {
            // A caller that is gone needs no answer.
            let _gone = reply.send(Ok(()));
        } else if self.tail.has_fresh() {
            self.settling_next.push(reply);
            self.start_projection();
        } else {
            self.settling.push(reply);
        }
    }

    /// Writes what was committed since the last projection, unless one is under way.
    pub(super) fn start_projection(&mut self) {
        if !self.owner || self.tail.is_projecting() || !self.tail.has_fresh() {
            return;
        }
        self.tail.start_projection();
        self.projecting_to =
            Some(Checkpoint { point: self.ownership.point(), open: self.open.clone(), published: None });
        self.settling.append(&mut self.settling_next);
        self.run_projection();
    }

    pub(super) fn run_projection(&self) {
        let batch = self.tail.projecting();
        let (services, myself) = (self.services.clone(), self.myself.clone());
        tokio::spawn(async move {
            let result = projection::project(&services, &batch).await;
            let _stopping = myself.cast(super::ShardMessage::Internal(Internal::Projected { result }));
        });
    }

    pub(super) fn on_projected(&mut self, result: Result<(), ShardError>) {
        let waiting = mem::take(&mut self.settling);
        match result {
            Ok(()) => {
                self.tail.finish_projection();
                if let Some(reached) = self.projecting_to.take() {
                    self.projected_to = reached;
                }
                waiting.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
                if self.excess_sessions() > 0 {
                    self.sweep_idle();
                }
                if !self.settling_next.is_empty() {
                    self.start_projection();
                }
            }
            Err(error) => {
                tracing::warn!(shard = self.shard.0, %error, "cannot write records, trying again");
                let refusal = || Refusal::RecordsUnavailable(error.to_string());
                waiting.into_iter().for_each(|reply| drop(reply.send(Err(refusal()))));
                self.tell_self_after(RETRY_AFTER, Internal::ProjectionDue);
            }
        }
    }

    pub(super) fn start_checkpoint(&mut self) {
        #[cfg(feature = "planted-bugs")]
        if self.owner && crate::planted::checkpoints_ahead() {
            self.projected_to =
                Checkpoint { point: self.ownership.point(), open: self.open.clone(), ..self.projected_to.clone() };
        }
        let upto = self.projected_to.point.next;
        let waited = self.checkpoint_started.is_none_or(|started| started.elapsed() >= CHECKPOINT_EVERY);
        let many = upto.0.saturating_sub(self.checkpointed.0) >= CHECKPOINT_RECORDS;
        if upto <= self.checkpointed || self.checkpointing || !(waited || many || self.draining) {
            return;
        }
        let published = self.publishing.as_ref().and_then(|publishing| publishing.published);
        if self.services.events.is_some() && published.is_none() {
            // The stored cursor was not read yet: a checkpoint without it would have the next owner publish from elsewhere.
            return;
        }
        self.checkpointing = true;
        self.checkpoint_started = Some(Instant::now());
        let (services, shard, myself) = (self.services.clone(), self.shard, self.myself.clone());
        self.projected_to.published = published;
        let (checkpoint, needed_from) = (self.projected_to.encode(), self.projected_to.needed_from());
        // A follower may just have read the last checkpoint, and have to begin to read there.
        let forgotten = if services.is_clustered() { self.needed_from } else { needed_from };
        tokio::spawn(async move {
            let result = async {
                services.records.put_checkpoint(shard, upto, checkpoint).await?;
                // Only what a durable checkpoint covers may be forgotten by the log.
                services.log.trim(shard, forgotten).await?;
                Ok(())
            };
            let result = result.await;
            let _stopping =
                myself.cast(super::ShardMessage::Internal(Internal::CheckpointStored { upto, needed_from, result }));
        });
    }

    pub(super) fn on_checkpoint_stored(&mut self, upto: Offset, needed_from: Offset, result: Result<(), ShardError>) {
        self.checkpointing = false;
        match result {
            Ok(()) => (self.checkpointed, self.needed_from) = (upto, needed_from),
            Err(error) => tracing::warn!(shard = self.shard.0, %error, "cannot store a checkpoint, trying again"),
        }
    }

    pub(super) fn on_drain(&mut self) {
        if self.is_following() {
            return self.myself.stop(Some("drained".into()));
        }
        self.draining = true;
        self.finish_drain();
    }

    /// Stops once the store has everything, the checkpoint says so, and all events are published.
    pub(super) fn finish_drain(&mut self) {
        if !self.draining {
            return;
        }
        self.start_projection();
        self.start_checkpoint();
        let written = self.tail.lag() == 0 && self.projected_to.point.next <= self.checkpointed;
        let told = self.publishing.as_ref().is_none_or(Publishing::is_done);
        if written && told && self.ownership.unsettled() == 0 && !self.checkpointing {
            self.myself.stop(Some("drained".into()));
        }
    }
}
