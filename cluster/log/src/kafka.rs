//! The log of a cluster, in Apache Kafka: one topic, one partition per shard, one message per entry.
//!
//! ```text
//!              append: one idempotent producer, replaced after every outcome that is unknown
//!             ┌──────────────────────────────────────────────────────────────┐
//!  KafkaLog ──┤ read: two consumers, one at the ends and one behind them     ├── brokers
//!             │ bounds, trim, watch: one client for questions                │
//!             └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! There are no transactions, no consumer groups and no offsets kept in Kafka: who owns a shard is decided by the entries
//! ([`ownership`](crate::ownership)). Brokers must keep what they acknowledged, so [`KafkaLog::open`] refuses a topic that is set up to
//! forget. What is at an offset stays there; if it does not, because the topic was made anew or a shard lost its end, the log or the shard
//! shuts for good and says so.
//!
//! Everything that blocks in librdkafka runs on threads of our own or on tokio's for blocking work.

mod append;
mod config;
mod context;
mod describe;
mod events;
mod read;
mod recent;
mod topic;
mod watch;

use std::{
    fmt,
    future::ready,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_protocol::{Dependency, Offset, ShardId};
use rdkafka::{
    TopicPartitionList,
    admin::{AdminClient, AdminOptions},
};
use tracing::{error, info};

use self::{append::Appender, context::Context, read::Reader, topic::Topic, watch::Watch};
pub use self::{
    config::{KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism},
    events::KafkaEvents,
};
use crate::{AppendDone, Bounds, LogError, ShardLog, StoredEntry, metrics::KafkaMetrics};

/// Bytes of entries that wait for their outcomes at most; appends past them are unknown at once. As in the embedded log.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// Entries that wait for their outcomes at most.
const MAX_QUEUED_ENTRIES: usize = 100_000;
/// The pause before a leader that moved is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(30);
/// How long one question to a leader may take before another is asked for.
const ONE_QUESTION: Duration = Duration::from_secs(1);
/// How often an end that lies too low is looked at again before it is believed, and after how long.
const CONFIRMATIONS: (u32, Duration) = (3, Duration::from_millis(200));

/// The [`ShardLog`] of a cluster. An append whose outcome is [`At`](crate::AppendOutcome::At) was taken by every broker that is in sync, at
/// least `min.insync.replicas` of them.
///
/// Dropping it lets what is in flight end in the background, and tells the callers. Reading and trimming need a tokio runtime.
pub struct KafkaLog {
    inner: Arc<Inner>,
    /// Takes the last handle, so that no client is closed on a thread of tokio's.
    closing: mpsc::Sender<()>,
}

/// All that the log is made of.
struct Inner {
    shared: Arc<Shared>,
    appender: Arc<Appender>,
    reader: Reader,
    watch: Watch,
}

/// What its parts share.
struct Shared {
    config: KafkaConfig,
    topic: Topic,
    /// For questions: metadata, bounds, deletions.
    admin: AdminClient<Context>,
    known: Vec<Known>,
    metrics: KafkaMetrics,
    /// Set once, when the log cannot be trusted any more.
    fatal: OnceLock<LogError>,
}

/// What this process knows of a shard.
#[derive(Default)]
struct Known {
    /// No entry before this one is left.
    start: AtomicU64,
    /// Invariant: every entry before this one was committed. Never goes back.
    end: AtomicU64,
    /// Set once, when the shard turned out to end before `end`.
    truncated: OnceLock<LogError>,
}

impl KafkaLog {
    /// Opens the log in `config.topic`, and makes the topic where there is none.
    ///
    /// # Errors
    ///
    /// [`LogError::Unreachable`], [`LogError::Misconfigured`] for a setting with which promises would be broken, and
    /// [`LogError::Recreated`] if the topic is not the one that is expected.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn open(config: KafkaConfig) -> Result<Self, LogError> {
        let (admin, topic) = Topic::open(&config).await?;
        let known = (0..config.shards).map(|_| Known::default()).collect();
        let shared = Shared { admin, topic, known, metrics: KafkaMetrics::new(), fatal: OnceLock::new(), config };
        let shared = Arc::new(shared);
        let made = {
            let shared = shared.clone();
            blocking(move || Ok((Appender::new(shared.clone())?, Reader::new(shared)?))).await
        };
        let (appender, reader) = made?;
        info!(topic = shared.config.topic, id = shared.topic.id, shards = shared.config.shards, "log opened");
        let inner = Arc::new(Inner { shared, appender, reader, watch: Watch::new() });
        let closing = watch::spawn(inner.clone())?;
        Ok(Self { inner, closing })
    }

    /// The id of the topic, for [`KafkaConfig::expected_topic_id`] when the log is opened again.
    pub fn topic_id(&self) -> &str {
        &self.inner.shared.topic.id
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.inner.appender.close();
        // The watch may have ended with the process.
        let _ = self.closing.send(());
    }
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLog").field("config", &self.inner.shared.config).finish_non_exhaustive()
    }
}

