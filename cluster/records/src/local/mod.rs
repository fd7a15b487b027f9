//! The embedded record store: one ordered table of rows on fjall, an LSM tree with a journal.
//!
//! A batch of changes goes to the kernel at once and to the disk with the next checkpoint: after a kill nothing is
//! lost, after a power loss nothing up to the last checkpoint. What is left is always the state of one moment, so that
//! the log, replayed from that checkpoint, completes it.
//!
//! Memory is bounded by [`LocalOptions`]: the block cache and up to four memtables (one written to, three waiting for
//! their flush), which take about half as much again as the rows in them, and some MiB for filters, indexes and
//! compaction. By default that is 16 MiB and four times 4 MiB.

mod cell;
mod files;
mod journal;
mod keys;
mod mark;
mod reader;
mod schema;
mod store;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fjall::{AbstractTree, PersistMode};
use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_protocol::{Offset, Position, SessionKey, ShardId, TurnId};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
};

pub use self::writer::MAX_VALUE_BYTES;
use self::{
    keys::{Kind, SessionPart},
    mark::Mark,
    store::Rows,
    writer::{WriteError, Writer},
};
use crate::{
    At, Change, Order, RecordStore, RecordsError, StoredItem, StoredSession,
    limits::{self, at_most},
    metrics,
};

/// Writers wait while more memtables than this wait for their flush. The database itself would stop at four, in steps
/// of 100 ms and without noticing when its own worker has failed.
const MAX_SEALED_MEMTABLES: usize = 2;
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// How much memory and space the embedded store may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalOptions {
    /// Blocks of rows kept in memory, in bytes.
    pub block_cache_bytes: u64,
    /// The size at which a memtable is flushed, in bytes, of which there are up to four. Fixed when the store is
    /// created.
    pub memtable_bytes: u64,
    /// Writes are refused with [`RecordsError::Full`] while less space than this is free, so that what was already
    /// taken can still be flushed.
    pub reserve_bytes: u64,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 16 << 20, memtable_bytes: 4 << 20, reserve_bytes: 32 << 20 }
    }
}

/// The embedded record store. One per directory and process; dropping it closes it, which flushes and so may block for
/// some 100 ms.
///
/// Its futures need a tokio runtime, whose blocking threads do the work. A future that is dropped may or may not have
/// done its work.
pub struct LocalRecords {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    options: LocalOptions,
    /// `None` while the rows could not be opened again.
    rows: RwLock<Option<Rows>>,
    mark: Mark,
    writing: Arc<Mutex<Writing>>,
    lock: File,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(rows) = self.rows.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            store::close(&self.dir, rows);
        }
        // Closing alone would not unlock it while a process that is being started holds a copy of the descriptor.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "cannot unlock the records");
        }
    }
}

/// What only the writer of the moment may touch.
struct Writing {
    /// The number of the newest checkpoint.
    number: u64,
    /// The database refuses writes since the disk was full; it must be opened again.
    starved: bool,
}

impl LocalRecords {
    /// Opens the store in `dir` with the default options, creating what is missing.
    ///
    /// # Errors
    ///
    /// [`RecordsError::InUse`], [`RecordsError::Unusable`], [`RecordsError::Newer`] or [`RecordsError::Damaged`], each
    /// with its remedy; the store is then as it was.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, RecordsError> {
        Self::open_with(dir, LocalOptions::default())
    }

    /// Opens the store in `dir`, creating what is missing.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, options: LocalOptions) -> Result<Self, RecordsError> {
        metrics::describe();
        let dir = dir.as_ref().to_owned();
        let lock = store::lock(&dir)?;
        let opened = store::open(&dir, options)?;
        let shared = Shared {
            dir,
            options,
            rows: RwLock::new(Some(opened.rows)),
            mark: opened.mark,
            writing: Arc::new(Mutex::new(Writing { number: opened.number, starved: false })),
            lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Up to `limit` sessions of all tenants and channels behind `after`, with their state rows, in the order of [`SessionKey::encode`].
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    pub async fn all_sessions(
        &self,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<StoredSession>, RecordsError> {
        let after = after.map(SessionPart::new).transpose();
        self.read(move |rows| reader::sessions(rows, &[Kind::State as u8], after?.as_ref(), limit)).await
    }

    /// Up to `limit` turns of a session behind `after`, in the order of their ids.
    ///
    /// # Errors
    ///
    /// What keeps the store from serving.
    pub async fn turns(
        &self,
        session: &SessionKey,
        after: Option<TurnId>,
        limit: usize,
    ) -> Result<Vec<TurnId>, RecordsError> {
        let session = SessionPart::new(session);
        self.read(move |rows| reader::turns(rows, &session?, after, limit)).await
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Rows) -> Result<T, RecordsError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, RecordsError>> {
        let shared = self.shared.clone();
        blocking(move || {
            let start = Instant::now();
            let answer = shared.with_rows(read);
            metrics::read_answered(start.elapsed());
            answer
        })
        .boxed()
    }
}

/// Runs blocking work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordsError> + Send + 'static,
) -> Result<T, RecordsError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(RecordsError::Unavailable(error.to_string())))
}

