//! The embedded log: all shards share one log in one directory, one writer and one sync per batch.
//!
//! ```text
//! <directory>/lock             locked while a process has the log open
//!             meta             the log's identity and number of shards
//!             0000000001.seg   segments of batches, written in order; the last may be an empty spare
//! ```
//!
//! One [`LocalLog`] per node; it spawns and joins two threads, the [`writer`] and the [`keeper`]. What is durable is decided
//! by the writer alone; [`recover`] finds it again, [`format`] says how it looks. Entries are trimmed by whole segments.

mod directory;
mod format;
mod index;
mod keeper;
mod queue;
mod reader;
mod recover;
mod writer;

use std::{
    fmt, io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_protocol::{Offset, ShardId};
use tracing::{error, info, warn};

use self::{
    directory::{Directory, FIRST_SEGMENT, Lock, unusable},
    format::{MAX_SHARDS, Meta, SegmentHeader, ShardMark},
    index::Index,
    keeper::Keeper,
    queue::Queue,
    recover::recover,
    writer::Writer,
};
use crate::{AppendDone, Bounds, LogError, ShardLog, StoredEntry, metrics::LogMetrics};

/// Smaller segments would be mostly header.
const MIN_SEGMENT_BYTES: usize = 128 * 1024;
/// A new log begins with a small one, so that it is made at once; the next is prepared meanwhile.
const FIRST_SEGMENT_BYTES: usize = 1024 * 1024;
/// Larger ones would make the scan at open need as much memory.
const MAX_SEGMENT_BYTES: usize = 1024 * 1024 * 1024;

/// How to open a [`LocalLog`].
#[derive(Debug, Clone)]
pub struct LocalLogOptions {
    /// The log's own directory; made where there is none.
    pub directory: PathBuf,
    /// How many shards a new log gets, 1 to 16,384. A log that exists keeps its number.
    pub shards: u16,
    /// The size of new segments in bytes, kept between 128 KiB and 1 GiB. The disk holds at least two; trimming frees whole ones.
    pub segment_bytes: usize,
    /// New turns are refused while less than this is free on the disk, beside room for the next segment.
    pub reserve_bytes: u64,
}

impl LocalLogOptions {
    /// A log of 64 shards in `directory`, with segments of 16 MiB and a reserve of 64 MiB.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let (segment_bytes, reserve_bytes) = (16 * 1024 * 1024, 64 * 1024 * 1024);
        Self { directory: directory.into(), shards: 64, segment_bytes, reserve_bytes }
    }
}

/// The embedded [`ShardLog`]. An append whose outcome is [`At`](crate::AppendOutcome::At) was synced to disk.
///
/// Dropping it writes what is queued, tells the callers and frees the directory. Reading and trimming need a tokio runtime.
pub struct LocalLog {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    lock: Arc<Lock>,
    threads: Vec<JoinHandle<()>>,
}

/// What callers, readers and the writer share.
struct Shared {
    directory: Directory,
    meta: Meta,
    index: Mutex<Index>,
    queue: Queue,
    metrics: LogMetrics,
    /// Set for ever once a write or sync failed.
    failed: AtomicBool,
    /// Held while segments are deleted, oldest first.
    deleting: Mutex<()>,
}

