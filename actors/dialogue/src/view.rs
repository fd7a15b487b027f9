//! The views of a session: what is stored besides the log, and read without replaying it.

use std::sync::Arc;

use parlance_cluster_protocol::{
    BodyHash, FinishReason, Item, ModelTag, Origin, Replied, TimestampMs, TurnFailed, TurnId, Usage, UserHash,
};

/// One change of the session's rows, made by one record. Changes are written in order, and the state row last: every record
/// changes it, and only its newest version matters.
///
/// Invariant: within one record a row is removed before it is put, never the other way round.
#[derive(Debug, Clone, PartialEq)]
pub enum ViewChange {
    /// Writes one row of the transcript.
    PutItem {
        /// Its number, counted from 0.
        index: u64,
        /// The item; see [`HistoryItem::encode`].
        item: Arc<HistoryItem>,
    },
    /// Writes which session the turn belongs to.
    PutTurn {
        /// The turn.
        turn: TurnId,
    },
    /// Writes what an event id led to.
    PutDedupe {
        /// The event id.
        event_id: Arc<str>,
        /// What it led to; see [`DedupeOutcome::encode`].
        outcome: Arc<DedupeOutcome>,
    },
    /// Removes an event id whose time is up.
    ForgetDedupe {
        /// The event id.
        event_id: Arc<str>,
    },
    /// Removes the transcript from `from` on.
    TruncateItems {
        /// The first item to go.
        from: u64,
    },
    /// Removes everything of the session except its state row.
    Erase,
}

/// One row of a session's transcript.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryItem {
    /// Role and text.
    pub item: Arc<Item>,
    /// What it is, and how it came about.
    pub kind: ItemKind,
    /// The turn that it came with, unless it was put in from outside.
    pub turn: Option<TurnId>,
    /// The turn whose input this item is, or answers. A regenerated reply has the exchange of the reply that it replaced.
    pub exchange: Option<TurnId>,
    /// When it was recorded.
    pub created_at: TimestampMs,
    /// Whose action it records, as a keyed hash; `None` for the system's own.
    pub user: Option<UserHash>,
    /// The data key that encrypts the text; 0 is none.
    pub key_id: u32,
}

/// What a [`HistoryItem`] is.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemKind {
    /// Put in from outside, without a turn.
    Added,
    /// A turn's message.
    Input {
        /// Whether it is part of a prompt that was given whole, and so of no later one.
        given: bool,
    },
    /// A turn's reply. Its text may be empty.
    Reply {
        /// Why it ended.
        finish: FinishReason,
        /// Its token counts.
        usage: Usage,
        /// The model that made it.
        model: ModelTag,
        /// Whether it answers a prompt that was given whole, and so is part of no later one.
        given: bool,
    },
    /// The end of a turn without a reply; the text is what a person is told.
    Failure {
        /// The error code of the public interface.
        code: String,
    },
}

impl HistoryItem {
    /// Bytes of text that it adds to later prompts; what is not part of them adds none.
    pub fn prompt_bytes(&self) -> u32 {
        match self.kind {
            ItemKind::Input { given: true } | ItemKind::Reply { given: true, .. } | ItemKind::Failure { .. } => 0,
            _ => u32::try_from(self.item.text.len()).unwrap_or(u32::MAX),
        }
    }
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With a reply.
    Replied(Arc<Replied>),
    /// Without one.
    Failed(Arc<TurnFailed>),
}

/// A turn's one final answer, with what is needed to say it again as it was said first.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The turn.
    pub turn: TurnId,
    /// Through which face it came.
    pub origin: Origin,
    /// When the turn was accepted.
    pub accepted_at: TimestampMs,
    /// When the answer was recorded.
    pub ended_at: TimestampMs,
    /// How it ended.
    pub outcome: Outcome,
}

/// What an event id led to. The whole answer lies here, since a regeneration removes it from the transcript.
#[derive(Debug, Clone, PartialEq)]
pub struct DedupeOutcome {
    /// The turn.
    pub turn: TurnId,
    /// The request's body, where the event id is an idempotency key.
    pub body_hash: Option<BodyHash>,
    /// From when on the event id is free again.
    pub expires_at: TimestampMs,
    /// Whether the turn has its final answer.
    pub ended: bool,
    /// That answer; not kept for turns that came over a channel, which sends a reply only once.
    pub answer: Option<Arc<Answer>>,
    /// Whose turn it is, as a keyed hash.
    pub user: Option<UserHash>,
    /// The data key that encrypts the text; 0 is none.
    pub key_id: u32,
}

impl DedupeOutcome {
    /// Bytes of text that it keeps in memory.
    pub fn text_bytes(&self) -> usize {
        match self.answer.as_ref().map(|answer| &answer.outcome) {
            Some(Outcome::Replied(replied)) => replied.text.len(),
            Some(Outcome::Failed(failed)) => failed.message.len(),
            None => 0,
        }
    }
}
