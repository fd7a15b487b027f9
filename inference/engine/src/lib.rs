//! The inference engine: continuous batching over the lanes of a model, sampling, text assembly, and a scripted twin.
//!
//! No burn and no actors here: a model is a [`TokenModel`] with a [`TextCodec`], a client is an [`EventSink`].

mod error;
mod model;
mod replica;
mod request;

pub use error::EngineError;
pub use model::{Lane, LaneInput, TextCodec, TokenModel};
pub use replica::{CancelHandle, Replica, ReplicaInfo, ReplicaLoad};
pub use request::{
    ChatMessage, ChatRole, EventSink, Finish, GenerateEvent, GenerateRequest, PreparedPrompt, PromptBudget, Sampling,
    TokenId, TokenUsage,
};