impl ShardLog for KafkaLog {
    fn shards(&self) -> u16 {
        self.inner.shared.config.shards
    }

    fn append(&self, shard: ShardId, entries: Vec<Bytes>, done: AppendDone) {
        self.inner.appender.append(shard, entries, done);
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredEntry>, LogError>> {
        async move {
            self.inner.shared.gate(shard, from)?;
            self.inner.reader.read(shard, from, max_bytes).await
        }
        .boxed()
    }

    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>> {
        async move {
            self.inner.shared.gate(shard, Offset(0))?;
            bounds(&self.inner.shared, shard).await
        }
        .boxed()
    }

    /// Ends within a millisecond or so of the entry's coming, if nobody reads behind it.
    fn arrival(&self, shard: ShardId, from: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        async move {
            self.inner.shared.gate(shard, from)?;
            self.inner.reader.arrival(shard, from).await
        }
        .boxed()
    }

    fn trim(&self, shard: ShardId, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        async move {
            self.inner.shared.gate(shard, before)?;
            let Bounds { start, end } = bounds(&self.inner.shared, shard).await?;
            if before > end {
                return Err(LogError::OutOfRange { shard, offset: before });
            }
            if before <= start { Ok(()) } else { self.inner.shared.delete_before(shard, before).await }
        }
        .boxed()
    }

    fn admission(&self) -> Result<(), LogError> {
        if let Some(fatal) = self.inner.shared.fatal.get() {
            return Err(fatal.clone());
        }
        self.inner.watch.admission(self.inner.shared.config.admission_grace)
    }

    /// Says so at once where admission waits for a while: brokers that change their leader are no outage, but worth a line.
    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        let trouble = self.inner.shared.fatal.get().cloned().or_else(|| self.inner.watch.trouble());
        let trouble = trouble.map(|error| error.to_string());
        ready(Some(Dependency { name: "kafka", trouble })).boxed()
    }
}

impl Shared {
    /// Refuses what a log or a shard that is shut cannot do. `offset` is named for a shard that does not exist.
    fn gate(&self, shard: ShardId, offset: Offset) -> Result<(), LogError> {
        if let Some(fatal) = self.fatal.get() {
            return Err(fatal.clone());
        }
        let known = self.known.get(usize::from(shard.0)).ok_or(LogError::OutOfRange { shard, offset })?;
        known.truncated.get().map_or(Ok(()), |truncated| Err(truncated.clone()))
    }

    fn known(&self, shard: ShardId) -> &Known {
        &self.known[usize::from(shard.0)]
    }

    /// Shuts the whole log for good.
    fn shut(&self, why: LogError) {
        error!(error = %why, "the log shuts");
        // The first reason stays.
        let _ = self.fatal.set(why);
    }

