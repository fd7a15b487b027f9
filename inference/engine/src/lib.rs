//! The inference engine: continuous batching over the lanes of a model, sampling, text assembly, and a scripted twin; and the same for
//! models that embed texts.
//!
//! No burn and no actors here: a model is a [`TokenModel`] with a [`TextCodec`], a client is an [`EventSink`].

mod admission;
mod blocks;
mod cost;
mod embedding;
mod engine;
mod error;
#[cfg(test)]
mod fake;
mod grammar;
mod lifeline;
mod load;
mod logprobs;
mod lookup;
mod metrics;
mod model;
mod prefix;
mod queue;
mod random;
mod replica;
mod reply;
mod request;
mod running;
mod sampling;
mod scheduler;
mod scripted;
mod shape;
mod shares;
mod speculation;
mod text;
mod tools;
mod window;

pub use cost::StepCosts;
pub use embedding::{
    EmbeddingCodec, EmbeddingEngine, EmbeddingEngineReplica, EmbeddingInput, EmbeddingModel, EmbeddingOptions,
    EmbeddingReplica, EmbeddingRequest, Embeddings, ModelKind, ModelReplica, PendingEmbeddings,
};
pub use engine::{Engine, EngineOptions, EngineReplica};
pub use error::{EngineError, InvalidOption};
pub use grammar::{Grammar, MAX_SCHEMA_BYTES};
pub use lifeline::Lifeline;
pub use logprobs::{Likelihood, TokenLogprob};
pub use metrics::{HISTOGRAM_BUCKETS, describe_metrics};
pub use model::{Block, BlockCopy, Lane, LaneInput, TextCodec, TokenModel};
pub use replica::{CancelHandle, Replica, ReplicaInfo, ReplicaLoad};
pub use request::{
    ChatMessage, ChatRole, EventSink, Finish, GenerateEvent, GenerateRequest, PreparedPrompt, Priority, PromptBudget,
    Sampling, TokenId, TokenUsage,
};
pub use scripted::{ScriptedOptions, ScriptedReplica};
pub use speculation::Speculation;
pub use tools::{MessageTools, Tool, ToolCall, ToolPrompt, ToolSyntax};
