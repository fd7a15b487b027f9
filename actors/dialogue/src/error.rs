use parlance_cluster_protocol::{Position, SessionKey, TurnId, WireError};
use thiserror::Error;

/// Why a committed record or a stored row cannot be used. The owner of the shard steps down; nothing is ever skipped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialogueError {
    /// The bytes are of a newer format, of an unknown kind or damaged.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The record belongs to another session.
    #[error("a record of session {found} was given to session {expected}")]
    WrongSession {
        /// The session that the state belongs to.
        expected: Box<SessionKey>,
        /// The session in the record.
        found: Box<SessionKey>,
    },
    /// The record cannot follow those before it.
    #[error("the record at position {position} of {turn:?} cannot follow those before it: {reason}")]
    Inconsistent {
        /// Where it lies.
        position: Position,
        /// The turn that it is about.
        turn: TurnId,
        /// What is wrong.
        reason: &'static str,
    },
    /// The part of an adopted session cannot follow what is known of the session.
    #[error("the adopted part at position {position} cannot follow what is known of its session: {reason}")]
    OutOfPlace {
        /// Where it lies.
        position: Position,
        /// What is wrong.
        reason: &'static str,
    },
}
