//! Embeddings: texts in, vectors out, computed in ragged batches on a thread of its own.
//!
//! A model is an [`EmbeddingModel`] with an [`EmbeddingCodec`]; [`EmbeddingEngine`] makes an [`EmbeddingReplica`] of both.

mod engine;
mod metrics;
mod turns;

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

pub(crate) use self::metrics::{DURATION_BUCKETS, describe};
pub use self::{
    engine::{EmbeddingEngine, EmbeddingEngineReplica},
    turns::EmbeddingOptions,
};
use crate::{EngineError, Lifeline, Replica, ReplicaInfo, ReplicaLoad, TokenId};

/// A model that turns texts into vectors. Lives on the engine's thread.
pub trait EmbeddingModel: Send {
    /// How many values a vector has.
    fn dimensions(&self) -> usize;

    /// Computes the vectors of a ragged batch of texts, none of them empty, and writes them one after the other, in the order of the
    /// texts, into `vectors` (cleared first).
    ///
    /// Invariant: a text's vector depends on that text alone, bit for bit, whatever else is in the batch.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`]; nothing of the batch counts then.
    fn embed(&mut self, texts: &[&[TokenId]], vectors: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// Text to the tokens of an embedding model, shared between threads.
pub trait EmbeddingCodec: Send + Sync {
    /// What the model is, for its clients. `context_tokens` is the most that it reads of one text.
    fn info(&self) -> &ReplicaInfo;

    /// The vocabulary's size: the first number that is no token.
    fn vocabulary(&self) -> usize;

    /// Encodes a text as the model wants it, with what begins and ends it, however long it is.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] if the tokenizer fails.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, EngineError>;
}

/// One text, as a caller gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// As text.
    Text(String),
    /// As tokens of the model's own vocabulary, with what begins and ends a text. They are taken as they are.
    Tokens(Vec<TokenId>),
}

/// What is asked of an embedding model.
#[derive(Debug, Clone)]
pub struct EmbeddingRequest {
    /// The texts, prepared by the same replica.
    pub texts: Vec<Vec<TokenId>>,
    /// Whose they are.
    pub tenant: String,
    /// When the request is dropped.
    pub deadline: Option<Instant>,
}

/// The vectors of a request's texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// The vectors one after the other, in the order of the texts.
    pub values: Vec<f32>,
    /// How many values each has.
    pub dimensions: usize,
}

impl Embeddings {
    /// The vectors in the order of the texts.
    pub fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimensions)
    }
}

/// The end of an embedding request. Dropping it before cancels the request within one step.
pub type PendingEmbeddings = oneshot::Receiver<Result<Embeddings, EngineError>>;

/// One loaded model that embeds texts. Once nobody holds it any more, it finishes what it has taken on and ends.
pub trait EmbeddingReplica: Send + Sync + 'static {
    /// What it serves.
    fn info(&self) -> &ReplicaInfo;

    /// How many values a vector has.
    fn dimensions(&self) -> usize;

    /// Turns a request's inputs into tokens and checks them. Pure computation: microseconds for a sentence, a second for a megabyte.
    ///
    /// # Errors
    ///
    /// [`EngineError::TextTooLong`] for more than the model reads, [`EngineError::Texts`] for what cannot be computed otherwise.
    fn prepare(&self, inputs: &[EmbeddingInput]) -> Result<Vec<Vec<TokenId>>, EngineError>;

    /// Queues a request. Never blocks.
    ///
    /// # Errors
    ///
    /// [`EngineError::QueueFull`] at the stated bound and [`EngineError::Stopped`] after the engine ended.
    fn submit(&self, request: EmbeddingRequest) -> Result<PendingEmbeddings, EngineError>;

    /// Requests that run or wait.
    fn load(&self) -> ReplicaLoad;

    /// Watches its end.
    fn lifeline(&self) -> Lifeline;
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// It answers messages.
    Chat,
    /// It embeds texts.
    Embedding,
}

/// A replica of a model of either kind.
#[derive(Clone)]
pub enum ModelReplica {
    /// It answers messages.
    Chat(Arc<dyn Replica>),
    /// It embeds texts.
    Embedding(Arc<dyn EmbeddingReplica>),
}

impl ModelReplica {
    /// What its model is for.
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::Chat(_) => ModelKind::Chat,
            Self::Embedding(_) => ModelKind::Embedding,
        }
    }

    /// What it serves.
    pub fn info(&self) -> &ReplicaInfo {
        match self {
            Self::Chat(replica) => replica.info(),
            Self::Embedding(replica) => replica.info(),
        }
    }

    /// Requests that run or wait.
    pub fn load(&self) -> ReplicaLoad {
        match self {
            Self::Chat(replica) => replica.load(),
            Self::Embedding(replica) => replica.load(),
        }
    }

    /// Watches its end.
    pub fn lifeline(&self) -> Lifeline {
        match self {
            Self::Chat(replica) => replica.lifeline(),
            Self::Embedding(replica) => replica.lifeline(),
        }
    }

    /// Whether both are the same replica, not only alike.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Chat(one), Self::Chat(other)) => Arc::ptr_eq(one, other),
            (Self::Embedding(one), Self::Embedding(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl From<Arc<dyn Replica>> for ModelReplica {
    fn from(replica: Arc<dyn Replica>) -> Self {
        Self::Chat(replica)
    }
}

impl From<Arc<dyn EmbeddingReplica>> for ModelReplica {
    fn from(replica: Arc<dyn EmbeddingReplica>) -> Self {
        Self::Embedding(replica)
    }
}
