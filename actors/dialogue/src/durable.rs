//! The durable part: the fold of a session's committed records.

mod adopt;
mod fold;
mod turns;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parlance_cluster_protocol::{
    BodyHash, Item, ModelTag, Position, SessionKey, SessionRecord, TimestampMs, TurnAccepted, TurnId, UserHash,
};

pub(crate) use self::adopt::{AdoptedPart, Adoption};
use crate::{Answer, DialogueError, Limits, ViewChange, window::Window, wire};

/// A turn that was accepted and has no final answer.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTurn {
    /// What was recorded; its `input` is moved to the field of that name.
    pub request: TurnAccepted,
    /// What was said.
    pub input: Vec<Arc<Item>>,
    /// When it was accepted.
    pub accepted_at: TimestampMs,
    /// Whose turn it is.
    pub user: Option<UserHash>,
    /// The data key that encrypts its text; 0 is none.
    pub key_id: u32,
    /// The running or next attempt, counted from 1.
    pub attempt: u32,
    /// The recorded tokens of its reply.
    pub tokens: Vec<u32>,
    /// The model that made them.
    pub model: Option<ModelTag>,
    pub(crate) head: Option<HeadStart>,
}

/// What was fixed when the turn came up, so that every attempt gets the same prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadStart {
    pub(crate) exchange: TurnId,
    /// Where the exchange begins in the transcript: nothing from here on leaves the window.
    pub(crate) first_item: u64,
    pub(crate) system_prompt: Option<Arc<str>>,
}

/// The turn that a regeneration would replace the reply of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastTurn {
    /// The turn.
    pub turn: TurnId,
    /// A regeneration of it that brought no text; it may be named in its place.
    pub retried_as: Option<TurnId>,
    pub(crate) exchange: TurnId,
    pub(crate) first_item: u64,
    pub(crate) answer_item: u64,
}

/// What an idempotency key is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The first request's body.
    pub body_hash: BodyHash,
    /// The session whose turn answers it.
    pub target: SessionKey,
    /// That turn.
    pub turn: TurnId,
    /// From when on the key is free again.
    pub expires_at: TimestampMs,
}

/// A session's state without its transcript and its event ids, which are rows of their own.
///
/// Can be folded without either, so views are brought up to date without loading them.
#[derive(Debug, Clone, PartialEq)]
pub struct Durable {
    pub(crate) session: SessionKey,
    pub(crate) limits: Limits,
    pub(crate) position: Option<Position>,
    pub(crate) at: TimestampMs,
    pub(crate) created_at: Option<TimestampMs>,
    pub(crate) deleted: bool,
    pub(crate) user: Option<UserHash>,
    pub(crate) key_id: u32,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) system_prompt: Option<Arc<str>>,
    /// Turns ever accepted.
    pub(crate) turns: u64,
    pub(crate) window: Window,
    /// In order of acceptance. Invariant: the first one, and no other, has its `head`.
    pub(crate) open: VecDeque<OpenTurn>,
    pub(crate) last: Option<LastTurn>,
    pub(crate) binding: Option<Binding>,
    /// Set once the session came, or began to come, from another log.
    pub(crate) adoption: Option<Adoption>,
}

/// What a record did besides changing views.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    /// The turn that it ended.
    pub(crate) ended: Option<Arc<Answer>>,
    /// What it did if it is a part of an adopted session.
    pub(crate) adopted: Option<AdoptedPart>,
}

impl Durable {
    /// The state of a session without any record.
    pub fn new(session: SessionKey, limits: Limits) -> Self {
        Self {
            session,
            limits,
            position: None,
            at: TimestampMs::default(),
            created_at: None,
            deleted: false,
            user: None,
            key_id: 0,
            metadata: BTreeMap::new(),
            system_prompt: None,
            turns: 0,
            window: Window::default(),
            open: VecDeque::new(),
            last: None,
            binding: None,
            adoption: None,
        }
    }

    /// Reads a state row.
    ///
    /// # Errors
    ///
    /// [`DialogueError::Wire`] if the row is newer or damaged.
    pub fn decode(session: SessionKey, limits: Limits, snapshot: &[u8]) -> Result<Self, DialogueError> {
        wire::decode_state(session, limits, snapshot)
    }

    /// The state row, in the newest format.
    pub fn encode(&self) -> Bytes {
        wire::encode_state(self)
    }

    /// Folds a committed record in, and says how the views change; the state row always does and is not mentioned.
    /// `false`: the record was folded in before.
    ///
    /// # Errors
    ///
    /// See [`DialogueError`]; the state is then unchanged.
    pub fn apply(
        &mut self,
        position: Position,
        record: &SessionRecord,
        changes: &mut Vec<ViewChange>,
    ) -> Result<bool, DialogueError> {
        Ok(self.fold(position, record, changes)?.is_some())
    }

    /// The session.
    pub fn session(&self) -> &SessionKey {
        &self.session
    }

    /// The position of the last record.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether there is such a session: it has a record, was not deleted, and is not on its way from another log.
    pub fn exists(&self) -> bool {
        self.created_at.is_some() && !self.deleted && !self.is_being_adopted()
    }

    /// Whether it was deleted.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// When the first record was made.
    pub fn created_at(&self) -> Option<TimestampMs> {
        self.created_at
    }

    /// When the last record was made.
    pub fn updated_at(&self) -> TimestampMs {
        self.at
    }

    /// The owner's labels.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The session's own system prompt.
    pub fn system_prompt(&self) -> Option<&str> {
        self.system_prompt.as_deref()
    }

    /// How many turns were ever accepted.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// How many items the transcript has.
    pub fn items(&self) -> u64 {
        self.window.next()
    }

    /// The rows of the transcript that [`Dialogue::restore`](crate::Dialogue::restore) wants.
    pub fn history_rows(&self) -> std::ops::Range<u64> {
        self.window.from()..self.window.next()
    }

    /// How many items nothing takes away but the session's deletion: a regeneration replaces what belongs to the last turn.
    pub fn lasting_items(&self) -> u64 {
        let head = self.open.front().and_then(|open| open.head.as_ref()).map(|head| head.first_item);
        let last = self.last.as_ref().map(|last| last.first_item);
        head.into_iter().chain(last).min().unwrap_or_else(|| self.items())
    }

    /// The turns without a final answer, in order of acceptance.
    pub fn open_turns(&self) -> impl ExactSizeIterator<Item = &OpenTurn> {
        self.open.iter()
    }

    /// The turn whose reply can be regenerated, if nothing has come behind it.
    pub fn last_turn(&self) -> Option<&LastTurn> {
        self.last.as_ref()
    }

    /// What the session's key is bound to, whether or not that has expired.
    pub fn binding(&self) -> Option<&Binding> {
        self.binding.as_ref()
    }

    pub(crate) fn is_last(&self, turn: TurnId) -> bool {
        self.last.as_ref().is_some_and(|last| last.turn == turn || last.retried_as == Some(turn))
    }
}
