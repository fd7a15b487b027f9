//! The shape of a Llama-architecture model, read from metadata and checked before anything is computed with it.

use parlance_inference_kernels::attention::VALUE_BLOCK;

use crate::{
    ModelError,
    gguf::{Gguf, Metadata},
};

const ARCHITECTURE: &str = "llama";
/// Llama's, where the file does not say.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;
/// Bounds far beyond any model of this architecture, so that no product of dimensions overflows.
const MAX_LAYERS: u32 = 1_024;
const MAX_WIDTH: u32 = 1 << 20;
const MAX_CONTEXT: u32 = 1 << 24;

/// The shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LlamaConfig {
    pub(crate) layers: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub(crate) heads: usize,
    /// Heads of keys and values.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head: usize,
    /// Width of the feed-forward part.
    pub(crate) feed_forward: usize,
    pub(crate) vocabulary: usize,
    /// The most tokens that the model was trained for.
    pub(crate) context: usize,
    pub(crate) rms_epsilon: f32,
    pub(crate) rope_base: f32,
}

impl LlamaConfig {
    /// Reads and checks the shape.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the file describes another architecture, a variant that is not built in, or nonsense.
    pub(crate) fn read(gguf: &Gguf<'_>) -> Result<Self, ModelError> {
        let metadata = &gguf.metadata;
        let architecture = metadata.string("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(metadata.unsupported(format!("the architecture {architecture:?}"), ARCHITECTURE));
        }
        refuse_variants(metadata)?;
        let hidden = bounded(metadata, "llama.embedding_length", MAX_WIDTH)?;
        let heads = bounded(metadata, "llama.attention.head_count", MAX_WIDTH)?;
        let kv_heads = match metadata.contains("llama.attention.head_count_kv") {
            true => bounded(metadata, "llama.attention.head_count_kv", MAX_WIDTH)?,
            false => heads,
        };
        let head = match metadata.contains("llama.attention.key_length") {
            true => bounded(metadata, "llama.attention.key_length", MAX_WIDTH)?,
            false => hidden / heads,
        };
        let config = Self {
            layers: bounded(metadata, "llama.block_count", MAX_LAYERS)?,
            hidden,
            heads,
            kv_heads,
            head,
            feed_forward: bounded(metadata, "llama.feed_forward_length", MAX_WIDTH)?,
            vocabulary: metadata.strings("tokenizer.ggml.tokens")?.len(),
            context: bounded(metadata, "llama.context_length", MAX_CONTEXT)?,
            rms_epsilon: required_float(metadata, "llama.attention.layer_norm_rms_epsilon")?,
            rope_base: metadata.f32_or_none("llama.rope.freq_base")?.unwrap_or(DEFAULT_ROPE_BASE),
        };
        config.check(metadata)?;
        Ok(config)
    }

    fn check(&self, metadata: &Metadata<'_>) -> Result<(), ModelError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} heads do not divide into {} of keys and values", self.heads, self.kv_heads);
            return Err(metadata.inconsistent(problem));
        }
        if self.head == 0 || !self.head.is_multiple_of(VALUE_BLOCK) {
            let supported = format!("multiples of {VALUE_BLOCK}");
            return Err(metadata.unsupported(format!("the head width {}", self.head), supported));
        }
        if metadata.u32_or_none("llama.rope.dimension_count")?.is_some_and(|rotated| rotated as usize != self.head) {
            return Err(
                metadata.unsupported("rotary embedding of a part of each head", "rotary embedding of whole heads")
            );
        }
        if metadata.u32_or_none("llama.attention.value_length")?.is_some_and(|value| value as usize != self.head) {
            return Err(metadata.unsupported("values of another width than keys", "equal widths"));
        }
        if self.rms_epsilon <= 0.0 || self.rope_base <= 0.0 || self.vocabulary == 0 {
            return Err(metadata.inconsistent("the norm's epsilon, the rope base and the vocabulary must be positive"));
        }
        Ok(())
    }

    /// Query heads per head of keys and values.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of the queries, keys and values side by side.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }
}

/// Variants that share the architecture's name and would compute something else.
fn refuse_variants(metadata: &Metadata<'_>) -> Result<(), ModelError> {
    if metadata.u32_or_none("llama.expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(metadata.unsupported("a mixture of experts", "dense models"));
    }
    if let Some(scaling) = metadata.string_or_none("llama.rope.scaling.type")?
        && scaling != "none"
    {
        return Err(metadata.unsupported(format!("the rope scaling {scaling:?}"), "none"));
    }
    if metadata.u32_or_none("split.count")?.is_some_and(|parts| parts > 1) {
        return Err(metadata.unsupported("a model split over several files", "models in one file"));
    }
    Ok(())
}

fn bounded(metadata: &Metadata<'_>, key: &str, most: u32) -> Result<usize, ModelError> {
    match metadata.u32(key)? {
        value if (1..=most).contains(&value) => Ok(value as usize),
        value => Err(metadata.inconsistent(format!("the metadata entry {key:?} is {value}, not from 1 to {most}"))),
    }
}

fn required_float(metadata: &Metadata<'_>, key: &str) -> Result<f32, ModelError> {
    metadata.f32_or_none(key)?.ok_or_else(|| metadata.inconsistent(format!("the metadata entry {key:?} is missing")))
}
