use std::future::ready;

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_cluster_protocol::{Dependency, Offset, Position, SessionKey, ShardId, TurnId};

use crate::RecordsError;

/// One cell of the store. Every row belongs to the slot of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A session's state without its history.
    Session {
        /// The session.
        session: SessionKey,
        /// The state, encoded by its machine.
        state: Bytes,
    },
    /// One item of a session's history.
    Item {
        /// The session.
        session: SessionKey,
        /// The item's number, counted from 0.
        index: u64,
        /// The item, encoded by its machine.
        item: Bytes,
    },
    /// Which session a turn belongs to.
    Turn {
        /// The session; its tenant bounds the search.
        session: SessionKey,
        /// The turn.
        turn: TurnId,
    },
    /// A provider's event id or an idempotency key that must not run twice.
    Dedupe {
        /// The session.
        session: SessionKey,
        /// The id.
        event_id: String,
        /// What it led to, encoded by the session's machine.
        outcome: Bytes,
    },
    /// A reply on its way out over a channel.
    Delivery {
        /// The session.
        session: SessionKey,
        /// The delivery's key.
        key: String,
        /// Its state, encoded by the session's machine.
        state: Bytes,
    },
}

/// The highest position that every store takes. CQL wants twice a position, in microseconds since 1970, to be in the past.
pub const MAX_POSITION: Position = Position((1 << 49) - 1);

/// One change of the view, made by the log record at `position`. A record writes a row at most once; of its own writes
/// and removals of one row, the write wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The session's position after the record. An older change never overwrites a newer one.
    pub position: Position,
    /// What is written or removed.
    pub kind: ChangeKind,
}

/// See [`Change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// Writes the row, replacing an older one.
    Put(Row),
    /// Removes one dedupe row.
    ForgetDedupe {
        /// The session.
        session: SessionKey,
        /// The id.
        event_id: String,
    },
    /// Removes the session's items from `from` on.
    TruncateItems {
        /// The session.
        session: SessionKey,
        /// The first item to go.
        from: u64,
    },
    /// Removes everything of the session except its state row.
    EraseSession {
        /// The session.
        session: SessionKey,
    },
}

/// A value and the position that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The position that wrote it.
    pub position: Position,
    /// The value.
    pub value: T,
}

/// From which end a listing starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Lowest first.
    Ascending,
    /// Highest first.
    Descending,
}

/// One item as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredItem {
    /// Its number within the session.
    pub index: u64,
    /// The item, encoded by its machine.
    pub item: Bytes,
}

/// A session and its state row, as listed.
pub type StoredSession = (SessionKey, At<Bytes>);

/// The record store: a view of the log's committed records, and never more than that. Losing it costs a replay; a
/// stale one costs a longer replay.
pub trait RecordStore: Send + Sync + 'static {
    /// Applies changes. Repeating it, or coming late with an older position, changes nothing. Whoever reads a session's state finds everything
    /// up to its position that this and earlier calls wrote: of a call that breaks off, states are the last.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving; some of the changes may have been made.
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), RecordsError>>;

    /// Stores a checkpoint that covers a shard's log up to `upto`, durably, after everything written before it by this caller is durable. Where
    /// several nodes share the store, one that covers less never replaces one that covers more, however late it comes: the log may have
    /// been trimmed behind the latter.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving; then either the old or the new checkpoint stands, with its rows.
    fn put_checkpoint(
        &self,
        shard: ShardId,
        upto: Offset,
        checkpoint: Bytes,
    ) -> BoxFuture<'_, Result<(), RecordsError>>;

    /// The shard's checkpoint; `None` before the first.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn checkpoint(&self, shard: ShardId) -> BoxFuture<'_, Result<Option<Bytes>, RecordsError>>;

    /// The state rows of sessions, in their order.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn states(&self, sessions: &[&SessionKey]) -> BoxFuture<'_, Result<Vec<Option<At<Bytes>>>, RecordsError>>;

    /// A session's state row.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn session(&self, session: &SessionKey) -> BoxFuture<'_, Result<Option<At<Bytes>>, RecordsError>> {
        let states = self.states(&[session]);
        async move { Ok(states.await?.pop().flatten()) }.boxed()
    }

    /// Up to `limit` items of a session, from number `from` on in the given order (`None`: from that order's beginning).
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn items(
        &self,
        session: &SessionKey,
        from: Option<u64>,
        order: Order,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredItem>, RecordsError>>;

    /// All dedupe rows of a session, as (event id, outcome), up to `limit`.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn dedupe(&self, session: &SessionKey, limit: usize) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, RecordsError>>;

    /// The session that a tenant's turn belongs to.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn turn(&self, tenant: &str, turn: TurnId) -> BoxFuture<'_, Result<Option<SessionKey>, RecordsError>>;

    /// The component that the records are kept in, asked now; `None` for a store in this process. Ends within a few seconds.
    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        ready(None).boxed()
    }

    /// Up to `limit` sessions of a tenant and channel behind `after`, with their state rows, in the order of
    /// [`SessionKey::encode`].
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    fn sessions(
        &self,
        tenant: &str,
        channel: &str,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredSession>, RecordsError>>;
}