impl LocalLog {
    /// Opens the log in `options.directory`, and makes one where there is none. Blocks while it reads what the log holds.
    ///
    /// # Errors
    ///
    /// Any [`LogError`] but `OutOfRange`, `Full` and `Closed`; the directory is left as it was then.
    pub fn open(options: LocalLogOptions) -> Result<Self, LogError> {
        if options.shards == 0 || options.shards > MAX_SHARDS {
            let message = format!("a log has 1 to {MAX_SHARDS} shards, not {}", options.shards);
            return Err(unusable(&options.directory, io::Error::new(io::ErrorKind::InvalidInput, message)));
        }
        let segment_bytes = format::round_up(options.segment_bytes.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES));
        let (directory, lock) = Directory::open(&options.directory)?;
        let meta = match directory.meta()? {
            Some(meta) => meta,
            None => create(&directory, options.shards, segment_bytes.min(FIRST_SEGMENT_BYTES))?,
        };
        if meta.shards != options.shards {
            warn!(
                stored = meta.shards,
                configured = options.shards,
                "the log keeps the number of shards it was made with"
            );
        }
        let found = recover(&directory, &meta)?;
        info!(path = %directory.path().display(), segments = found.index.segments(), batches = found.next_batch - 1, "log opened");
        let metrics = LogMetrics::new();
        metrics.segments(found.index.segments());
        let active = found.active.sequence;
        let keeper = Keeper::new(directory.clone(), segment_bytes, options.reserve_bytes, active, found.spare);
        let shared = Shared {
            directory,
            meta,
            index: Mutex::new(found.index),
            queue: Queue::default(),
            metrics,
            failed: AtomicBool::new(false),
            deleting: Mutex::new(()),
        };
        let (shared, keeper, lock) = (Arc::new(shared), Arc::new(keeper), Arc::new(lock));
        let mut log = Self { shared, keeper, lock, threads: Vec::new() };
        log.spawn_threads((found.active, found.at, found.next_batch))?;
        Ok(log)
    }

    fn spawn_threads(&mut self, end: (directory::SegmentFile, usize, u64)) -> Result<(), LogError> {
        let writer = Writer::new(self.shared.clone(), self.keeper.clone(), self.lock.clone(), end);
        let (keeper, lock) = (self.keeper.clone(), self.lock.clone());
        self.spawn("log-writer", move || writer.run())?;
        self.spawn("log-keeper", move || {
            keeper.run();
            drop(lock);
        })
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let spawned = thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(spawned.map_err(|e| unusable(self.shared.directory.path(), e))?);
        Ok(())
    }
}

impl Drop for LocalLog {
    fn drop(&mut self) {
        self.shared.queue.close();
        // The last handle may go with a callback, on the writer thread: it cannot wait for itself, and both threads end by themselves.
        let here = thread::current().id();
        if self.threads.iter().any(|thread| thread.thread().id() == here) {
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread of the log had panicked");
            }
        }
    }
}

impl fmt::Debug for LocalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLog").field("directory", &self.shared.directory.path()).finish_non_exhaustive()
    }
}

impl ShardLog for LocalLog {
    fn shards(&self) -> u16 {
        self.shared.meta.shards
    }

    fn append(&self, shard: ShardId, entries: Vec<Bytes>, done: AppendDone) {
        let known = shard.0 < self.shared.meta.shards;
        if !self.shared.queue.push(shard, known, entries, done) {
            self.shared.metrics.refused();
        }
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredEntry>, LogError>> {
        let shared = self.shared.clone();
        async move {
            let places = shared.index().plan(shard, from, max_bytes)?;
            if places.is_empty() {
                return Ok(Vec::new());
            }
            blocking(move || reader::read(&shared, shard, from, &places)).await
        }
        .boxed()
    }

    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>> {
        async move { self.shared.index().bounds(shard) }.boxed()
    }

    fn trim(&self, shard: ShardId, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        async move {
            let deletable = {
                let mut index = self.shared.index();
                index.trim(shard, before)?;
                index.deletable()
            };
            if deletable.is_none() {
                return Ok(());
            }
            let (shared, keeper, lock) = (self.shared.clone(), self.keeper.clone(), self.lock.clone());
            blocking(move || {
                let deleted = shared.delete_needless_segments();
                keeper.look();
                drop(lock);
                deleted
            })
            .await
        }
        .boxed()
    }

    fn admission(&self) -> Result<(), LogError> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(LogError::Closed);
        }
        self.keeper.admission()
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes the oldest segments as long as no shard needs them. The index forgets one only after it is gone for good, so that
    /// a shard's start never goes back.
    fn delete_needless_segments(&self) -> Result<(), LogError> {
        let _one_at_a_time = self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(sequence) = self.index().deletable() else { return Ok(()) };
            self.directory.remove_segment(sequence)?;
            let mut index = self.index();
            index.forget_segment(sequence);
            self.metrics.segments(index.segments());
        }
    }
}

fn create(directory: &Directory, shards: u16, segment_bytes: usize) -> Result<Meta, LogError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let meta = Meta { shards, log_id: rand::random(), created_ms: now.as_millis() as u64 };
    let marks = vec![ShardMark::default(); usize::from(shards)];
    let header = SegmentHeader { log_id: meta.log_id, sequence: FIRST_SEGMENT, first_batch: 1, marks };
    let mut bytes = Vec::new();
    header.encode_into(shards, &mut bytes);
    directory.create_log(&meta, &bytes, segment_bytes)?;
    Ok(meta)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    // A task that did not run to its end was cancelled by the runtime's shutdown.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LogError::Closed))
}
