use std::time::Duration;

use thiserror::Error;

/// The shortest time that a refused caller is told to wait.
pub(crate) const LEAST_RETRY_AFTER: Duration = Duration::from_millis(10);
/// The longest.
pub(crate) const MOST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EngineError {
    /// The prompt does not fit. The caller must shorten it.
    #[error(
        "the prompt has {prompt} tokens and {reserve} are kept for the reply, but the context of {model} holds {context}"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens kept for the reply.
        reserve: u32,
        /// Tokens of the context.
        context: u32,
        /// The model's name.
        model: String,
    },
    /// A text to embed does not fit. The caller must shorten or cut it.
    #[error("text {text} has {tokens} tokens, but {model} reads at most {context}")]
    TextTooLong {
        /// The text's number in its request, from 0.
        text: usize,
        /// Its tokens.
        tokens: usize,
        /// The most that the model reads.
        context: u32,
        /// The model's name.
        model: String,
    },
    /// The texts to embed cannot be computed: there are none or too many, or one has no tokens or unknown ones. The caller must
    /// correct them.
    #[error("{0}")]
    Texts(String),
    /// The request would wait for its first token for longer than it is meant to, or too many wait. Try again later.
    #[error("the model has as many requests as it can begin to answer in time")]
    QueueFull {
        /// When it is likely to be taken.
        retry_after: Duration,
    },
    /// The deadline passed before the reply was complete.
    #[error("the deadline passed before the reply was complete")]
    DeadlineExceeded,
    /// The model failed on this batch (a panic, a NaN). The request may be tried again.
    #[error("the model failed: {0}")]
    ModelFailed(String),
    /// The engine has ended. Another replica may serve.
    #[error("the engine has stopped")]
    Stopped,
    /// Replies cannot be held to this schema. The caller must change it.
    #[error("the schema cannot be followed: {0}")]
    Schema(String),
    /// The chat template cannot render these messages.
    #[error("the chat template refused the messages: {0}")]
    Template(String),
}

impl EngineError {
    /// [`QueueFull`](Self::QueueFull), for a caller who may find a place after `wait`.
    pub(crate) fn queue_full(wait: Duration) -> Self {
        Self::QueueFull { retry_after: wait.clamp(LEAST_RETRY_AFTER, MOST_RETRY_AFTER) }
    }
}

/// A model reference's option that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{key}` {problem}")]
pub struct InvalidOption {
    /// The option as written.
    pub key: String,
    /// What is wrong with it, to be read after its name.
    pub problem: String,
}

impl InvalidOption {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}
