//! Appends: one producer for all shards, idempotent, in order.
//!
//! librdkafka repeats what fails until the time-out; so an error that it tells is an outcome that nobody knows, and what its producer does
//! behind such a hole is not relied on. The producer is *retired*: new entries go to the next one, but those of a shard wait until all its
//! earlier entries have their outcomes. So no entry of a shard is sent while an older producer may still land one.
//!
//! ```text
//!  append ─► per shard: [waiting] ─► producer 7 (newest)  ─► brokers
//!                       in flight ─► producer 6 (retired) ─► brokers, until each entry is delivered or timed out
//! ```
//!
//! Bounds: [`MAX_QUEUED_BYTES`] and [`MAX_QUEUED_ENTRIES`] over all shards, waiting or in flight. An append past them is refused: its
//! entries are dropped and its outcome is unknown. A retired producer ends within the append time-out.

use std::{
    collections::VecDeque,
    mem,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parlance_cluster_protocol::{Offset, ShardId};
use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, ProducerContext},
};
use tracing::{info, warn};

use super::{MAX_QUEUED_BYTES, MAX_QUEUED_ENTRIES, Shared, context::Context};
use crate::{AppendDone, AppendOutcome, LogError, MAX_ENTRY_BYTES};

/// How often a producer's thread looks whether it is still needed.
const POLL: Duration = Duration::from_millis(100);

/// Takes appends and tells their outcomes.
pub(super) struct Appender {
    shared: Arc<Shared>,
    shards: Vec<Mutex<ShardQueue>>,
    /// `None` once the log closes.
    newest: Mutex<Option<Arc<Incarnation>>>,
    /// For outcomes that are known at once: no callback runs within an append.
    answers: mpsc::Sender<Answer>,
    queued_bytes: AtomicUsize,
    queued_entries: AtomicUsize,
}

/// One producer, and a thread that takes its deliveries. The thread holds the last handle.
struct Incarnation {
    producer: BaseProducer<Deliveries>,
    /// Set for good once an outcome is unknown, or the log closes.
    retired: AtomicBool,
    /// It took no entry, and will not again if its error is fatal. Its thread retires it.
    broken: AtomicBool,
}

#[derive(Default)]
struct ShardQueue {
    /// Which producer has entries of this shard; `None` while nothing is in flight.
    incarnation: Option<Arc<Incarnation>>,
    in_flight: usize,
    /// Appends that wait until nothing is in flight at a retired producer.
    waiting: VecDeque<(Arc<Pending>, Vec<Bytes>)>,
    /// Where the last entry that was acknowledged ends.
    acknowledged: u64,
}

/// An append that has not all its outcomes.
struct Pending {
    state: Mutex<Outcomes>,
    since: Instant,
}

struct Outcomes {
    known: Vec<AppendOutcome>,
    missing: usize,
    done: Option<AppendDone>,
}

type Answer = (AppendDone, Vec<AppendOutcome>);

/// What goes with an entry through librdkafka and comes back with its delivery.
struct Ticket {
    pending: Arc<Pending>,
    index: usize,
    shard: ShardId,
    bytes: usize,
}

/// Takes the deliveries of one producer.
struct Deliveries(Weak<Appender>);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        // The appender outlives its producers' threads.
        let Some(appender) = self.0.upgrade() else { return };
        appender.delivered(&ticket, acknowledged_at(result));
    }
}

/// Where the entry lies. Success without an offset, which a repeated request may give, is no place.
fn acknowledged_at(result: &DeliveryResult<'_>) -> Result<Offset, String> {
    match result {
        Ok(message) => offset_of(message.offset()),
        Err((error, _)) => Err(error.to_string()),
    }
}

