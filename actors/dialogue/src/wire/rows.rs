use std::sync::Arc;

use bytes::Bytes;
use parlance_cluster_protocol::{
    FinishReason, Item, ModelTag, Origin, Role, SessionEvent, SessionKey, SessionRecord, TimestampMs, Usage, WireError,
};
use prost::Message;

use super::{FORMAT_VERSION, check_format, fixed, malformed, turn_bytes, turn_id};
use crate::{Answer, DedupeOutcome, DialogueError, HistoryItem, ItemKind, Outcome};

const ITEM: &str = "history item";
const DEDUPE: &str = "dedupe outcome";

#[derive(Clone, PartialEq, Message)]
struct ItemRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(enumeration = "RoleRow", tag = "2")]
    role: i32,
    #[prost(string, tag = "3")]
    text: String,
    #[prost(bytes = "vec", optional, tag = "4")]
    turn: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    exchange: Option<Vec<u8>>,
    #[prost(uint64, tag = "6")]
    created_at_ms: u64,
    #[prost(bytes = "vec", optional, tag = "7")]
    user: Option<Vec<u8>>,
    #[prost(uint32, tag = "8")]
    key_id: u32,
    #[prost(oneof = "item_row::Kind", tags = "10, 11, 12, 13")]
    kind: Option<item_row::Kind>,
}

mod item_row {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "10")]
        Added(super::AddedRow),
        #[prost(message, tag = "11")]
        Input(super::InputRow),
        #[prost(message, tag = "12")]
        Reply(super::ReplyRow),
        #[prost(message, tag = "13")]
        Failure(super::FailureRow),
    }
}

#[derive(Clone, PartialEq, Message)]
struct AddedRow {}

#[derive(Clone, PartialEq, Message)]
struct InputRow {
    #[prost(bool, tag = "1")]
    given: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ReplyRow {
    #[prost(enumeration = "FinishRow", tag = "1")]
    finish: i32,
    #[prost(uint32, tag = "2")]
    prompt_tokens: u32,
    #[prost(uint32, tag = "3")]
    completion_tokens: u32,
    #[prost(uint32, tag = "4")]
    cached_tokens: u32,
    #[prost(message, optional, tag = "5")]
    model: Option<ModelRow>,
    #[prost(bool, tag = "6")]
    given: bool,
}

#[derive(Clone, PartialEq, Message)]
struct FailureRow {
    #[prost(string, tag = "1")]
    code: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelRow {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(string, tag = "3")]
    numerics: String,
}

#[derive(Clone, PartialEq, Message)]
struct DedupeRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    turn: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    body_hash: Option<Vec<u8>>,
    #[prost(uint64, tag = "4")]
    expires_at_ms: u64,
    #[prost(bool, tag = "5")]
    ended: bool,
    #[prost(message, optional, tag = "6")]
    answer: Option<AnswerRow>,
    #[prost(bytes = "vec", optional, tag = "7")]
    user: Option<Vec<u8>>,
    #[prost(uint32, tag = "8")]
    key_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct AnswerRow {
    #[prost(enumeration = "OriginRow", tag = "1")]
    origin: i32,
    #[prost(uint64, tag = "2")]
    accepted_at_ms: u64,
    /// The final record, without its session, which the row is filed under.
    #[prost(bytes = "bytes", tag = "3")]
    record: Bytes,
}

/// A domain enumeration and its stored numbers. 0 is never written; an unknown number is refused.
macro_rules! enumeration {
    ($row:ident, $domain:ident, $($variant:ident = $number:literal),+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
        #[repr(i32)]
        enum $row { Unknown = 0, $($variant = $number),+ }

        impl From<$domain> for $row {
            fn from(value: $domain) -> Self {
                match value { $($domain::$variant => Self::$variant),+ }
            }
        }

        impl TryFrom<$row> for $domain {
            type Error = WireError;

            fn try_from(value: $row) -> Result<Self, WireError> {
                match value {
                    $row::Unknown => Err(WireError::UnknownKind { what: stringify!($domain) }),
                    $($row::$variant => Ok(Self::$variant)),+
                }
            }
        }
    };
}

enumeration!(RoleRow, Role, System = 1, User = 2, Assistant = 3, Tool = 4);
enumeration!(FinishRow, FinishReason, Stop = 1, Length = 2, Cancelled = 3);
enumeration!(OriginRow, Origin, ChatCompletion = 1, Response = 2, WebSocket = 3, Channel = 4);

impl From<&ModelTag> for ModelRow {
    fn from(tag: &ModelTag) -> Self {
        Self { name: tag.name.clone(), digest: tag.digest.clone(), numerics: tag.numerics.clone() }
    }
}

impl From<ModelRow> for ModelTag {
    fn from(row: ModelRow) -> Self {
        Self { name: row.name, digest: row.digest, numerics: row.numerics }
    }
}

impl HistoryItem {
    /// The row, in the newest format.
    pub fn encode(&self) -> Bytes {
        let row = ItemRow {
            format: FORMAT_VERSION,
            role: RoleRow::from(self.item.role).into(),
            text: self.item.text.clone(),
            turn: self.turn.map(turn_bytes),
            exchange: self.exchange.map(turn_bytes),
            created_at_ms: self.created_at.0,
            user: self.user.map(|hash| hash.to_vec()),
            key_id: self.key_id,
            kind: Some((&self.kind).into()),
        };
        row.encode_to_vec().into()
    }

