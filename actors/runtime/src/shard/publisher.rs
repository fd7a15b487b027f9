//! Publishes the events of a shard that this node owns, in the order of the log: a reader of its own, from the cursor in the checkpoint.
//!
//! ```text
//! shard ── committed up to ──▶ Publisher ◀── entries ── ShardLog          (judged by its own Validator)
//!       ◀── published up to ──           ── batch, again until it is taken ──▶ EventPublisher
//! ```
//!
//! Bounds: one page of entries and one batch of events. It lives as long as the term of the shard's actor, and holds up nothing but what the log
//! may forget.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parlance_cluster_log::{
    EventMessage, LogError, StoredEntry,
    ownership::{LogPoint, SlotTable, Validator, Verdict},
};
use parlance_cluster_protocol::{Entry, Offset, Position, SessionRecord, ShardId, WireError};
use ractor::ActorRef;
use thiserror::Error;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{Internal, ShardMessage, event::render, on_term::patient_checkpoint};
use crate::{
    ShardError,
    metrics::EventLag,
    node::{EventOptions, Services},
};

/// The most bytes of one read from the log.
const READ_BYTES: usize = 256 * 1024;
/// The most events of one batch …
const BATCH_EVENTS: usize = 500;
/// … and their payloads' bytes; the last one may exceed it.
const BATCH_BYTES: usize = 256 * 1024;
/// The pause before what failed is tried again; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What the shard's actor holds of its publisher. Dropping it ends the publisher.
pub(super) struct Publishing {
    committed: watch::Sender<Offset>,
    task: JoinHandle<()>,
    /// Up to where events are published; `None` until the publisher has begun.
    pub(super) published: Option<LogPoint>,
    lag: EventLag,
}

impl Publishing {
    /// Everything before `next` is committed.
    pub(super) fn on_committed(&mut self, next: Offset) {
        if self.committed.send_if_modified(|known| std::mem::replace(known, next) < next) {
            self.measure();
        }
    }

    pub(super) fn on_published(&mut self, point: LogPoint) {
        self.published = Some(point);
        self.measure();
    }

    /// Whether the events of all that is committed are published.
    pub(super) fn is_done(&self) -> bool {
        self.published.is_some_and(|published| published.next >= *self.committed.borrow())
    }

