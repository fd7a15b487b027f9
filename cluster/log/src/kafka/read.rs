//! Reads: two consumers with partitions assigned by hand.
//!
//! One consumer, the *tail*, stands at the end of every shard that is followed, where its fetches wait for what comes. Whoever reads further
//! back has the other, the *replay*; when it catches up with the tail it is let go. What the tail read last stays in [`Recent`], so that
//! any number of followers cost one fetch. Two readers that replay one shard at different places take turns and are slow.
//!
//! Bounds: a consumer holds at most 2 MiB of each partition that it reads ([`FETCH_BYTES`](super::config::FETCH_BYTES) waiting, and as much
//! being fetched) and nothing of one that was not read for [`IDLE`]; so at most 256 MiB for 64 shards that are all replayed beside being
//! followed by readers who stopped reading, and next to nothing where readers keep up.

use std::{
    mem,
    sync::Arc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parlance_cluster_protocol::{Offset, ShardId};
use rdkafka::{
    Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio::{
    sync::{Mutex, MutexGuard, watch},
    time::timeout,
};
use tracing::{debug, warn};

use super::{Shared, blocking, bounds, context::Context, recent::Recent};
use crate::{Bounds, LogError, StoredEntry, port::ARRIVAL};

/// A partition that nobody read for so long is read no more.
const IDLE: Duration = Duration::from_secs(30);
/// A reader looks again after so long, in case that nothing woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How many messages a consumer tells of itself at once.
const MAX_EVENTS: usize = 100;
/// Which offset a cursor has while it is moved: none.
const NOWHERE: u64 = u64::MAX;

/// Reads all shards.
pub(super) struct Reader {
    shared: Arc<Shared>,
    tail: Arc<BaseConsumer<Context>>,
    replay: Arc<BaseConsumer<Context>>,
    shards: Vec<Shard>,
}

struct Shard {
    state: Mutex<State>,
    /// Changes whenever something was fetched.
    fetched: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    tail: Option<Cursor>,
    replay: Option<Cursor>,
    recent: Recent,
}

/// A partition that a consumer reads.
struct Cursor {
    queue: PartitionQueue<Context>,
    /// The offset that comes next.
    next: u64,
    /// Nothing came since it was moved to `next`, so that what comes first is the first that the log has from there on.
    is_moved: bool,
    /// Nobody needs it any more.
    is_idle: bool,
    used: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Tail,
    Replay,
}

/// What one read gathers.
struct Page {
    entries: Vec<StoredEntry>,
    bytes: usize,
    max_bytes: usize,
    next: u64,
    /// Everything before it is there by now.
    end: u64,
    /// A broker says that it has no such offset.
    is_doubtful: bool,
}

impl Page {
    fn new(next: u64, max_bytes: usize, end: u64) -> Self {
        Self { entries: Vec::new(), bytes: 0, max_bytes, next, end, is_doubtful: false }
    }

    fn is_done(&self) -> bool {
        let is_full = !self.entries.is_empty() && self.bytes >= self.max_bytes;
        is_full || self.next >= self.end
    }

    fn push(&mut self, entry: StoredEntry) {
        self.next = entry.offset.0 + 1;
        self.bytes += entry.bytes.len();
        self.entries.push(entry);
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self, LogError> {
        let consumer = || {
            let consumer = shared.config.consumer().create_with_context(Context);
            consumer.map(Arc::new).map_err(|e: KafkaError| shared.unreachable(e))
        };
        let shard = |_| Shard { state: Mutex::default(), fetched: watch::Sender::new(()) };
        let shards = (0..shared.config.shards).map(shard).collect();
        Ok(Self { tail: consumer()?, replay: consumer()?, shards, shared })
    }

    pub(super) async fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let read = timeout(self.shared.config.request_timeout, self.read_page(shard, from, max_bytes)).await;
        let read = read.unwrap_or_else(|_| Err(self.shared.unreachable("a read was not answered in time")));
        if let Ok(entries) = &read {
            self.shared.metrics.read(entries.iter().map(|entry| entry.bytes.len()).sum());
        }
        read
    }

    async fn read_page(&self, shard: ShardId, from: Offset, max_bytes: usize) -> Result<Vec<StoredEntry>, LogError> {
        let known = self.shared.known(shard);
        let (start, end) = (known.start.load(Ordering::Acquire), known.end.load(Ordering::Acquire));
        if !(start..end).contains(&from.0) {
            self.check(shard, from).await?;
        }
        let mut state = self.shards[usize::from(shard.0)].state.lock().await;
        state.recent.trim(known.start.load(Ordering::Acquire));
        let end = known.end.load(Ordering::Acquire);
        let mut page = Page::new(from.0, max_bytes, end);
        for entry in state.recent.from(from.0, max_bytes) {
            page.push(entry);
        }
        while !page.is_done() {
            if mem::take(&mut page.is_doubtful) {
                self.check(shard, Offset(page.next)).await?;
            }
            let place = place(&mut state, page.next);
            self.position(shard, &mut state, place, page.next).await?;
            self.gather(shard, &mut state, place, &mut page).await?;
        }
        Ok(page.entries)
    }

    async fn check(&self, shard: ShardId, from: Offset) -> Result<(), LogError> {
        let Bounds { start, end } = bounds(&self.shared, shard).await?;
        if from < start || from > end { Err(LogError::OutOfRange { shard, offset: from }) } else { Ok(()) }
    }

    /// Lets the consumer of `place` read the shard from `next` on, unless it does.
    async fn position(&self, shard: ShardId, state: &mut State, place: Place, next: u64) -> Result<(), LogError> {
        let (slot, consumer) = match place {
            Place::Tail => (&mut state.tail, self.tail.clone()),
            Place::Replay => (&mut state.replay, self.replay.clone()),
        };
        if let Some(cursor) = slot.as_mut().filter(|cursor| cursor.next == next) {
            cursor.used = Instant::now();
            return Ok(());
        }
        let is_new = slot.is_none();
        if is_new {
            *slot = Some(self.cursor(&consumer, shard)?);
        }
        let Some(cursor) = slot else { return Ok(()) };
        // In case that this is given up half way.
        cursor.next = NOWHERE;
        let (topic, partition) = (self.shared.config.topic.clone(), i32::from(shard.0));
        let patience = self.shared.config.request_timeout;
        let moved = blocking(move || Ok(move_to(&consumer, &topic, partition, next, is_new, patience))).await?;
        moved.map_err(|e| self.shared.unreachable(e))?;
        (cursor.next, cursor.is_moved, cursor.is_idle, cursor.used) = (next, true, false, Instant::now());
        Ok(())
    }

    fn cursor(&self, consumer: &Arc<BaseConsumer<Context>>, shard: ShardId) -> Result<Cursor, LogError> {
        let queue = consumer.split_partition_queue(&self.shared.config.topic, i32::from(shard.0));
        let mut queue = queue.ok_or_else(|| self.shared.unreachable("the partition has no queue"))?;
        let fetched = self.shards[usize::from(shard.0)].fetched.clone();
        queue.set_nonempty_callback(move || {
            fetched.send_replace(());
        });
        Ok(Cursor { queue, next: NOWHERE, is_moved: false, is_idle: false, used: Instant::now() })
    }

    /// Takes what was fetched, and waits for more until the page is done or the cursor has to be moved.
    async fn gather(&self, shard: ShardId, state: &mut State, place: Place, page: &mut Page) -> Result<(), LogError> {
        let mut fetched = self.shards[usize::from(shard.0)].fetched.subscribe();
        loop {
            fetched.mark_unchanged();
            if !self.take(shard, state, place, page)? {
                return Ok(());
            }
            // A look after a while is as good as being woken.
            let _ = timeout(LOOK_AGAIN, fetched.changed()).await;
        }
    }

    /// Takes what was fetched. False once the page is done or the cursor has to be moved.
    fn take(&self, shard: ShardId, state: &mut State, place: Place, page: &mut Page) -> Result<bool, LogError> {
        let State { tail, replay, recent } = state;
        let slot = if place == Place::Tail { tail } else { replay };
        let Some(cursor) = slot else { return Ok(false) };
        while !page.is_done() {
            let Some(polled) = cursor.queue.poll(Duration::ZERO) else { return Ok(true) };
            match polled {
                Ok(message) => {
                    let Ok(offset) = u64::try_from(message.offset()) else { continue };
                    if offset < cursor.next {
                        continue;
                    }
                    if offset > cursor.next && !cursor.is_moved {
                        // Never passed over unless the log itself begins there, which a fresh start shows.
                        cursor.next = NOWHERE;
                        return Ok(false);
                    }
                    let bytes = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                    let entry = StoredEntry { offset: Offset(offset), bytes };
                    if offset > cursor.next {
                        warn!(shard = shard.0, from = cursor.next, to = offset, "the log has no entries in between");
                    }
                    if place == Place::Tail {
                        recent.push(cursor.next, entry.clone());
                    }
                    self.shared.known(shard).end.fetch_max(offset + 1, Ordering::AcqRel);
                    (cursor.next, cursor.is_moved) = (offset + 1, false);
                    page.push(entry);
                }
                Err(error) => return self.failed(shard, page, cursor, &error),
            }
        }
        Ok(false)
    }

    /// What a consumer says instead of an entry. Most of it passes, and the read goes on.
    fn failed(
        &self,
        shard: ShardId,
        page: &mut Page,
        cursor: &mut Cursor,
        error: &KafkaError,
    ) -> Result<bool, LogError> {
        debug!(shard = shard.0, %error, "a fetch failed");
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::LogTruncation) => Err(self.shared.truncated(shard, page.next)),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                // Trimmed meanwhile, or lost: the bounds tell which.
                (cursor.next, page.is_doubtful) = (NOWHERE, true);
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    /// See [`ShardLog::arrival`](crate::ShardLog::arrival).
    pub(super) async fn arrival(&self, shard: ShardId, from: Offset) -> Result<(), LogError> {
        // A second is the promise; no answer within it is as good.
        timeout(ARRIVAL, self.arrived(shard, from)).await.unwrap_or(Ok(()))
    }

    async fn arrived(&self, shard: ShardId, from: Offset) -> Result<(), LogError> {
        let mut fetched = self.shards[usize::from(shard.0)].fetched.subscribe();
        loop {
            fetched.mark_unchanged();
            {
                let mut state = self.shards[usize::from(shard.0)].state.lock().await;
                self.look_ahead(shard, &mut state, from).await?;
            }
            if self.shared.known(shard).end.load(Ordering::Acquire) > from.0 {
                // Others may wait too.
                self.shards[usize::from(shard.0)].fetched.send_replace(());
                return Ok(());
            }
            let _ = timeout(LOOK_AGAIN, fetched.changed()).await;
        }
    }

    /// Takes what the tail fetched into the recent entries, no more than they hold.
    async fn look_ahead(
        &self,
        shard: ShardId,
        state: &mut MutexGuard<'_, State>,
        from: Offset,
    ) -> Result<(), LogError> {
        let known = self.shared.known(shard).end.load(Ordering::Acquire);
        if known > from.0 {
            return Ok(());
        }
        let tail = state.tail.as_ref().map(|tail| tail.next).filter(|next| *next != NOWHERE);
        let at = tail.map_or(from.0, |next| next.max(from.0));
        self.position(shard, state, Place::Tail, at).await?;
        // One entry is news enough; the reads that follow take the rest.
        let mut page = Page::new(at, 0, u64::MAX);
        self.take(shard, state, Place::Tail, &mut page).map(drop)
    }

    /// Lets the consumers tell what they have to tell, and gives up partitions that nobody reads. Blocks a little.
    pub(super) fn tend(&self) {
        for consumer in [&self.tail, &self.replay] {
            for _ in 0..MAX_EVENTS {
                // What belongs to a partition comes by its own queue.
                if consumer.poll(Duration::ZERO).is_none() {
                    break;
                }
            }
        }
        for (shard, number) in self.shards.iter().zip(0..) {
            // A shard that is being read is not idle.
            let Ok(mut state) = shard.state.try_lock() else { continue };
            self.let_go_idle(number, &mut state.tail, &self.tail);
            self.let_go_idle(number, &mut state.replay, &self.replay);
        }
    }

    fn let_go_idle(&self, partition: i32, slot: &mut Option<Cursor>, consumer: &BaseConsumer<Context>) {
        if slot.take_if(|cursor| cursor.is_idle || cursor.used.elapsed() > IDLE).is_some() {
            let let_go = one_partition(&self.shared.config.topic, partition, None);
            if let Err(error) = let_go.and_then(|partition| consumer.incremental_unassign(&partition)) {
                debug!(%error, partition, "a partition could not be let go");
            }
        }
    }
}

/// Who reads from `next` on. The tail never goes back: whoever is behind it has the replay.
fn place(state: &mut State, next: u64) -> Place {
    if state.tail.as_ref().is_some_and(|tail| tail.next != NOWHERE && next < tail.next) {
        return Place::Replay;
    }
    if let Some(replay) = state.replay.as_mut().filter(|replay| replay.next >= next) {
        // It has caught up.
        replay.is_idle = true;
    }
    Place::Tail
}

/// Lets `consumer` go on at `next`. Blocks.
fn move_to(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partition: i32,
    next: u64,
    is_new: bool,
    patience: Duration,
) -> KafkaResult<()> {
    let offset = rdkafka::Offset::Offset(i64::try_from(next).map_err(|_| KafkaError::Canceled)?);
    if !is_new {
        if consumer.seek(topic, partition, offset, patience).is_ok() {
            return Ok(());
        }
        // It may not be assigned, or stopped by an error.
        let _ = consumer.incremental_unassign(&one_partition(topic, partition, None)?);
    }
    consumer.incremental_assign(&one_partition(topic, partition, Some(offset))?)
}

fn one_partition(topic: &str, partition: i32, offset: Option<rdkafka::Offset>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(1);
    match offset {
        Some(offset) => list.add_partition_offset(topic, partition, offset)?,
        None => {
            list.add_partition(topic, partition);
        }
    }
    Ok(list)
}
