use std::{borrow::Cow, time::Duration};

use parlance_actors_dialogue::DialogueError;
use parlance_cluster_log::{LogError, ownership::StepDown};
use parlance_cluster_protocol::{SessionKey, WireError};
use parlance_cluster_records::RecordsError;
use parlance_inference_engine::EngineError;
use ractor::SpawnErr;
use thiserror::Error;

/// Why a request was not carried out. Nothing was changed and nothing was accepted.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Refusal {
    /// A value cannot be used.
    #[error("{message}")]
    InvalidValue {
        /// The parameter, as the public interface names it.
        param: String,
        /// What is wrong, for the caller.
        message: String,
    },
    /// The prompt does not fit the model's context.
    #[error("{0}")]
    ContextExceeded(String),
    /// No such model.
    #[error("the model `{model}` does not exist; available: {available}")]
    ModelNotFound {
        /// The name that was asked for.
        model: String,
        /// The names that there are, comma-separated.
        available: String,
    },
    /// The model is known but cannot answer yet, or failed to load.
    #[error("the model `{model}` is not ready: {reason}")]
    ModelNotReady {
        /// Its name.
        model: String,
        /// Why.
        reason: String,
    },
    /// The model is configured, but nobody has it loaded.
    #[error("the model `{model}` is not loaded")]
    ModelUnloaded {
        /// Its name.
        model: String,
    },
    /// No such session, or it was deleted.
    #[error("the session does not exist")]
    SessionNotFound,
    /// The idempotency key belongs to a request with another body.
    #[error("this Idempotency-Key was used with another request")]
    IdempotencyConflict,
    /// The session exists already.
    #[error("the session exists already")]
    SessionExists,
    /// The session has had another number of turns than the request is about.
    #[error("another turn of the session came first")]
    SessionMovedOn,
    /// The session's queue of turns is at its bound.
    #[error("the session has {queued} turns waiting, which is its limit")]
    SessionBusy {
        /// How many wait.
        queued: usize,
    },
    /// The caller has reached a limit of its own.
    #[error("{message}")]
    RateLimited {
        /// Which one, for the caller.
        message: String,
        /// When a try is likely to succeed.
        retry_after: Duration,
    },
    /// The caller's tenant is at its bound.
    #[error("the tenant has {open} open turns, which is its limit")]
    QueueFull {
        /// How many are open.
        open: usize,
    },
    /// The node is at a bound of its own.
    #[error("this node is at its limit: {what}")]
    Overloaded {
        /// Which bound.
        what: Cow<'static, str>,
        /// When a try is likely to succeed.
        retry_after: Duration,
    },
    /// The log does not take new turns.
    #[error("the log does not take new turns: {0}")]
    LogUnavailable(String),
    /// The session's records cannot be read now.
    #[error("the records cannot be read: {0}")]
    RecordsUnavailable(String),
    /// The node is about to stop.
    #[error("this node is draining")]
    Draining,
    /// The session's shard is not this node's at the moment. Told to nobody outside: whoever asks looks for the owner.
    #[error("the session's shard is moving")]
    NotHere,
    /// The session failed again and again and is set aside; a restart of the node brings it back.
    #[error("the session {0} failed repeatedly and is parked")]
    Parked(SessionKey),
    /// The guard lets the prompt, or its reply, not through.
    #[error("{message}")]
    Blocked {
        /// The code of the public interface.
        code: &'static str,
        /// What a person is told.
        message: String,
    },
    /// The model failed before it produced a reply, or its queue is full.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Refusal {
    /// The code of the public interface, from a closed set.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidValue { .. } | Self::Engine(EngineError::Schema(_) | EngineError::Texts(_)) => "invalid_value",
            Self::ContextExceeded(_)
            | Self::Engine(EngineError::ContextExceeded { .. } | EngineError::TextTooLong { .. }) => {
                "context_length_exceeded"
            }
            Self::ModelNotFound { .. } | Self::ModelUnloaded { .. } => "model_not_found",
            Self::SessionNotFound => "session_not_found",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::SessionExists => "session_exists",
            Self::SessionMovedOn => "session_moved_on",
            Self::SessionBusy { .. } => "session_busy",
            Self::RateLimited { .. } => "rate_limited",
            Self::QueueFull { .. } | Self::Engine(EngineError::QueueFull { .. }) => "queue_full",
            Self::ModelNotReady { .. } | Self::Overloaded { .. } => "overloaded",
            Self::LogUnavailable(_) | Self::NotHere => "log_unavailable",
            Self::RecordsUnavailable(_) => "records_unavailable",
            Self::Draining => "draining",
            Self::Parked(_) => "session_parked",
            Self::Blocked { code, .. } => code,
            Self::Engine(EngineError::DeadlineExceeded) => "deadline_exceeded",
            Self::Engine(_) => "model_failed",
        }
    }
}

/// Why a shard's actor cannot go on. It is restarted, and tries again from the log.
#[derive(Debug, Error)]
pub(crate) enum ShardError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Dialogue(#[from] DialogueError),
    #[error(transparent)]
    SteppedDown(#[from] StepDown),
}

/// Why a node cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An actor could not be started.
    #[error("cannot start the node: {0}")]
    Actor(#[from] SpawnErr),
}