    /// Reads a row of any known format.
    ///
    /// # Errors
    ///
    /// [`DialogueError::Wire`] if the row is newer or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DialogueError> {
        let row = ItemRow::decode(bytes).map_err(|e| malformed(ITEM, e))?;
        check_format(ITEM, row.format)?;
        Ok(Self {
            item: Arc::new(Item { role: row.role().try_into()?, text: row.text }),
            kind: row.kind.ok_or(WireError::UnknownKind { what: ITEM })?.try_into()?,
            turn: row.turn.map(|id| turn_id(ITEM, &id)).transpose()?,
            exchange: row.exchange.map(|id| turn_id(ITEM, &id)).transpose()?,
            created_at: TimestampMs(row.created_at_ms),
            user: row.user.map(|hash| fixed(ITEM, &hash)).transpose()?,
            key_id: row.key_id,
        })
    }
}

impl From<&ItemKind> for item_row::Kind {
    fn from(kind: &ItemKind) -> Self {
        match kind {
            ItemKind::Added => Self::Added(AddedRow {}),
            ItemKind::Input { given } => Self::Input(InputRow { given: *given }),
            ItemKind::Reply { finish, usage, model, given } => Self::Reply(ReplyRow {
                finish: FinishRow::from(*finish).into(),
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
                model: Some(model.into()),
                given: *given,
            }),
            ItemKind::Failure { code } => Self::Failure(FailureRow { code: code.clone() }),
        }
    }
}

impl TryFrom<item_row::Kind> for ItemKind {
    type Error = WireError;

    fn try_from(kind: item_row::Kind) -> Result<Self, WireError> {
        Ok(match kind {
            item_row::Kind::Added(AddedRow {}) => Self::Added,
            item_row::Kind::Input(row) => Self::Input { given: row.given },
            item_row::Kind::Reply(row) => Self::Reply {
                finish: row.finish().try_into()?,
                usage: Usage {
                    prompt_tokens: row.prompt_tokens,
                    completion_tokens: row.completion_tokens,
                    cached_tokens: row.cached_tokens,
                },
                model: row.model.ok_or_else(|| malformed(ITEM, "no model"))?.into(),
                given: row.given,
            },
            item_row::Kind::Failure(row) => Self::Failure { code: row.code },
        })
    }
}

impl DedupeOutcome {
    /// The row, in the newest format.
    pub fn encode(&self) -> Bytes {
        let row = DedupeRow {
            format: FORMAT_VERSION,
            turn: turn_bytes(self.turn),
            body_hash: self.body_hash.map(|hash| hash.to_vec()),
            expires_at_ms: self.expires_at.0,
            ended: self.ended,
            answer: self.answer.as_deref().map(AnswerRow::from),
            user: self.user.map(|hash| hash.to_vec()),
            key_id: self.key_id,
        };
        row.encode_to_vec().into()
    }

    /// Reads a row of any known format.
    ///
    /// # Errors
    ///
    /// [`DialogueError::Wire`] if the row is newer or damaged.
    pub fn decode(bytes: Bytes) -> Result<Self, DialogueError> {
        let row = DedupeRow::decode(bytes).map_err(|e| malformed(DEDUPE, e))?;
        check_format(DEDUPE, row.format)?;
        Ok(Self {
            turn: turn_id(DEDUPE, &row.turn)?,
            body_hash: row.body_hash.map(|hash| fixed(DEDUPE, &hash)).transpose()?,
            expires_at: TimestampMs(row.expires_at_ms),
            ended: row.ended,
            answer: row.answer.map(|answer| Answer::try_from(answer).map(Arc::new)).transpose()?,
            user: row.user.map(|hash| fixed(DEDUPE, &hash)).transpose()?,
            key_id: row.key_id,
        })
    }
}

impl From<&Answer> for AnswerRow {
    fn from(answer: &Answer) -> Self {
        let event = match &answer.outcome {
            Outcome::Replied(replied) => SessionEvent::Replied(replied.as_ref().clone()),
            Outcome::Failed(failed) => SessionEvent::TurnFailed(failed.as_ref().clone()),
        };
        let session = SessionKey::in_channel("", "", "");
        let record = SessionRecord { session, user: None, key_id: 0, at: answer.ended_at, event };
        Self {
            origin: OriginRow::from(answer.origin).into(),
            accepted_at_ms: answer.accepted_at.0,
            record: record.encode(),
        }
    }
}

impl TryFrom<AnswerRow> for Answer {
    type Error = WireError;

    fn try_from(row: AnswerRow) -> Result<Self, WireError> {
        let origin = row.origin().try_into()?;
        let record = SessionRecord::decode(row.record)?;
        let (turn, outcome) = match record.event {
            SessionEvent::Replied(replied) => (replied.turn, Outcome::Replied(Arc::new(replied))),
            SessionEvent::TurnFailed(failed) => (failed.turn, Outcome::Failed(Arc::new(failed))),
            _ => return Err(malformed(DEDUPE, "its answer is not a final record")),
        };
        Ok(Self { turn, origin, accepted_at: TimestampMs(row.accepted_at_ms), ended_at: record.at, outcome })
    }
}
