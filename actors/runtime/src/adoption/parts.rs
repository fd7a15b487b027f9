//! A session cut into parts that fit into entries of a log.

use std::collections::VecDeque;

use bytes::Bytes;
use parlance_cluster_log::ownership::MAX_PAYLOAD_BYTES;
use parlance_cluster_protocol::{
    Adopted, AdoptedItem, AdoptedKey, AdoptedTurn, AdoptionChain, AdoptionDigest, SessionEvent, SessionKey,
    SessionRecord, TimestampMs, TurnId,
};
use parlance_cluster_records::{LocalRecords, Order, RecordStore as _};

use super::{ALL_KEYS, AdoptionError, ITEM_PAGE, SourceSession};

/// The size that parts have, unless a single row is larger: well below an entry's limit and the usual limit of a request's body.
const PART_BYTES: usize = 256 << 10;
/// Turns per read.
const TURN_PAGE: usize = 1_024;

/// The parts of one session, in order.
pub struct Parts<'a> {
    session: &'a SourceSession,
    digest: AdoptionDigest,
    /// What is left of the state row.
    state: Bytes,
    rows: Rows<'a>,
    /// A row that did not fit into the last part.
    ahead: Option<Row>,
    next: u32,
    ended: bool,
}

impl<'a> Parts<'a> {
    pub(super) async fn of(records: &'a LocalRecords, session: &'a SourceSession) -> Result<Self, AdoptionError> {
        let mut chain = AdoptionChain::default();
        chain.add_state(&session.state);
        let mut rows = Rows::new(records, &session.key);
        while let Some(row) = rows.next().await? {
            row.add_to(&mut chain);
        }
        let (state, rows) = (session.state.clone(), Rows::new(records, &session.key));
        Ok(Self { session, digest: chain.0, state, rows, ahead: None, next: 0, ended: false })
    }

    /// What names the session as it is.
    pub fn digest(&self) -> AdoptionDigest {
        self.digest
    }

    /// The next part, for [`Sessions::adopt`](crate::Sessions::adopt); `None` behind the last.
    ///
    /// # Errors
    ///
    /// [`AdoptionError::TooLarge`], or what keeps the records from being read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AdoptionError> {
        if self.ended {
            return Ok(None);
        }
        let state = self.state.split_to(self.state.len().min(PART_BYTES));
        let state_left = self.state.len() as u64;
        let mut part = Adopted { digest: self.digest, part: self.next, state, state_left, ..Adopted::default() };
        self.next += 1;
        if state_left == 0 {
            self.fill(&mut part).await?;
        }
        if part.last {
            self.ended = true;
            let open = self.session.durable.open_turns().map(|open| &open.request);
            part.open = open.map(|open| AdoptedTurn { turn: open.turn, deadline: open.deadline }).collect();
        }
        let session = self.session.key.clone();
        let event = SessionEvent::Adopted(part);
        // Whoever adopts it records the time.
        let record = SessionRecord { session, user: None, key_id: 0, at: TimestampMs(0), event }.encode();
        match record.len() {
            bytes if bytes > MAX_PAYLOAD_BYTES => Err(AdoptionError::TooLarge { bytes }),
            _ => Ok(Some(record)),
        }
    }

    /// Puts rows into the part until it is full or they end.
    async fn fill(&mut self, part: &mut Adopted) -> Result<(), AdoptionError> {
        let mut bytes = part.state.len();
        loop {
            let row = match self.ahead.take() {
                Some(row) => row,
                None => match self.rows.next().await? {
                    Some(row) => row,
                    None => {
                        part.last = true;
                        return Ok(());
                    }
                },
            };
            bytes += row.bytes();
            if bytes > PART_BYTES && bytes > row.bytes() {
                self.ahead = Some(row);
                return Ok(());
            }
            match row {
                Row::Turn(turn) => part.turns.push(turn),
                Row::Key(key) => part.keys.push(key),
                Row::Item(item) => part.items.push(item),
            }
        }
    }
}

/// A row besides the state.
enum Row {
    Turn(TurnId),
    Key(AdoptedKey),
    Item(AdoptedItem),
}

impl Row {
    fn add_to(&self, chain: &mut AdoptionChain) {
        match self {
            Self::Turn(turn) => chain.add_turn(*turn),
            Self::Key(key) => chain.add_key(&key.event_id, &key.row),
            Self::Item(item) => chain.add_item(item.index, &item.row),
        }
    }

    /// About what it takes in a part.
    fn bytes(&self) -> usize {
        match self {
            Self::Turn(_) => 24,
            Self::Key(key) => key.event_id.len() + key.row.len() + 16,
            Self::Item(item) => item.row.len() + 24,
        }
    }
}

/// The rows of a session in the order that digests follow: turns, keys, items.
struct Rows<'a> {
    records: &'a LocalRecords,
    session: &'a SessionKey,
    stage: Stage,
    read: VecDeque<Row>,
}

/// What is read next.
enum Stage {
    Turns { after: Option<TurnId> },
    Keys,
    Items { from: u64 },
    End,
}

impl<'a> Rows<'a> {
    fn new(records: &'a LocalRecords, session: &'a SessionKey) -> Self {
        Self { records, session, stage: Stage::Turns { after: None }, read: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<Row>, AdoptionError> {
        while self.read.is_empty() && !matches!(self.stage, Stage::End) {
            self.read_on().await?;
        }
        Ok(self.read.pop_front())
    }

    async fn read_on(&mut self) -> Result<(), AdoptionError> {
        match self.stage {
            Stage::Turns { after } => {
                let turns = self.records.turns(self.session, after, TURN_PAGE).await?;
                self.stage = match turns.last() {
                    Some(last) => Stage::Turns { after: Some(*last) },
                    None => Stage::Keys,
                };
                self.read.extend(turns.into_iter().map(Row::Turn));
            }
            Stage::Keys => {
                let mut keys = self.records.dedupe(self.session, ALL_KEYS).await?;
                keys.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                let key = |(event_id, row)| Row::Key(AdoptedKey { event_id, row });
                self.read.extend(keys.into_iter().map(key));
                self.stage = Stage::Items { from: 0 };
            }
            Stage::Items { from } => {
                let items = self.records.items(self.session, Some(from), Order::Ascending, ITEM_PAGE).await?;
                self.stage = items.last().map_or(Stage::End, |last| Stage::Items { from: last.index + 1 });
                let item = |stored: parlance_cluster_records::StoredItem| {
                    Row::Item(AdoptedItem { index: stored.index, row: stored.item })
                };
                self.read.extend(items.into_iter().map(item));
            }
            Stage::End => {}
        }
        Ok(())
    }
}
