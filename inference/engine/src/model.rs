//! What the engine needs from a model: batched steps over lanes of tokens, and text in and out.

use crate::{ChatMessage, EngineError, ReplicaInfo, TokenId, ToolPrompt, ToolSyntax};

/// A sequence that the model can compute beside others; lanes are numbered from 0 to [`TokenModel::lanes`].
pub type Lane = usize;

/// A block of the model's KV cache; blocks are numbered from 0 to [`TokenModel::blocks`].
pub type Block = u32;

/// A copy of the beginning of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where from.
    pub from: Block,
    /// Where to; another block.
    pub to: Block,
    /// How many positions, from the block's first.
    pub positions: usize,
}

/// The tokens that one lane computes in one step.
#[derive(Debug, Clone, Copy)]
pub struct LaneInput<'a> {
    /// The lane.
    pub lane: Lane,
    /// Where `tokens[0]` stands; everything before it is in the lane's cache already.
    pub start: usize,
    /// One token in decode, up to a chunk in prefill. Never empty.
    pub tokens: &'a [TokenId],
    /// After how many of `tokens`, counted from the last, logits are wanted.
    pub logits: usize,
}

/// A model with a KV cache of blocks, which lanes hold alone or together. Lives on the engine's thread.
pub trait TokenModel: Send {
    /// How many sequences can run at once.
    fn lanes(&self) -> usize;

    /// How many positions a block of the KV cache holds.
    fn block_tokens(&self) -> usize;

    /// How many blocks the KV cache has: enough for [`context_tokens`](Self::context_tokens) at least.
    fn blocks(&self) -> usize;

    /// Says where the positions of a lane lie from now on: `p` in `blocks[p / block_tokens]`. Lanes that share a block only read it.
    /// Before, each has blocks of its own, as many as there are for it.
    fn place(&mut self, lane: Lane, blocks: &[Block]);

    /// Copies keys and values from block to block.
    fn copy(&mut self, copy: BlockCopy);

    /// The most tokens of one lane.
    fn context_tokens(&self) -> usize;

    /// The vocabulary's size: the length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Computes one step over a ragged batch and writes the logits, as many rows of [`vocabulary`](Self::vocabulary) values as each
    /// input wants, in order of inputs and positions, into `logits` (cleared first). A row that is not
    /// finite fails its own lane's request.
    ///
    /// Invariant: a lane's result depends on that lane's tokens alone, bit for bit, whatever else is in the batch and however
    /// the tokens are cut into steps. Models whose numerics class begins with `tensor-` hold this but for rounding.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`]; the whole cache is then undefined and gets computed anew.
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

    /// How the model writes calls of tools; nothing if its template has none.
    fn tool_syntax(&self) -> Option<ToolSyntax> {
        None
    }

    /// As [`encode_chat`](Self::encode_chat), with what the template says of tools.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] if the template refuses them, or has no tools.
    fn encode_with_tools(
        &self,
        _messages: &[ChatMessage<'_>],
        _tools: ToolPrompt<'_>,
    ) -> Result<Vec<TokenId>, EngineError> {
        Err(EngineError::Template("it has no tools".to_owned()))
    }

    /// The bytes that a token stands for. A token may hold a part of a character; special tokens have none.
    fn token_bytes(&self, token: TokenId) -> &[u8];

    /// Whether the token ends a reply.
    fn is_end(&self, token: TokenId) -> bool;
}
