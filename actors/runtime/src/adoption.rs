//! Taking sessions out of a node's data directory, part by part, so that a node with another log can adopt them.
//!
//! ```text
//! log ── catch_up ──▶ records ── Source ── Parts ──▶ Sessions::adopt of the other node
//!                                   └───── compare ◀──▶ Sessions::compare of the other node
//! ```
//!
//! Nobody may serve the directory meanwhile: what is taken out is its record store, once that holds everything that is in its log.

mod parts;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parlance_actors_dialogue::{self as dialogue, DedupeOutcome, DialogueError, Durable, HistoryItem};
use parlance_cluster_log::{
    ShardLog,
    ownership::{self, Output, Ownership, SlotTable},
};
use parlance_cluster_protocol::{AdoptionChain, AdoptionDigest, Position, SessionKey, SessionRecord, ShardId};
use parlance_cluster_records::{LocalRecords, Order, RecordStore, RecordsError};
use thiserror::Error;

pub use self::parts::Parts;
use crate::{
    Limits, ShardError,
    checkpoint::Checkpoint,
    node::dialogue_limits,
    shard::{Committed, RecordsBySession, project_into, projection_of},
};

/// The most bytes of one read from the log.
const READ_BYTES: usize = 1 << 20;
/// Records between two writes into the record store.
const RECORDS_PER_WRITE: usize = 4_096;
/// How often an entry that should be in the log is looked for.
const READ_ATTEMPTS: u32 = 100;
/// Items per read.
const ITEM_PAGE: usize = 64;
/// More event ids than any session has.
const ALL_KEYS: usize = 1 << 20;

/// Why a directory, or a session in it, cannot be taken out.
#[derive(Debug, Error)]
pub enum AdoptionError {
    /// Log or records cannot be used.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A single row is larger than a log's entry.
    #[error("a row of the session takes {bytes} bytes, more than an entry of a log may have")]
    TooLarge {
        /// Its part's size.
        bytes: usize,
    },
}

/// See [`AdoptionError::Unreadable`].
#[derive(Debug, Error)]
#[error(transparent)]
pub struct Unreadable(ShardError);

impl From<ShardError> for AdoptionError {
    fn from(error: ShardError) -> Self {
        Self::Unreadable(Unreadable(error))
    }
}

impl From<RecordsError> for AdoptionError {
    fn from(error: RecordsError) -> Self {
        ShardError::from(error).into()
    }
}

impl From<DialogueError> for AdoptionError {
    fn from(error: DialogueError) -> Self {
        ShardError::from(error).into()
    }
}

/// Brings a record store up to the end of its log, durably, without owning or changing the log. Doing it again is harmless.
///
/// # Errors
///
/// What keeps log or records from being read or written. Some rows may be written.
pub async fn catch_up(log: &dyn ShardLog, records: &dyn RecordStore, limits: &Limits) -> Result<(), AdoptionError> {
    for shard in 0..log.shards() {
        Reader::open(log, records, ShardId(shard), limits).await?.run().await?;
    }
    Ok(())
}

/// Follows one shard to its end.
struct Reader<'a> {
    log: &'a dyn ShardLog,
    records: &'a dyn RecordStore,
    shard: ShardId,
    limits: dialogue::Limits,
    ownership: Ownership,
    /// As it was stored, with the turns that are open by now.
    checkpoint: Checkpoint,
    fresh: RecordsBySession,
    count: usize,
}

impl<'a> Reader<'a> {
    async fn open(
        log: &'a dyn ShardLog,
        records: &'a dyn RecordStore,
        shard: ShardId,
        limits: &Limits,
    ) -> Result<Self, ShardError> {
        let stored = records.checkpoint(shard).await?;
        let checkpoint = stored.map_or_else(|| Ok(Checkpoint::start()), |stored| Checkpoint::decode(&stored))?;
        let slots = SlotTable::new(shard, log.shards());
        let ownership = Ownership::new(String::new(), slots, checkpoint.point, ownership::Limits::default());
        let limits = dialogue_limits(limits);
        Ok(Self { log, records, shard, limits, ownership, checkpoint, fresh: HashMap::new(), count: 0 })
    }

    async fn run(mut self) -> Result<(), ShardError> {
        let mut outputs = Vec::new();
        self.ownership.catch_up(&mut outputs);
        loop {
            let mut read = None;
            let mut ended = false;
            for output in outputs.drain(..) {
                match output {
                    Output::Read { from, attempt } if attempt <= READ_ATTEMPTS => read = Some(from),
                    Output::Apply { offset, payload, .. } => self.take(Position(offset.0), payload)?,
                    Output::CaughtUp { .. } => ended = true,
                    Output::SteppedDown { reason } => return Err(reason.into()),
                    // Of other claims than ours, which we have none of.
                    _ => {}
                }
            }
            if self.count >= RECORDS_PER_WRITE || ended {
                self.project().await?;
            }
            match read {
                Some(from) if !ended => {
                    let entries = self.log.read(self.shard, from, READ_BYTES).await?;
                    self.ownership.on_read(from, entries, &mut outputs);
                }
                _ if ended => return self.put_checkpoint().await,
                _ => return Err(RecordsError::Unavailable("the log lacks an entry".into()).into()),
            }
        }
    }

    fn take(&mut self, position: Position, payload: Bytes) -> Result<(), ShardError> {
        let record = Arc::new(SessionRecord::decode(payload)?);
        let session = Arc::new(record.session.clone());
        self.checkpoint.open.apply(&record);
        self.fresh.entry(session).or_default().push(Committed { position, record });
        self.count += 1;
        Ok(())
    }