fn offset_of(offset: i64) -> Result<Offset, String> {
    u64::try_from(offset).map(Offset).map_err(|_| "acknowledged without an offset".into())
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Arc<Self>, LogError> {
        let (answers, due) = mpsc::channel::<Answer>();
        let spawned = thread::Builder::new().name("kafka-answers".into()).spawn(move || {
            for (done, outcomes) in due {
                done(outcomes);
            }
        });
        spawned.map_err(|e| shared.unreachable(e))?;
        let appender = Arc::new(Self {
            shards: (0..shared.config.shards).map(|_| Mutex::default()).collect(),
            newest: Mutex::new(None),
            answers,
            queued_bytes: AtomicUsize::new(0),
            queued_entries: AtomicUsize::new(0),
            shared,
        });
        *lock(&appender.newest) = Some(appender.clone().incarnate()?);
        Ok(appender)
    }

    /// Makes a producer and the thread that serves it.
    fn incarnate(self: Arc<Self>) -> Result<Arc<Incarnation>, LogError> {
        let context = Deliveries(Arc::downgrade(&self));
        let producer = self.shared.config.producer().create_with_context(context);
        let producer = producer.map_err(|e| self.shared.unreachable(e))?;
        let incarnation =
            Arc::new(Incarnation { producer, retired: AtomicBool::new(false), broken: AtomicBool::new(false) });
        let (served, appender) = (incarnation.clone(), self.clone());
        let spawned = thread::Builder::new().name("kafka-producer".into()).spawn(move || {
            // Retired and used by no shard: nothing is in flight.
            while !(served.is_retired() && Arc::strong_count(&served) == 1) {
                served.producer.poll(POLL);
                if served.broken.load(Ordering::Acquire) {
                    appender.retire(&served, "the producer takes no more");
                }
            }
            drop(served);
            drop(appender);
        });
        spawned.map_err(|e| self.shared.unreachable(e))?;
        Ok(incarnation)
    }

    pub(super) fn append(self: &Arc<Self>, shard: ShardId, entries: Vec<Bytes>, done: AppendDone) {
        let (count, since) = (entries.len(), Instant::now());
        let outcomes = Outcomes { known: vec![AppendOutcome::Unknown; count], missing: count, done: Some(done) };
        let pending = Arc::new(Pending { state: Mutex::new(outcomes), since });
        let bytes = entries.iter().map(Bytes::len).sum();
        if self.shared.gate(shard, Offset(0)).is_err() || entries.iter().any(|entry| entry.len() > MAX_ENTRY_BYTES) {
            return self.refuse(&pending);
        }
        if count == 0 || !self.reserve(count, bytes) {
            return self.refuse(&pending);
        }
        let mut queue = self.queue(shard);
        queue.waiting.push_back((pending, entries));
        self.send_waiting(shard, &mut queue);
    }

    /// Sends what may be sent, in order.
    fn send_waiting(&self, shard: ShardId, queue: &mut ShardQueue) {
        while !queue.waiting.is_empty() {
            let incarnation = match &queue.incarnation {
                Some(incarnation) if incarnation.is_retired() => return,
                Some(incarnation) => Some(incarnation.clone()),
                None => lock(&self.newest).clone(),
            };
            // Another takes over in a moment, and then sends what waits.
            if incarnation.as_ref().is_some_and(|incarnation| incarnation.is_retired()) {
                return;
            }
            let Some((pending, entries)) = queue.waiting.pop_front() else { return };
            match incarnation {
                Some(incarnation) => self.send(shard, queue, incarnation, &pending, &entries),
                None => self.give_up(&pending, &entries),
            }
        }
    }

    fn send(
        &self,
        shard: ShardId,
        queue: &mut ShardQueue,
        incarnation: Arc<Incarnation>,
        pending: &Arc<Pending>,
        entries: &[Bytes],
    ) {
        for (index, entry) in entries.iter().enumerate() {
            let ticket = Box::new(Ticket { pending: pending.clone(), index, shard, bytes: entry.len() });
            let record = BaseRecord::<(), [u8], _>::with_opaque_to(&self.shared.config.topic, ticket)
                .partition(i32::from(shard.0))
                .payload(&entry[..]);
            if let Err((error, _)) = incarnation.producer.send(record) {
                warn!(%error, shard = shard.0, "an append was not taken by the producer");
                incarnation.broken.store(true, Ordering::Release);
                self.give_up_from(pending, index, &entries[index..]);
                break;
            }
            queue.in_flight += 1;
            queue.incarnation.get_or_insert_with(|| incarnation.clone());
        }
    }

    /// An entry's outcome came.
    fn delivered(self: &Arc<Self>, ticket: &Ticket, result: Result<Offset, String>) {
        let mut failed = None;
        let outcome = {
            let mut queue = self.queue(ticket.shard);
            queue.in_flight -= 1;
            let outcome = self.believe(ticket.shard, &mut queue, result).map_or_else(
                |reason| {
                    failed = queue.incarnation.clone().map(|incarnation| (incarnation, reason));
                    AppendOutcome::Unknown
                },
                AppendOutcome::At,
            );
            if queue.in_flight == 0 {
                queue.incarnation = None;
            }
            outcome
        };
        self.release(1, ticket.bytes);
        self.shared.metrics.outcome(outcome, ticket.bytes);
        if let Some((done, outcomes)) = ticket.pending.settle(ticket.index, outcome) {
            self.shared.metrics.append_done(ticket.pending.since.elapsed());
            done(outcomes);
        }
        if let Some((incarnation, reason)) = failed {
            self.retire(&incarnation, &reason);
        }
        self.send_waiting(ticket.shard, &mut self.queue(ticket.shard));
    }

    /// Offsets of one shard only grow in the order of sending, over all producers; where they do not, the log lost its end.
    fn believe(
        &self,
        shard: ShardId,
        queue: &mut ShardQueue,
        result: Result<Offset, String>,
    ) -> Result<Offset, String> {
        let offset = result?;
        if offset.0 < queue.acknowledged {
            return Err(self.shared.truncated(shard, offset.0).to_string());
        }
        queue.acknowledged = offset.0 + 1;
        self.shared.known(shard).end.fetch_max(queue.acknowledged, Ordering::AcqRel);
        Ok(offset)
    }

    /// Lets another producer take over.
    fn retire(self: &Arc<Self>, incarnation: &Incarnation, reason: &str) {
        if incarnation.retired.swap(true, Ordering::AcqRel) {
            return;
        }
        warn!(reason, "the outcome of an append is unknown: a new producer takes over");
        self.shared.metrics.producer_replaced();
        match self.clone().incarnate() {
            Ok(next) => {
                let mut newest = lock(&self.newest);
                match &*newest {
                    Some(_) => *newest = Some(next),
                    // Closed meanwhile.
                    None => next.retired.store(true, Ordering::Release),
                }
            }
            Err(error) => {
                *lock(&self.newest) = None;
                self.shared.shut(error);
            }
        }
        for shard in (0..self.shared.config.shards).map(ShardId) {
            self.send_waiting(shard, &mut self.queue(shard));
        }
    }

    /// Takes no more; what waits is answered, what is in flight ends by itself.
    pub(super) fn close(&self) {
        if let Some(newest) = lock(&self.newest).take() {
            newest.retired.store(true, Ordering::Release);
            info!("the log closes");
        }
        for queue in &self.shards {
            for (pending, entries) in mem::take(&mut lock(queue).waiting) {
                self.give_up(&pending, &entries);
            }
        }
    }

    fn reserve(&self, entries: usize, bytes: usize) -> bool {
        let fits = self.queued_entries.fetch_add(entries, Ordering::AcqRel) + entries <= MAX_QUEUED_ENTRIES
            && self.queued_bytes.load(Ordering::Acquire) + bytes <= MAX_QUEUED_BYTES;
        if fits {
            self.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        } else {
            self.queued_entries.fetch_sub(entries, Ordering::AcqRel);
        }
        fits
    }

    fn release(&self, entries: usize, bytes: usize) {
        self.queued_entries.fetch_sub(entries, Ordering::AcqRel);
        self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Nothing of it was sent or counted. An append of no entries has its outcome too.
    fn refuse(&self, pending: &Pending) {
        let (done, outcomes) = {
            let mut state = lock(&pending.state);
            let Some(done) = state.done.take() else { return };
            (done, mem::take(&mut state.known))
        };
        if !outcomes.is_empty() {
            self.shared.metrics.refused();
        }
        self.answer((done, outcomes));
    }

    fn give_up(&self, pending: &Pending, entries: &[Bytes]) {
        self.give_up_from(pending, 0, entries);
    }

    /// None of `entries`, the first of which is number `first`, was sent.
    fn give_up_from(&self, pending: &Pending, first: usize, entries: &[Bytes]) {
        for (index, entry) in entries.iter().enumerate() {
            self.release(1, entry.len());
            self.shared.metrics.outcome(AppendOutcome::Unknown, entry.len());
            if let Some(answer) = pending.settle(first + index, AppendOutcome::Unknown) {
                self.answer(answer);
            }
        }
    }

    fn answer(&self, answer: Answer) {
        // The thread ends only after this sender.
        let _ = self.answers.send(answer);
    }

    fn queue(&self, shard: ShardId) -> MutexGuard<'_, ShardQueue> {
        lock(&self.shards[usize::from(shard.0)])
    }
}

impl Incarnation {
    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

impl Pending {
    /// The last outcome gives the answer.
    fn settle(&self, index: usize, outcome: AppendOutcome) -> Option<Answer> {
        let mut state = lock(&self.state);
        state.known[index] = outcome;
        state.missing -= 1;
        if state.missing > 0 {
            return None;
        }
        state.done.take().map(|done| (done, mem::take(&mut state.known)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_without_an_offset_is_no_success() {
        assert_eq!(offset_of(7), Ok(Offset(7)));
        // What librdkafka gives where a broker had the message already and does not say where.
        for offset in [-1, -1001] {
            assert!(offset_of(offset).is_err());
        }
    }
}
