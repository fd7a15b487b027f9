use std::{future::ready, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_cluster_protocol::{Dependency, Offset, ShardId};
use tokio::time::{Instant, sleep};

use crate::LogError;

/// The largest entry that every log takes; a larger one is never written and its outcome stays unknown.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024;

/// How long [`ShardLog::arrival`] waits at most.
pub(crate) const ARRIVAL: Duration = Duration::from_secs(1);
/// How often a log that tells nobody of arrivals is asked for them.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What became of one appended entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It lies at this offset and survives what the log promises to survive.
    At(Offset),
    /// Nobody knows: it may be there, land later, or never. The owner claims over itself to find out.
    Unknown,
}

/// Takes the outcomes of one [`ShardLog::append`], one per entry in order, exactly once. Must not block.
pub type AppendDone = Box<dyn FnOnce(Vec<AppendOutcome>) + Send>;

/// An entry as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Where it lies.
    pub offset: Offset,
    /// An encoded [`Entry`](parlance_cluster_protocol::Entry).
    pub bytes: Bytes,
}

/// The offsets that a shard holds: `start` inclusive, `end` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest entry that was not trimmed.
    pub start: Offset,
    /// Where the next entry will lie.
    pub end: Offset,
}

/// The durable, ordered, per-shard log that owns all state. Entries are opaque here; what counts among them is decided by
/// [`ownership`](crate::ownership) alone.
pub trait ShardLog: Send + Sync + 'static {
    /// How many shards the log has; fixed at its creation.
    fn shards(&self) -> u16;

    /// Appends `entries` to `shard` in order. Returns at once; `done` is called from another thread or task.
    ///
    /// The caller bounds what it has in flight.
    fn append(&self, shard: ShardId, entries: Vec<Bytes>, done: AppendDone);

    /// Entries from `from` on, in order: at least one if there is one, at most about `max_bytes` of them.
    ///
    /// # Errors
    ///
    /// [`LogError::OutOfRange`] before the start or behind the end; otherwise what keeps the log from serving.
    fn read(&self, shard: ShardId, from: Offset, max_bytes: usize)
    -> BoxFuture<'_, Result<Vec<StoredEntry>, LogError>>;

    /// Which offsets the shard holds now.
    ///
    /// # Errors
    ///
    /// What keeps the log from serving.
    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>>;

    /// Waits until the shard may have an entry at `from`: for those who follow a shard, so that they need not ask all the time. Ends after
    /// about a second in any case.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn arrival(&self, shard: ShardId, from: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        async move {
            let until = Instant::now() + ARRIVAL;
            while Instant::now() < until && self.bounds(shard).await?.end <= from {
                sleep(LOOK_AGAIN).await;
            }
            Ok(())
        }
        .boxed()
    }

    /// Allows the log to forget the entries before `before`. It may keep more.
    ///
    /// # Errors
    ///
    /// What keeps the log from serving.
    fn trim(&self, shard: ShardId, before: Offset) -> BoxFuture<'_, Result<(), LogError>>;

    /// Whether new turns may be accepted: [`LogError::Full`] while space is short, though replies to accepted turns still fit.
    ///
    /// # Errors
    ///
    /// Why new turns must be refused.
    fn admission(&self) -> Result<(), LogError>;

    /// The component that the log is kept in, as it was seen last; `None` for a log in this process.
    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        ready(None).boxed()
    }
}