impl Shared {
    fn with_rows<T>(&self, work: impl FnOnce(&Rows) -> Result<T, RecordsError>) -> Result<T, RecordsError> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        work(rows.as_ref().ok_or_else(|| RecordsError::Unavailable("it could not be opened again".into()))?)
    }

    fn write(&self, mut writing: OwnedMutexGuard<Writing>, changes: Vec<Change>) -> Result<(), RecordsError> {
        let start = Instant::now();
        changes.iter().try_for_each(|change| limits::check(change, MAX_VALUE_BYTES))?;
        self.make_writable(&mut writing)?;
        let outcome = self.with_rows(|rows| {
            let applied = make_room(rows, self.options.memtable_bytes)
                .map_err(WriteError::from)
                .and_then(|()| Writer::new(&rows.db, &rows.keyspace).apply(changes));
            applied.map_err(|error| self.write_error(&mut writing, error))
        })?;
        metrics::batch_written(start.elapsed(), outcome.applied, outcome.stale, outcome.bytes);
        Ok(())
    }

    /// Writes the checkpoint behind all rows so far and syncs: the journal keeps their order, so a crash in between
    /// leaves the checkpoint only with its rows.
    fn put_checkpoint(
        &self,
        mut writing: OwnedMutexGuard<Writing>,
        shard: ShardId,
        checkpoint: &[u8],
    ) -> Result<(), RecordsError> {
        let start = Instant::now();
        at_most("checkpoint", checkpoint.len(), MAX_VALUE_BYTES)?;
        self.make_writable(&mut writing)?;
        let number = writing.number + 1;
        self.with_rows(|rows| {
            let row = cell::encode(Position(number), checkpoint);
            let written = make_room(rows, self.options.memtable_bytes)
                .and_then(|()| rows.keyspace.insert(keys::checkpoint(shard), row))
                .and_then(|()| rows.db.persist(PersistMode::SyncAll));
            written.map_err(|error| self.write_error(&mut writing, error.into()))
        })?;
        writing.number = number;
        self.mark.advance(number).map_err(|error| RecordsError::Unavailable(error.to_string()))?;
        metrics::checkpoint_written(start.elapsed());
        Ok(())
    }

    /// Refuses while the disk is nearly full, and opens the database again once it no longer is, if it gave up.
    fn make_writable(&self, writing: &mut Writing) -> Result<(), RecordsError> {
        if self.is_short_of_space(self.options.reserve_bytes) {
            return Err(RecordsError::Full { path: self.dir.clone() });
        }
        if writing.starved {
            self.reopen()?;
            writing.starved = false;
        }
        Ok(())
    }

    fn reopen(&self) -> Result<(), RecordsError> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        *rows = None;
        *rows = Some(store::open(&self.dir, self.options)?.rows);
        tracing::info!(path = %self.dir.display(), "the records take writes again");
        Ok(())
    }

    fn write_error(&self, writing: &mut Writing, error: WriteError) -> RecordsError {
        let error = match error {
            WriteError::Records(error) => return error,
            WriteError::Store(error) => error,
        };
        match &error {
            fjall::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {}
            // A flush in the background failed. Twice the reserve, as the failed flush may have freed what it took.
            fjall::Error::Poisoned if self.is_short_of_space(2 * self.options.reserve_bytes) => {}
            fjall::Error::Poisoned => {
                return RecordsError::Unavailable("an earlier write failed: restart the node".into());
            }
            error => return store::read_error(error),
        }
        tracing::error!(path = %self.dir.display(), "no space left for the records: writes wait until some is freed");
        writing.starved = true;
        RecordsError::Full { path: self.dir.clone() }
    }

    /// Whether less than `bytes` are free. Where the file system does not say, writing has to find out.
    fn is_short_of_space(&self, bytes: u64) -> bool {
        let is_short = |stat: rustix::fs::StatVfs| stat.f_bavail.saturating_mul(stat.f_frsize) < bytes;
        rustix::fs::statvfs(&self.dir).is_ok_and(|stat| stat.f_blocks > 0 && is_short(stat))
    }
}

/// Seals a full memtable and waits until few enough of them wait for their flush; an error once the database has given
/// up on flushing. By itself it seals them when a worker comes to it, after any compaction, and they grow meanwhile.
fn make_room(rows: &Rows, memtable_bytes: u64) -> fjall::Result<()> {
    if rows.keyspace.tree.active_memtable().size() >= memtable_bytes {
        rows.keyspace.rotate_memtable()?;
    }
    while rows.keyspace.sealed_memtable_count() > MAX_SEALED_MEMTABLES {
        rows.db.persist(PersistMode::Buffer)?;
        std::thread::sleep(FLUSH_POLL);
    }
    Ok(())
}