    async fn project(&mut self) -> Result<(), ShardError> {
        self.count = 0;
        let projection = projection_of(std::mem::take(&mut self.fresh));
        project_into(self.records, self.limits, &projection).await
    }

    /// Without it the rows would not outlive a power loss.
    async fn put_checkpoint(self) -> Result<(), ShardError> {
        let point = self.ownership.point();
        if point.next > self.checkpoint.point.next {
            let checkpoint = Checkpoint { point, ..self.checkpoint };
            self.records.put_checkpoint(self.shard, point.next, checkpoint.encode()).await?;
        }
        Ok(())
    }
}

/// The sessions of a data directory that nobody serves.
pub struct Source {
    records: Arc<LocalRecords>,
    limits: dialogue::Limits,
}

/// A session of a [`Source`].
#[derive(Debug, Clone)]
pub struct SourceSession {
    key: SessionKey,
    state: Bytes,
    durable: Durable,
}

impl Source {
    /// The sessions in a record store that has [caught up](catch_up) with its log.
    pub fn new(records: Arc<LocalRecords>, limits: &Limits) -> Self {
        Self { records, limits: dialogue_limits(limits) }
    }

    /// Up to `limit` sessions behind `after`, of all tenants and channels.
    ///
    /// # Errors
    ///
    /// What keeps the records from being read.
    pub async fn sessions(
        &self,
        after: Option<&SourceSession>,
        limit: usize,
    ) -> Result<Vec<SourceSession>, AdoptionError> {
        let rows = self.records.all_sessions(after.map(|after| &after.key), limit).await?;
        let read = |(key, row): parlance_cluster_records::StoredSession| -> Result<_, DialogueError> {
            let durable = Durable::decode(key.clone(), self.limits, &row.value)?;
            Ok(SourceSession { key, state: row.value, durable })
        };
        Ok(rows.into_iter().map(read).collect::<Result<_, _>>()?)
    }

    /// The parts that another node adopts the session by.
    ///
    /// # Errors
    ///
    /// What keeps the records from being read.
    pub async fn parts<'a>(&'a self, session: &'a SourceSession) -> Result<Parts<'a>, AdoptionError> {
        Parts::of(&self.records, session).await
    }

    /// What [`Sessions::compare`](crate::Sessions::compare) should answer as far as `extent` goes.
    ///
    /// # Errors
    ///
    /// What keeps the records from being read.
    pub async fn compare(&self, session: &SourceSession, extent: Extent) -> Result<Compared, AdoptionError> {
        Ok(compare(&*self.records, &session.key, extent).await?)
    }
}

impl SourceSession {
    /// Its key, encoded.
    pub fn key(&self) -> Vec<u8> {
        self.key.encode()
    }

    /// Its key, for people.
    pub fn name(&self) -> String {
        self.key.to_string()
    }

    /// How many items nothing but a deletion of the session takes away.
    pub fn lasting_items(&self) -> u64 {
        self.durable.lasting_items()
    }

    /// How many turns have no final answer.
    pub fn open_turns(&self) -> usize {
        self.durable.open_turns().len()
    }
}

/// How much of a session is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Items with lower numbers than this.
    pub items_below: u64,
    /// Event ids whose turns have ended and that are remembered for longer than this, in milliseconds since 1970.
    pub keys_after_ms: u64,
}

/// What a record store holds of a session. Two that hold the same rows are equal but for `adopted`, `changed` and `deleted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// What names the session as it was adopted, if it was, and wholly.
    pub adopted: Option<AdoptionDigest>,
    /// Whether it has changed since.
    pub changed: bool,
    /// Whether it was deleted.
    pub deleted: bool,
    /// How many items there are.
    pub items: u64,
    /// How many event ids there are.
    pub keys: u64,
    /// Over all of both.
    pub digest: AdoptionDigest,
}

/// Reads a session's rows. Its state comes last, so that rows of a record that is being written are never taken for unchanged ones for long.
pub(crate) async fn compare(
    records: &dyn RecordStore,
    session: &SessionKey,
    extent: Extent,
) -> Result<Compared, ShardError> {
    let (mut chain, mut items) = (AdoptionChain::default(), 0);
    let keys = add_keys(records, session, extent.keys_after_ms, &mut chain).await?;
    let mut from = 0;
    loop {
        let page = records.items(session, Some(from), Order::Ascending, ITEM_PAGE).await?;
        for item in page.iter().filter(|item| item.index < extent.items_below) {
            chain.add_item(item.index, &HistoryItem::decode(&item.item)?.encode());
            items += 1;
        }
        match page.last().filter(|last| page.len() == ITEM_PAGE && last.index < extent.items_below) {
            Some(last) => from = last.index + 1,
            None => break,
        }
    }
    let state = records.session(session).await?;
    let limits = dialogue::Limits::default();
    let state = state.map(|row| Durable::decode(session.clone(), limits, &row.value)).transpose()?;
    let (adopted, changed) = state.as_ref().and_then(Durable::adopted).unzip();
    let deleted = state.is_some_and(|state| state.is_deleted());
    Ok(Compared { adopted, changed: changed.unwrap_or_default(), deleted, items, keys, digest: chain.0 })
}

async fn add_keys(
    records: &dyn RecordStore,
    session: &SessionKey,
    after_ms: u64,
    chain: &mut AdoptionChain,
) -> Result<u64, ShardError> {
    let mut rows = records.dedupe(session, ALL_KEYS).await?;
    rows.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let mut keys = 0;
    for (event_id, row) in rows {
        let outcome = DedupeOutcome::decode(row)?;
        if outcome.ended && outcome.expires_at.0 > after_ms {
            chain.add_key(&event_id, &outcome.encode());
            keys += 1;
        }
    }
    Ok(keys)
}
