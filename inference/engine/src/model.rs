//! What the engine needs from a model: batched steps over lanes of tokens, and text in and out.

use crate::{ChatMessage, EngineError, ReplicaInfo, TokenId};

/// A lane of the model's KV cache; lanes are numbered from 0 to [`TokenModel::lanes`].
pub type Lane = usize;

/// The tokens that one lane computes in one step.
#[derive(Debug, Clone, Copy)]
pub struct LaneInput<'a> {
    /// The lane.
    pub lane: Lane,
    /// Where `tokens[0]` stands; everything before it is in the lane's cache already.
    pub start: usize,
    /// One token in decode, up to a chunk in prefill. Never empty.
    pub tokens: &'a [TokenId],
    /// Whether the logits after the last of `tokens` are wanted.
    pub want_logits: bool,
}

/// A model with a KV cache of fixed lanes. Lives on the engine's thread.
pub trait TokenModel: Send {
    /// How many sequences can be resident at once.
    fn lanes(&self) -> usize;

    /// The most tokens of one lane.
    fn context_tokens(&self) -> usize;

    /// The vocabulary's size: the length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Computes one step over a ragged batch and writes the logits, one row of [`vocabulary`](Self::vocabulary) values per input
    /// that wants them, in input order, into `logits` (cleared first). A row that is not finite fails its own lane's request.
    ///
    /// Invariant: a lane's result depends on that lane's tokens alone, bit for bit, whatever else is in the batch and however
    /// the tokens are cut into steps. Models whose numerics class begins with `tensor-` hold this but for rounding.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`]; the lanes of this batch are then undefined and get computed anew.
    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// Text to tokens and back, shared between threads.
pub trait TextCodec: Send + Sync {
    /// What the model is, for its clients.
    fn info(&self) -> &ReplicaInfo;

    /// Renders messages through the model's chat template, up to where the assistant speaks, and encodes them.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] if the template refuses them.
    fn encode_chat(&self, messages: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError>;

    /// The bytes that a token stands for. A token may hold a part of a character; special tokens have none.
    fn token_bytes(&self, token: TokenId) -> &[u8];

    /// Whether the token ends a reply.
    fn is_end(&self, token: TokenId) -> bool;
}
