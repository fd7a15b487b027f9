//! The tensors of a model by the names that GGUF files give them, wherever they come from.

use std::{collections::HashMap, path::Path};

use crate::{
    ModelError,
    gguf::{TensorInfo, dequantise},
};

/// The factors by which GGUF files of Llama 3 divide the frequencies of the rotary embedding.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// How a container names its tensors and orders their dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// As GGUF files do, the fastest dimension first.
    Gguf,
    /// As transformers does, the slowest dimension first.
    Transformers,
    /// As transformers does, and the tensors are asked for by those names.
    Own,
}

/// All tensors of a model.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    /// What errors name: the file, or the directory of several.
    source: &'a Path,
    naming: Naming,
    by_name: HashMap<&'a str, TensorInfo<'a>>,
}

impl<'a> Tensors<'a> {
    /// Collects tensors under the names that their container gives them.
    ///
    /// # Errors
    ///
    /// [`ModelError::Inconsistent`] if a name appears twice.
    pub(crate) fn new(
        source: &'a Path,
        naming: Naming,
        infos: impl IntoIterator<Item = TensorInfo<'a>>,
    ) -> Result<Self, ModelError> {
        let mut by_name = HashMap::new();
        for info in infos {
            let name = info.name;
            if by_name.insert(name, info).is_some() {
                return Err(ModelError::inconsistent(source, format!("the tensor {name:?} appears twice")));
            }
        }
        Ok(Self { source, naming, by_name })
    }

    /// What errors about these tensors name.
    pub(crate) fn source(&self) -> &'a Path {
        self.source
    }

    /// A tensor by its name, GGUF's but for [`Naming::Own`], if it is there.
    pub(crate) fn get(&self, name: &str) -> Option<&TensorInfo<'a>> {
        match self.naming {
            Naming::Gguf | Naming::Own => self.by_name.get(name),
            Naming::Transformers => self.by_name.get(&*transformers_name(name)),
        }
    }

    /// A tensor by its GGUF name, which must be there in this shape, the fastest dimension first.
    ///
    /// # Errors
    ///
    /// [`ModelError::Inconsistent`] with the container's own name of it.
    pub(crate) fn shaped(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo<'a>, ModelError> {
        let Some(tensor) = self.get(name) else {
            let name = self.shown_name(name);
            return Err(ModelError::inconsistent(self.source, format!("the tensor {name:?} is missing")));
        };
        if tensor.shape != shape {
            let (found, wanted) = (self.shown_shape(&tensor.shape), self.shown_shape(shape));
            let problem = format!("the tensor {:?} has the shape {found:?}, not {wanted:?}", tensor.name);
            return Err(ModelError::inconsistent(self.source, problem));
        }
        Ok(tensor)
    }

    /// The values of a tensor of one dimension that must be there.
    ///
    /// # Errors
    ///
    /// As [`Self::shaped`].
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.shaped(name, &[length])?;
        if !length.is_multiple_of(tensor.kind.block_values()) {
            let problem = format!("the tensor {:?} of {length} values is not whole blocks", tensor.name);
            return Err(ModelError::inconsistent(self.source, problem));
        }
        let mut values = vec![0.0; length];
        dequantise(tensor, 0, &mut values);
        Ok(values)
    }

    /// Whether they spend hardly more than 8 bits on a value.
    pub(crate) fn are_quantised(&self) -> bool {
        let values: usize = self.by_name.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let bytes: usize = self.by_name.values().map(|tensor| tensor.data.len()).sum();
        bytes.saturating_mul(8) <= values.saturating_mul(9)
    }

    /// Whether a matrix among them stands in the file in 4 bits.
    pub(crate) fn have_four_bits(&self) -> bool {
        self.all().any(|tensor| tensor.kind.has_four_bits() && tensor.shape.len() == 2)
    }

    /// All tensors, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &TensorInfo<'a>> {
        self.by_name.values()
    }

    /// The container's own names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.by_name.keys().copied()
    }

    fn shown_name(&self, name: &str) -> String {
        match self.naming {
            Naming::Gguf | Naming::Own => name.to_owned(),
            Naming::Transformers => transformers_name(name),
        }
    }

    fn shown_shape(&self, shape: &[usize]) -> Vec<usize> {
        match self.naming {
            Naming::Gguf => shape.to_vec(),
            Naming::Transformers | Naming::Own => shape.iter().rev().copied().collect(),
        }
    }
}

/// What transformers calls the tensor that GGUF files call `name`.
fn transformers_name(name: &str) -> String {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let (path, part) = match layer {
        Some((number, part)) => (format!("model.layers.{number}."), part),
        None => (String::new(), name),
    };
    let (stem, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let own = match stem {
        "token_embd" => "model.embed_tokens",
        "output_norm" => "model.norm",
        "output" => "lm_head",
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("{path}{own}.{kind}")
}
