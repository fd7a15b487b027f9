//! Events in a topic of their own: shard N's go to partition N, so that their order is the log's.
//!
//! One idempotent producer publishes for all shards, with one request under way per broker, so that of a batch nothing is written whose
//! beginning is not. Whatever goes wrong with one message ends its producer: what it had not sent is dropped, its batches fail, and the next
//! call has a new one. What the old one had under way may still be written, behind newer events too; it was published before then.
//!
//! Bounds: one batch per shard; what the caller puts into it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_cluster_protocol::{Offset, ShardId};
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};
use tokio::sync::{Mutex as Turn, oneshot};
use tracing::{debug, info};

use super::{KafkaConfig, blocking, context::Context, topic::Topic, unreachable_at};
use crate::{EVENT_CONTENT_TYPE, EventMessage, EventPublisher, LogError};

/// How often a producer's thread looks whether it is still needed.
const POLL: Duration = Duration::from_millis(100);

/// Publishes events to a topic of Kafka: what [`publish`](EventPublisher::publish) has taken is on every broker that is in sync.
pub struct KafkaEvents {
    config: KafkaConfig,
    /// Whose turn it is, by shard.
    turns: Vec<Turn<()>>,
    newest: Turn<Arc<Producer>>,
}

/// A producer, and a thread that takes its deliveries. The thread holds the last handle, so that no client is closed on one of tokio's.
struct Producer {
    client: BaseProducer<Deliveries>,
    /// Set for good once something went wrong, or nobody needs it.
    is_retired: Arc<AtomicBool>,
}

struct Deliveries {
    is_retired: Arc<AtomicBool>,
}

/// Events whose outcomes are not all known.
struct Batch {
    missing: AtomicUsize,
    failed: OnceLock<KafkaError>,
    /// Taken with the last outcome.
    done: Mutex<Option<oneshot::Sender<()>>>,
}

impl KafkaEvents {
    /// Publishes to `config.topic`, which is made where there is none, with a partition for each of `config.shards`. How long it keeps events is the
    /// brokers' default and the operator's choice.
    ///
    /// # Errors
    ///
    /// [`LogError::Unreachable`], and [`LogError::Misconfigured`] for a topic with too few partitions.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn open(config: KafkaConfig) -> Result<Self, LogError> {
        Topic::open_for_events(&config).await?;
        let made = config.clone();
        let newest = Turn::new(blocking(move || Producer::start(&made)).await?);
        info!(topic = config.topic, shards = config.shards, "events are published");
        Ok(Self { turns: (0..config.shards).map(|_| Turn::default()).collect(), newest, config })
    }

    async fn producer(&self) -> Result<Arc<Producer>, LogError> {
        let mut newest = self.newest.lock().await;
        if newest.is_retired.load(Ordering::Acquire) {
            let config = self.config.clone();
            *newest = blocking(move || Producer::start(&config)).await?;
        }
        Ok(newest.clone())
    }
}

impl Drop for KafkaEvents {
    fn drop(&mut self) {
        self.newest.get_mut().is_retired.store(true, Ordering::Release);
    }
}

impl fmt::Debug for KafkaEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaEvents").field("config", &self.config).finish_non_exhaustive()
    }
}

impl EventPublisher for KafkaEvents {
    fn publish(&self, shard: ShardId, events: Vec<EventMessage>) -> BoxFuture<'_, Result<(), LogError>> {
        async move {
            let unknown = LogError::OutOfRange { shard, offset: Offset(0) };
            let _turn = self.turns.get(usize::from(shard.0)).ok_or(unknown)?.lock().await;
            if events.is_empty() {
                return Ok(());
            }
            let producer = self.producer().await?;
            let (done, settled) = oneshot::channel();
            let batch = Arc::new(Batch {
                missing: AtomicUsize::new(events.len()),
                failed: OnceLock::new(),
                done: Mutex::new(Some(done)),
            });
            producer.send(&self.config.topic, shard, &events, &batch);
            // The last outcome comes within the messages' time-out; a producer that ends without has not published them.
            let is_settled = settled.await.is_ok();
            match batch.failed.get() {
                None if is_settled => Ok(()),
                None => Err(LogError::Closed),
                Some(error) => Err(unreachable_at(&self.config, error)),
            }
        }
        .boxed()
    }
}

impl Producer {
    fn start(config: &KafkaConfig) -> Result<Arc<Self>, LogError> {
        let is_retired = Arc::new(AtomicBool::new(false));
        let context = Deliveries { is_retired: is_retired.clone() };
        let client = config.event_producer().create_with_context(context).map_err(|e| unreachable_at(config, e))?;
        let producer = Arc::new(Self { client, is_retired });
        let served = producer.clone();
        let spawned = thread::Builder::new().name("kafka-events".into()).spawn(move || served.serve());
        spawned.map_err(|e| unreachable_at(config, e))?;
        Ok(producer)
    }

    fn serve(self: Arc<Self>) {
        let mut is_purged = false;
        loop {
            self.client.poll(POLL);
            if !self.is_retired.load(Ordering::Acquire) {
                continue;
            }
            if Arc::strong_count(&self) == 1 {
                return;
            }
            // Nothing more of a batch whose beginning failed.
            if !is_purged {
                self.client.purge(PurgeConfig::default().queue());
                is_purged = true;
            }
        }
    }

    /// Hands the batch to the client, which tells the outcome of each message. Does not wait.
    fn send(&self, topic: &str, shard: ShardId, events: &[EventMessage], batch: &Arc<Batch>) {
        let headers = OwnedHeaders::new().insert(Header { key: "content-type", value: Some(EVENT_CONTENT_TYPE) });
        for (index, event) in events.iter().enumerate() {
            let record = BaseRecord::with_opaque_to(topic, batch.clone())
                .partition(i32::from(shard.0))
                .key(&event.key[..])
                .payload(&event.payload[..])
                .headers(headers.clone());
            if let Err((error, _)) = self.client.send(record) {
                self.is_retired.store(true, Ordering::Release);
                return batch.settle(events.len() - index, Some(error));
            }
        }
    }
}

impl Batch {
    fn settle(&self, outcomes: usize, error: Option<KafkaError>) {
        if let Some(error) = error {
            // The first says why.
            let _ = self.failed.set(error);
        }
        if self.missing.fetch_sub(outcomes, Ordering::AcqRel) == outcomes {
            let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Who waited may be gone.
            let _ = done.map(|done| done.send(()));
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        let error = result.as_ref().err().map(|(error, _)| error.clone());
        if let Some(error) = &error {
            debug!(%error, "an event was not published");
            self.is_retired.store(true, Ordering::Release);
        }
        batch.settle(1, error);
    }
}