    /// Shuts a shard for good, since it ends before what was known of it.
    fn truncated(&self, shard: ShardId, end: u64) -> LogError {
        let known = self.known(shard);
        let (was, end) = (Offset(known.end.load(Ordering::Acquire)), Offset(end));
        let why = known.truncated.get_or_init(|| {
            let why = LogError::Truncated { shard, known: was, end };
            error!(error = %why, "the shard shuts");
            why
        });
        why.clone()
    }

    fn unreachable(&self, reason: impl fmt::Display) -> LogError {
        unreachable_at(&self.config, reason)
    }

    async fn delete_before(&self, shard: ShardId, before: Offset) -> Result<(), LogError> {
        let mut records = TopicPartitionList::new();
        let offset = i64::try_from(before.0).map_err(|_| LogError::OutOfRange { shard, offset: before })?;
        let options = AdminOptions::new()
            .request_timeout(Some(self.config.request_timeout))
            .operation_timeout(Some(self.config.request_timeout));
        records
            .add_partition_offset(&self.config.topic, i32::from(shard.0), rdkafka::Offset::Offset(offset))
            .map_err(|e| self.unreachable(e))?;
        let deleted = self.admin.delete_records(&records, &options).await.map_err(|e| self.unreachable(e))?;
        for partition in deleted.elements() {
            partition.error().map_err(|e| self.unreachable(e))?;
            if let Some(start) = partition.offset().to_raw().and_then(|start| u64::try_from(start).ok()) {
                self.known(shard).start.fetch_max(start, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Asks the shard's leader, and blocks meanwhile. Leaders move, so it asks again until the time is over.
    fn watermarks(&self, shard: ShardId) -> Result<(u64, u64), LogError> {
        let deadline = Instant::now() + self.config.request_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = left.min(ONE_QUESTION);
            match self.admin.inner().fetch_watermarks(&self.config.topic, i32::from(shard.0), patience) {
                Ok((low, high)) => {
                    let offset = |offset| u64::try_from(offset).map_err(|_| self.unreachable("a shard has no bounds"));
                    return Ok((offset(low)?, offset(high)?));
                }
                Err(error) if left <= ASK_AGAIN => return Err(self.unreachable(error)),
                Err(_) => std::thread::sleep(ASK_AGAIN),
            }
            self.refresh(patience);
        }
    }

    /// Learns anew who leads, from any broker. This client would go on asking one that died, since it knows of no topic by itself.
    fn refresh(&self, patience: Duration) {
        // It tells nothing that the next question does not.
        let _ = self.admin.inner().fetch_metadata(Some(&self.config.topic), patience);
    }

    fn bounds_now(&self, shard: ShardId) -> Result<Bounds, LogError> {
        let known = self.known(shard);
        // Read before the question is sent: whatever was committed by now has to be in the answer.
        let committed = known.end.load(Ordering::Acquire);
        for _ in 0..CONFIRMATIONS.0 {
            let (start, end) = self.watermarks(shard)?;
            if end >= committed {
                known.start.fetch_max(start, Ordering::AcqRel);
                known.end.fetch_max(end, Ordering::AcqRel);
                return Ok(Bounds { start: Offset(start), end: Offset(end) });
            }
            std::thread::sleep(CONFIRMATIONS.1);
        }
        let (_, end) = self.watermarks(shard)?;
        Err(self.truncated(shard, end))
    }
}

/// The bounds as the shard's leader knows them after this was called.
async fn bounds(shared: &Arc<Shared>, shard: ShardId) -> Result<Bounds, LogError> {
    let shared = shared.clone();
    blocking(move || shared.bounds_now(shard)).await
}

fn unreachable_at(config: &KafkaConfig, reason: impl fmt::Display) -> LogError {
    LogError::Unreachable { brokers: config.bootstrap.clone(), reason: reason.to_string() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    // A task that did not run to its end was cancelled by the runtime's shutdown.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LogError::Closed))
}