impl RecordStore for LocalRecords {
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), RecordsError>> {
        let shared = self.shared.clone();
        async move {
            let writing = shared.writing.clone().lock_owned().await;
            blocking(move || shared.write(writing, changes)).await
        }
        .boxed()
    }

    /// Nobody else writes to it, so the last one stands.
    fn put_checkpoint(
        &self,
        shard: ShardId,
        _upto: Offset,
        checkpoint: Bytes,
    ) -> BoxFuture<'_, Result<(), RecordsError>> {
        let shared = self.shared.clone();
        async move {
            let writing = shared.writing.clone().lock_owned().await;
            blocking(move || shared.put_checkpoint(writing, shard, &checkpoint)).await
        }
        .boxed()
    }

    fn checkpoint(&self, shard: ShardId) -> BoxFuture<'_, Result<Option<Bytes>, RecordsError>> {
        self.read(move |rows| reader::checkpoint(rows, shard))
    }

    fn states(&self, sessions: &[&SessionKey]) -> BoxFuture<'_, Result<Vec<Option<At<Bytes>>>, RecordsError>> {
        let sessions: Result<Vec<_>, _> = sessions.iter().map(|session| SessionPart::new(session)).collect();
        self.read(move |rows| sessions?.iter().map(|session| reader::session(rows, session)).collect())
    }

    fn items(
        &self,
        session: &SessionKey,
        from: Option<u64>,
        order: Order,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredItem>, RecordsError>> {
        let session = SessionPart::new(session);
        self.read(move |rows| reader::items(rows, &session?, from, order, limit))
    }

    fn dedupe(&self, session: &SessionKey, limit: usize) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, RecordsError>> {
        let session = SessionPart::new(session);
        self.read(move |rows| reader::dedupe(rows, &session?, limit))
    }

    fn turn(&self, tenant: &str, turn: TurnId) -> BoxFuture<'_, Result<Option<SessionKey>, RecordsError>> {
        let key = keys::turn(tenant, turn);
        self.read(move |rows| reader::turn(rows, &key?))
    }

    fn sessions(
        &self,
        tenant: &str,
        channel: &str,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredSession>, RecordsError>> {
        let prefix = keys::channel(tenant, channel);
        let after = after.map(SessionPart::new).transpose();
        self.read(move |rows| reader::sessions(rows, &prefix?, after?.as_ref(), limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChangeKind, Row};

    fn state(position: u64) -> Vec<Change> {
        let row = Row::Session { session: SessionKey::api("t", "a"), state: "state".into() };
        vec![Change { position: Position(position), kind: ChangeKind::Put(row) }]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sessions_of_all_tenants_and_turns_of_a_session_are_listed_in_pages() -> Result<(), RecordsError> {
        let dir = tempfile::tempdir().map_err(|error| RecordsError::Unavailable(error.to_string()))?;
        let store = LocalRecords::open(dir.path())?;
        let names = [("a", "api", "1"), ("a", "key", "1"), ("b", "api", "1"), ("b", "api", "2")];
        let keys = names.map(|(tenant, channel, chat)| SessionKey::in_channel(tenant, channel, chat));
        let put = |row| Change { position: Position(1), kind: ChangeKind::Put(row) };
        for (number, session) in (1..).zip(&keys) {
            // A turn belongs to one session of its tenant.
            let turns = (0..3).map(|turn| TurnId(turn << 100 | number));
            let turns = turns.map(|turn| put(Row::Turn { session: session.clone(), turn }));
            let state = put(Row::Session { session: session.clone(), state: "state".into() });
            store.write(turns.chain([state]).collect()).await?;
        }
        let (mut found, mut after) = (Vec::new(), None);
        while let Some((last, _)) = store.all_sessions(after.as_ref(), 3).await?.into_iter().next() {
            found.push(last.clone());
            after = Some(last);
        }
        assert_eq!(found, keys);
        let turns = async |after, limit| store.turns(&keys[1], after, limit).await;
        let [first, second, third] = [0, 1, 2].map(|turn| TurnId(turn << 100 | 2));
        assert_eq!(turns(None, 2).await?, [first, second]);
        assert_eq!(turns(Some(second), 9).await?, [third]);
        assert_eq!(turns(Some(third), 9).await?, []);
        let erase = ChangeKind::EraseSession { session: keys[1].clone() };
        store.write(vec![Change { position: Position(2), kind: erase }]).await?;
        assert_eq!(turns(None, 9).await?, []);
        Ok(())
    }

    /// What the database itself does on a full disk is not played here, only the way back.
    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_full_disk_writes_go_on() -> Result<(), RecordsError> {
        let dir = tempfile::tempdir().map_err(|error| RecordsError::Unavailable(error.to_string()))?;
        let store = LocalRecords::open(dir.path())?;
        store.write(state(1)).await?;
        store.put_checkpoint(ShardId(3), Offset(1), "first".into()).await?;
        store.shared.writing.lock().await.starved = true;
        store.write(state(2)).await?;
        assert!(!store.shared.writing.lock().await.starved);
        store.put_checkpoint(ShardId(3), Offset(2), "second".into()).await?;
        drop(store);
        let store = LocalRecords::open(dir.path())?;
        let found = store.session(&SessionKey::api("t", "a")).await?;
        assert_eq!(found.map(|at| at.position), Some(Position(2)));
        assert_eq!(store.checkpoint(ShardId(3)).await?, Some("second".into()));
        Ok(())
    }
}
