//! A session on its way from one log into another.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{TimestampMs, TurnId};

/// Names everything that is adopted of one session.
pub type AdoptionDigest = [u8; 32];

/// See [`SessionEvent::Adopted`](crate::SessionEvent::Adopted). All parts together are the rows of the session in the record store that it
/// comes from: its state, then its turns, keys and items. Rows are encoded by the session's machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Names the whole: what the [`AdoptionChain`] over all rows comes to.
    pub digest: AdoptionDigest,
    /// This part's number, counted from 0.
    pub part: u32,
    /// Whether it is the last.
    pub last: bool,
    /// More of the state row. Whole before any other row comes.
    pub state: Bytes,
    /// How many bytes of the state row come with later parts.
    pub state_left: u64,
    /// Turns that were ever accepted.
    pub turns: Vec<TurnId>,
    /// Event ids and what they led to.
    pub keys: Vec<AdoptedKey>,
    /// Items of the history.
    pub items: Vec<AdoptedItem>,
    /// With the last part: the turns that have no final answer yet.
    pub open: Vec<AdoptedTurn>,
}

/// An event id or idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedKey {
    /// The id.
    pub event_id: String,
    /// What it led to.
    pub row: Bytes,
}

/// One item of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedItem {
    /// Its number within the session.
    pub index: u64,
    /// The item.
    pub row: Bytes,
}

/// A turn that its new owner has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdoptedTurn {
    /// The turn.
    pub turn: TurnId,
    /// When it fails if it has no reply.
    pub deadline: TimestampMs,
}

/// A digest over rows one after another, whatever parts they come in.
///
/// ```text
/// next = SHA-256( last | kind | u64 length of id | id | row )      (big-endian; last is 32 zero bytes at first)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdoptionChain(pub AdoptionDigest);

impl AdoptionChain {
    /// The whole state row.
    pub fn add_state(&mut self, row: &[u8]) {
        self.add(b's', &[], row);
    }

    /// A turn.
    pub fn add_turn(&mut self, turn: TurnId) {
        self.add(b't', &turn.0.to_be_bytes(), &[]);
    }

    /// An event id and what it led to.
    pub fn add_key(&mut self, event_id: &str, row: &[u8]) {
        self.add(b'd', event_id.as_bytes(), row);
    }

    /// An item of the history.
    pub fn add_item(&mut self, index: u64, row: &[u8]) {
        self.add(b'i', &index.to_be_bytes(), row);
    }

    /// The rows of a part, its state excepted, which is added once it is whole.
    pub fn add_rows(&mut self, part: &Adopted) {
        part.turns.iter().for_each(|turn| self.add_turn(*turn));
        part.keys.iter().for_each(|key| self.add_key(&key.event_id, &key.row));
        part.items.iter().for_each(|item| self.add_item(item.index, &item.row));
    }

    fn add(&mut self, kind: u8, id: &[u8], row: &[u8]) {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update([kind]);
        hasher.update((id.len() as u64).to_be_bytes());
        hasher.update(id);
        hasher.update(row);
        self.0 = hasher.finalize().into();
    }
}
