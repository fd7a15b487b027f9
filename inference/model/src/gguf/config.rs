//! The shape of a model, read from the metadata of a GGUF file.
//!
//! Keys are those of ggml's `docs/gguf.md`. A key of the architecture that is not known here might change what the model computes,
//! so it is refused.

use super::{Gguf, Metadata};
use crate::{
    ModelError,
    config::{DEFAULT_ROPE_BASE, LlamaConfig, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH},
    rope::{Pairing, RopeConfig, Scaling},
    tensors::ROPE_FACTORS,
};

/// What sets one architecture apart from the others. Files of Mistral models say `llama`.
struct Family {
    architecture: &'static str,
    pairing: Pairing,
    qkv_bias: bool,
    qk_norm: bool,
}

const FAMILIES: [Family; 3] = [
    Family { architecture: "llama", pairing: Pairing::Neighbours, qkv_bias: false, qk_norm: false },
    Family { architecture: "qwen2", pairing: Pairing::Halves, qkv_bias: true, qk_norm: false },
    Family { architecture: "qwen3", pairing: Pairing::Halves, qkv_bias: false, qk_norm: true },
];

/// The keys below the architecture's name that are read, or that change nothing.
const KNOWN_KEYS: [&str; 20] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

impl Gguf<'_> {
    /// Reads and checks the shape.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the file describes another architecture, a variant that is not built in, or nonsense.
    pub(crate) fn config(&self) -> Result<LlamaConfig, ModelError> {
        let metadata = &self.metadata;
        let architecture = metadata.string("general.architecture")?;
        let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
            let supported = FAMILIES.map(|family| family.architecture).join(", ");
            return Err(metadata.unsupported(format!("the architecture {architecture:?}"), supported));
        };
        let keys = Keys { metadata, architecture };
        keys.refuse_variants()?;
        let hidden = keys.bounded("embedding_length", MAX_WIDTH)?;
        let heads = keys.bounded("attention.head_count", MAX_WIDTH)?;
        let head = keys.bounded_or("attention.key_length", MAX_WIDTH, hidden / heads)?;
        let layers = keys.bounded("block_count", MAX_LAYERS)?;
        let config = LlamaConfig {
            layers,
            hidden,
            heads,
            kv_heads: keys.bounded_or("attention.head_count_kv", MAX_WIDTH, heads)?,
            head,
            feed_forward: keys.bounded("feed_forward_length", MAX_WIDTH)?,
            vocabulary: metadata.strings("tokenizer.ggml.tokens")?.len(),
            context: keys.bounded("context_length", MAX_CONTEXT)?,
            rms_epsilon: metadata.f32(&keys.name("attention.layer_norm_rms_epsilon"))?,
            rope: self.rope(&keys, family, head)?,
            qkv_bias: family.qkv_bias,
            qk_norm: family.qk_norm,
            tied: self.tensors.get("output.weight").is_none(),
            windows: vec![keys.u32_or_none("attention.sliding_window")?.map(|window| window as usize); layers],
        };
        keys.check_widths(head)?;
        config.check(metadata.file())?;
        Ok(config)
    }

    fn rope(&self, keys: &Keys<'_>, family: &Family, head: usize) -> Result<RopeConfig, ModelError> {
        let base = keys.metadata.f32_or_none(&keys.name("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_BASE);
        let key = keys.name("rope.scaling.type");
        let scaling = match keys.metadata.string_or_none(&key)?.unwrap_or("none") {
            "none" if family.architecture == "llama" && self.tensors.get(ROPE_FACTORS).is_some() => {
                Scaling::Factors(self.tensors.vector(ROPE_FACTORS, head / 2)?)
            }
            "none" => Scaling::None,
            "linear" => Scaling::Linear(keys.metadata.f32(&keys.name("rope.scaling.factor"))?),
            other => {
                let what = format!("the rope scaling {other:?} ({key:?})");
                return Err(keys.metadata.unsupported(what, format!("none, linear, the tensor {ROPE_FACTORS:?}")));
            }
        };
        Ok(RopeConfig { base, pairing: family.pairing, scaling })
    }
}

/// The metadata under one architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata<'a>,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn u32_or_none(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.metadata.u32_or_none(&self.name(key))
    }

    fn bounded(&self, key: &str, most: u32) -> Result<usize, ModelError> {
        let key = self.name(key);
        match self.metadata.u32(&key)? {
            value if (1..=most).contains(&value) => Ok(value as usize),
            value => {
                let problem = format!("the metadata entry {key:?} is {value}, not from 1 to {most}");
                Err(self.metadata.inconsistent(problem))
            }
        }
    }

    fn bounded_or(&self, key: &str, most: u32, otherwise: usize) -> Result<usize, ModelError> {
        match self.u32_or_none(key)? {
            Some(_) => self.bounded(key, most),
            None => Ok(otherwise),
        }
    }

    /// Variants that share the architecture's name and would compute something else.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        if self.u32_or_none("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(self.metadata.unsupported("a mixture of experts", "dense models"));
        }
        if self.metadata.u32_or_none("split.count")?.is_some_and(|parts| parts > 1) {
            return Err(self.metadata.unsupported("a model split over several files", "models in one file"));
        }
        let own = self.metadata.keys().filter_map(|key| key.strip_prefix(self.architecture)?.strip_prefix('.'));
        match own.filter(|key| !KNOWN_KEYS.contains(key)).min() {
            None => Ok(()),
            Some(key) => {
                let what = format!("the metadata entry {:?}", self.name(key));
                Err(self.metadata.unsupported(what, KNOWN_KEYS.join(", ")))
            }
        }
    }

    fn check_widths(&self, head: usize) -> Result<(), ModelError> {
        if self.u32_or_none("rope.dimension_count")?.is_some_and(|rotated| rotated as usize != head) {
            let what = "rotary embedding of a part of each head";
            return Err(self.metadata.unsupported(what, "rotary embedding of whole heads"));
        }
        if self.u32_or_none("attention.value_length")?.is_some_and(|value| value as usize != head) {
            return Err(self.metadata.unsupported("values of another width than keys", "equal widths"));
        }
        Ok(())
    }
}
