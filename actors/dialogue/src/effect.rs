//! What the machine wants done.

use std::sync::Arc;

use parlance_cluster_protocol::{
    GenerationOptions, History, Item, ModelTag, SessionKey, SessionRecord, TimestampMs, TurnId, WireError,
};
use thiserror::Error;

use crate::{Answer, DialogueError, RequestId, Tag};

/// Something to be done outside, in order.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "the largest is the most frequent, and effects are handed on at once")]
pub enum Effect {
    /// Append the record to the log. Once it is settled: [`apply`](crate::Dialogue::apply) it and tell
    /// [`Committed`](crate::Command::Committed), or tell [`NeverCommitted`](crate::Command::NeverCommitted). Proposals
    /// are committed in the order of their tags.
    Propose {
        /// Names the proposal.
        tag: Tag,
        /// The record.
        record: SessionRecord,
    },
    /// What was asked for is recorded.
    Done {
        /// The request.
        request: RequestId,
    },
    /// The idempotency key stands for this turn.
    Bound {
        /// The request.
        request: RequestId,
        /// The session that the turn belongs to.
        target: SessionKey,
        /// The turn.
        turn: TurnId,
        /// Whether it is the request's own turn, hence the first under this key.
        first: bool,
    },
    /// The turn is recorded: it will be answered once.
    Accepted {
        /// The request.
        request: RequestId,
        /// The turn.
        turn: TurnId,
    },
    /// The request repeats an earlier one, which is recorded.
    Joined {
        /// The request.
        request: RequestId,
        /// The earlier request's turn.
        turn: TurnId,
        /// How far that one is.
        state: Joined,
    },
    /// The request changed nothing.
    Refused {
        /// The request.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// Generate a reply. Report with the same turn and attempt.
    StartGeneration(Box<GenerationOrder>),
    /// Nothing that this attempt says counts any more.
    CancelGeneration {
        /// The turn.
        turn: TurnId,
        /// The attempt.
        attempt: u32,
    },
    /// The turn's final answer is recorded.
    Final {
        /// The turn.
        turn: TurnId,
        /// Its answer.
        answer: Arc<Answer>,
    },
}

/// How far a joined turn is.
#[derive(Debug, Clone, PartialEq)]
pub enum Joined {
    /// It has no final answer yet: [`Effect::Final`] will come.
    Open,
    /// It has ended with this answer.
    Answered(Arc<Answer>),
    /// It has ended; the answer went out over its channel and is not kept for repeated deliveries.
    Over,
}

/// One attempt to answer one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOrder {
    /// The turn.
    pub turn: TurnId,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// The whole prompt, the system prompt first. Depends on the log alone: any owner makes the same one.
    pub messages: Vec<Arc<Item>>,
    /// Whether the prompt is the session's history, whose oldest messages may be left out to fit the context.
    pub history: History,
    /// How the reply is generated.
    pub options: GenerationOptions,
    /// The seed of the reply's random numbers.
    pub seed: u64,
    /// Recorded tokens of an earlier attempt, which the reply begins with if the model is `forced_model` again.
    pub forced: Vec<u32>,
    /// The model that made the forced tokens.
    pub forced_model: Option<ModelTag>,
    /// When the turn fails if it has no reply.
    pub deadline: TimestampMs,
    /// Equal for all turns of the session, never 0: a hint that its cache is warm where the last turn ran.
    pub affinity: u64,
}

/// Why a request was turned down. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// The session has as many unanswered turns as it may have.
    #[error("this session's queue is full: wait for its replies")]
    QueueFull,
    /// What is asked for needs a session at rest.
    #[error("this session is busy: wait for its reply")]
    SessionBusy,
    /// The event id or idempotency key was used with another body.
    #[error("this idempotency key was used with another request")]
    IdempotencyConflict,
    /// As many event ids are remembered as may be.
    #[error("this session has too many idempotent requests of the last 24 hours")]
    DedupeFull,
    /// There is no such session.
    #[error("no such session")]
    NotFound,
    /// The session was deleted.
    #[error("this session was deleted")]
    Deleted,
    /// There is such a session already.
    #[error("this session exists already")]
    AlreadyExists,
    /// Only the last reply can be regenerated, and without new input.
    #[error("only the last reply of a session can be regenerated")]
    InvalidRegenerate,
    /// The session has had another number of turns than the request is about.
    #[error("another turn came first")]
    MovedOn,
    /// The messages are more than a prompt may hold.
    #[error("the messages are larger than a session's history may be")]
    InputTooLarge,
    /// Another turn has this id.
    #[error("this turn id is in use")]
    TurnIdInUse,
    /// The part of an adopted session is not the next one, or is not what it should be.
    #[error("{0}")]
    BadPart(&'static str),
    /// The record could not be written.
    #[error("the log did not take the record: try again")]
    NotRecorded,
    /// The state is being recovered.
    #[error("the session is being recovered: try again")]
    NotReady,
}

impl Refusal {
    /// Why a part of an adopted session cannot follow.
    pub(crate) fn from_part(error: &DialogueError) -> Self {
        Self::BadPart(match error {
            DialogueError::OutOfPlace { reason, .. } => reason,
            DialogueError::Wire(WireError::Newer { .. }) => "a row is of a newer version of parlance",
            _ => "a row cannot be read",
        })
    }

    /// The error code of the public interface.
    pub fn code(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SessionBusy => "session_busy",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::DedupeFull => "rate_limited",
            Self::NotFound | Self::Deleted => "session_not_found",
            Self::AlreadyExists => "session_exists",
            Self::InvalidRegenerate | Self::TurnIdInUse | Self::BadPart(_) => "invalid_value",
            Self::MovedOn => "session_moved_on",
            Self::InputTooLarge => "input_too_large",
            Self::NotRecorded | Self::NotReady => "log_unavailable",
        }
    }
}
