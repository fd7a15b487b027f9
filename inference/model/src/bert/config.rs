//! The shape of a BERT model, read from `config.json`. Keys and defaults are those of transformers.

use parlance_inference_kernels::attention::VALUE_BLOCK;

use crate::{
    ModelError,
    checkpoint::{JsonFile, MAX_VOCABULARY},
    config::{MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH},
};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BertConfig {
    pub(super) layers: usize,
    /// Width of a hidden state.
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Width of the feed-forward part.
    pub(super) feed_forward: usize,
    pub(super) vocabulary: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// Rows of the table of kinds of text, of which only the first is used.
    pub(super) kinds: usize,
    /// The most tokens of one text.
    pub(super) context: usize,
    pub(super) norm_epsilon: f32,
}

impl BertConfig {
    /// Reads and checks the shape.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the file describes a variant that is not built in, or nonsense.
    pub(super) fn read(file: &JsonFile) -> Result<Self, ModelError> {
        let object = file.object();
        let act = object.string_or_none("hidden_act")?.unwrap_or("gelu");
        if act != "gelu" {
            return Err(object.unsupported(format!("the activation {act:?} (\"hidden_act\")"), "gelu"));
        }
        let positions = object.string_or_none("position_embedding_type")?.unwrap_or("absolute");
        if positions != "absolute" {
            let what = format!("the positions {positions:?} (\"position_embedding_type\")");
            return Err(object.unsupported(what, "absolute"));
        }
        if object.bool("is_decoder")? {
            return Err(object.unsupported("the entry \"is_decoder\"", "models without it"));
        }
        let positions = object.bounded("max_position_embeddings", MAX_CONTEXT)?;
        let config = Self {
            layers: object.bounded("num_hidden_layers", MAX_LAYERS)?,
            hidden: object.bounded("hidden_size", MAX_WIDTH)?,
            heads: object.bounded("num_attention_heads", MAX_WIDTH)?,
            feed_forward: object.bounded("intermediate_size", MAX_WIDTH)?,
            vocabulary: object.bounded("vocab_size", MAX_VOCABULARY)?,
            positions,
            kinds: object.bounded("type_vocab_size", MAX_WIDTH)?,
            context: positions,
            norm_epsilon: object.f32("layer_norm_eps")?,
        };
        if !config.hidden.is_multiple_of(config.heads) {
            return Err(object.inconsistent(format!("{} heads do not divide {}", config.heads, config.hidden)));
        }
        let head = config.hidden / config.heads;
        if !head.is_multiple_of(VALUE_BLOCK) {
            return Err(object.unsupported(format!("the head width {head}"), format!("multiples of {VALUE_BLOCK}")));
        }
        if config.norm_epsilon <= 0.0 {
            return Err(object.inconsistent("the norm's epsilon must be positive"));
        }
        Ok(config)
    }
}