    fn measure(&mut self) {
        if let Some(published) = self.published {
            self.lag.set(self.committed.borrow().0.saturating_sub(published.next.0));
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to publish the events of a shard whose committed entries end at `committed`.
pub(super) fn start(
    services: Arc<Services>,
    options: EventOptions,
    shard: ShardId,
    actor: ActorRef<ShardMessage>,
    committed: Offset,
) -> Publishing {
    let (told, known) = watch::channel(committed);
    let task = tokio::spawn(async move {
        match Publisher::begin(services, options, shard, actor, known).await {
            Ok(publisher) => publisher.run().await,
            // The shard's own actor cannot use the store either.
            Err(error) => tracing::error!(shard = shard.0, %error, "no events are published"),
        }
    });
    Publishing { committed: told, task, published: None, lag: EventLag::default() }
}

struct Publisher {
    services: Arc<Services>,
    options: EventOptions,
    shard: ShardId,
    actor: ActorRef<ShardMessage>,
    committed: watch::Receiver<Offset>,
    reader: Validator,
    /// What was read and not yet judged.
    page: VecDeque<StoredEntry>,
    /// Failures in a row.
    failures: u32,
}

/// What keeps the publisher from going on.
#[derive(Debug, Error)]
enum Trouble {
    #[error(transparent)]
    Read(LogError),
    #[error(transparent)]
    Unreadable(#[from] WireError),
    #[error(transparent)]
    Publish(LogError),
}

impl Publisher {
    /// From where the stored checkpoint says, which may be further than what this node knew before it owned the shard.
    async fn begin(
        services: Arc<Services>,
        options: EventOptions,
        shard: ShardId,
        actor: ActorRef<ShardMessage>,
        committed: watch::Receiver<Offset>,
    ) -> Result<Self, ShardError> {
        let cursor = patient_checkpoint(&services, shard).await?.cursor();
        let reader = Validator::new(SlotTable::new(shard, services.log.shards()), cursor);
        let page = VecDeque::new();
        let publisher = Self { services, options, shard, actor, committed, reader, page, failures: 0 };
        publisher.tell(0);
        Ok(publisher)
    }

    /// Until the term is over.
    async fn run(mut self) {
        loop {
            let next = self.reader.point().next;
            if self.committed.wait_for(|committed| *committed > next).await.is_err() {
                return;
            }
            match self.next_batch().await {
                Ok(batch) => {
                    let events = batch.len();
                    self.publish(batch).await;
                    self.tell(events);
                }
                Err(trouble) => self.pause_after(&trouble).await,
            }
        }
    }

    /// The events of what was committed next, at most a batch of them; none where nothing is told of it.
    async fn next_batch(&mut self) -> Result<Vec<EventMessage>, Trouble> {
        if self.page.is_empty() {
            let next = self.reader.point().next;
            self.page = self.services.log.read(self.shard, next, READ_BYTES).await.map_err(Trouble::Read)?.into();
            if self.page.is_empty() {
                // It was asked elsewhere than where it was written.
                sleep(FIRST_PAUSE).await;
            }
        }
        let committed = *self.committed.borrow();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_EVENTS
            && bytes < BATCH_BYTES
            && let Some(entry) = self.page.front().filter(|entry| entry.offset < committed).cloned()
        {
            match self.judge(entry) {
                Ok(event) => {
                    bytes += event.as_ref().map_or(0, |event| event.payload.len());
                    batch.extend(event);
                    self.page.pop_front();
                }
                // What comes before it goes first.
                Err(_) if !batch.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(batch)
    }

    /// The event of the next entry, if it counts and anything is told of it. An error leaves the reader before the entry.
    fn judge(&mut self, entry: StoredEntry) -> Result<Option<EventMessage>, WireError> {
        let offset = entry.offset;
        let entry = Entry::decode(entry.bytes)?;
        let Entry::Data(data) = &entry else {
            self.reader.judge(offset, &entry);
            return Ok(None);
        };
        let mut reader = self.reader.clone();
        let event = match reader.judge(offset, &entry) {
            Verdict::Data => {
                let record = SessionRecord::decode(data.payload.clone())?;
                render(&self.options.cluster, Position(offset.0), &record)
            }
            Verdict::Claim(_) | Verdict::Release | Verdict::Inert => None,
        };
        self.reader = reader;
        Ok(event)
    }

    async fn publish(&mut self, batch: Vec<EventMessage>) {
        while !batch.is_empty()
            && let Err(error) = self.options.publisher.publish(self.shard, batch.clone()).await
        {
            self.pause_after(&Trouble::Publish(error)).await;
        }
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!(shard = self.shard.0, "events are published again");
        }
    }

    async fn pause_after(&mut self, trouble: &Trouble) {
        if self.failures == 0 {
            tracing::warn!(shard = self.shard.0, error = %trouble, "cannot publish events, trying on; the log keeps them");
        }
        if matches!(trouble, Trouble::Read(LogError::OutOfRange { .. })) {
            self.begin_anew().await;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        sleep(pause).await;
    }

    /// The log was trimmed past the cursor, so another owner had published that far: its checkpoint says how far it came.
    async fn begin_anew(&mut self) {
        let Ok(checkpoint) = patient_checkpoint(&self.services, self.shard).await else { return };
        let (was, cursor) = (self.reader.point().next, checkpoint.cursor());
        if cursor.next > was {
            self.reader = Validator::new(SlotTable::new(self.shard, self.services.log.shards()), cursor);
        } else if checkpoint.point.next > was {
            // Two owners' checkpoints crossed. What the log has forgotten was published, what it has left is read by nobody but us.
            tracing::error!(
                shard = self.shard.0,
                from = was.0,
                to = checkpoint.point.next.0,
                "events may not be published"
            );
            self.reader = Validator::new(SlotTable::new(self.shard, self.services.log.shards()), checkpoint.point);
        }
    }

    fn tell(&self, events: usize) {
        let point = self.reader.point();
        let _stopping = self.actor.cast(ShardMessage::Internal(Internal::EventsPublished { point, events }));
    }
}
