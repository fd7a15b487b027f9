//! The shape of a model of Llama's architecture or one of its relatives, checked before anything is computed with it.
//!
//! Where it is read from decides which module reads it: `gguf::config` or `checkpoint::config`.

use std::path::Path;

use parlance_inference_kernels::attention::VALUE_BLOCK;

use crate::{
    ModelError,
    rope::{RopeConfig, Scaling},
};

/// Llama's, where a file does not say.
pub(crate) const DEFAULT_ROPE_BASE: f32 = 10_000.0;
/// Bounds far beyond any model of these families, so that no product of dimensions overflows.
pub(crate) const MAX_LAYERS: u32 = 1_024;
pub(crate) const MAX_WIDTH: u32 = 1 << 20;
pub(crate) const MAX_CONTEXT: u32 = 1 << 24;

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
    pub(crate) rope: RopeConfig,
    /// Whether queries, keys and values have a bias (Qwen2).
    pub(crate) qkv_bias: bool,
    /// Whether each head of queries and keys is normed before it is turned (Qwen3).
    pub(crate) qk_norm: bool,
    /// Whether the embedding is also the map to logits.
    pub(crate) tied: bool,
    /// By layer: the positions, its own included, that a position attends to; all before it where there is none (Mistral).
    pub(crate) windows: Vec<Option<usize>>,
}

impl LlamaConfig {
    /// Checks what no single entry shows. Errors name `file`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the shape is nonsense or not built in.
    pub(crate) fn check(&self, file: &Path) -> Result<(), ModelError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} heads do not divide into {} of keys and values", self.heads, self.kv_heads);
            return Err(ModelError::inconsistent(file, problem));
        }
        if self.head == 0 || !self.head.is_multiple_of(VALUE_BLOCK) {
            let supported = format!("multiples of {VALUE_BLOCK}");
            return Err(ModelError::unsupported(file, format!("the head width {}", self.head), supported));
        }
        if self.rms_epsilon <= 0.0 || self.rope.base <= 0.0 || self.vocabulary == 0 {
            let problem = "the norm's epsilon, the rope base and the vocabulary must be positive";
            return Err(ModelError::inconsistent(file, problem));
        }
        if self.windows.contains(&Some(0)) {
            return Err(ModelError::inconsistent(file, "the sliding window must be positive"));
        }
        self.check_scaling(file)
    }

    fn check_scaling(&self, file: &Path) -> Result<(), ModelError> {
        let sound = match self.rope.scaling {
            Scaling::None => true,
            Scaling::Linear(factor) => factor > 0.0,
            Scaling::Factors(ref factors) => factors.iter().all(|factor| factor.is_finite() && *factor > 0.0),
            Scaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                factor > 0.0 && high_frequency_factor > low_frequency_factor && original_context > 0.0
            }
        };
        if sound { Ok(()) } else { Err(ModelError::inconsistent(file, "the rope scaling's factors make no sense")) }
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
