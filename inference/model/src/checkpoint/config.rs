//! The shape of a model, read from `config.json`. Keys and defaults are those of transformers, in the spelling of its versions 4 and 5.

use super::json::{JsonFile, Object};
use crate::{
    ModelError,
    config::{DEFAULT_ROPE_BASE, LlamaConfig, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH},
    rope::{Pairing, RopeConfig, Scaling},
};

const SUPPORTED_ROPE: &str = "default, linear, llama3";
/// Mistral's, where the file does not say: the first model had it.
const DEFAULT_MISTRAL_WINDOW: usize = 4_096;
/// Qwen's layers before this one have no window, where the file does not say.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// Bounds far beyond any vocabulary: the largest in use have some 260,000 tokens.
pub(crate) const MAX_VOCABULARY: u32 = 4 << 20;

/// The families by what `model_type` calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    fn read(object: Object<'_>) -> Result<Self, ModelError> {
        Ok(match object.string("model_type")? {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            other => {
                return Err(object.unsupported(
                    format!("the model type {other:?}"),
                    "llama, mistral, qwen2, qwen3; bert for embeddings",
                ));
            }
        })
    }
}

/// Reads and checks the shape.
///
/// # Errors
///
/// [`ModelError`] if the file describes another family, a variant that is not built in, or nonsense.
pub(super) fn read(file: &JsonFile) -> Result<LlamaConfig, ModelError> {
    let object = file.object();
    let family = Family::read(object)?;
    refuse_variants(object)?;
    let hidden = object.bounded("hidden_size", MAX_WIDTH)?;
    let heads = object.bounded("num_attention_heads", MAX_WIDTH)?;
    let layers = object.bounded("num_hidden_layers", MAX_LAYERS)?;
    let config = LlamaConfig {
        layers,
        hidden,
        heads,
        kv_heads: kv_heads(object, family, heads)?,
        head: head(object, family, hidden / heads)?,
        feed_forward: object.bounded("intermediate_size", MAX_WIDTH)?,
        vocabulary: object.bounded("vocab_size", MAX_VOCABULARY)?,
        context: object.bounded("max_position_embeddings", MAX_CONTEXT)?,
        rms_epsilon: object.f32("rms_norm_eps")?,
        rope: rope(object)?,
        qkv_bias: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
        tied: object.bool("tie_word_embeddings")?,
        windows: windows(object, family, layers)?,
    };
    config.check(object.file())?;
    Ok(config)
}

/// Only Llama has as many as query heads where the file does not say.
fn kv_heads(object: Object<'_>, family: Family, heads: usize) -> Result<usize, ModelError> {
    match object.bounded_or_none("num_key_value_heads", MAX_WIDTH)? {
        None if family == Family::Llama => Ok(heads),
        None => Err(object.missing("num_key_value_heads")),
        Some(kv_heads) => Ok(kv_heads),
    }
}

/// Only Qwen3's width of a head does not follow from others where the file does not say.
fn head(object: Object<'_>, family: Family, follows: usize) -> Result<usize, ModelError> {
    match object.bounded_or_none("head_dim", MAX_WIDTH)? {
        None if family == Family::Qwen3 => Err(object.missing("head_dim")),
        None => Ok(follows),
        Some(head) => Ok(head),
    }
}

/// Variants that share the family's name and compute something else.
fn refuse_variants(object: Object<'_>) -> Result<(), ModelError> {
    let act = object.string_or_none("hidden_act")?.unwrap_or("silu");
    if act != "silu" {
        return Err(object.unsupported(format!("the activation {act:?} (\"hidden_act\")"), "silu"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if object.bool(key)? {
            return Err(object.unsupported(format!("the entry {}", object.shown(key)), "models without it"));
        }
    }
    if object.value("quantization_config").is_some() {
        let what = "the entry \"quantization_config\"";
        return Err(object.unsupported(what, "weights in F32, F16 or BF16; a quantised model as a GGUF file"));
    }
    match object.f32_or_none("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => {
            Err(object.unsupported("rotary embedding of a part of each head", "rotary embedding of whole heads"))
        }
        _ => Ok(()),
    }
}

/// transformers 5 writes base and scaling as `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.
fn rope(object: Object<'_>) -> Result<RopeConfig, ModelError> {
    let parameters = object.object_or_none("rope_parameters", "rope_parameters.")?;
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => object.object_or_none("rope_scaling", "rope_scaling.")?,
    };
    let base = match parameters.map(|parameters| parameters.f32_or_none("rope_theta")).transpose()?.flatten() {
        Some(base) => Some(base),
        None => object.f32_or_none("rope_theta")?,
    };
    Ok(RopeConfig {
        base: base.unwrap_or(DEFAULT_ROPE_BASE),
        pairing: Pairing::Halves,
        scaling: scaling.map_or(Ok(Scaling::None), read_scaling)?,
    })
}

fn read_scaling(object: Object<'_>) -> Result<Scaling, ModelError> {
    let kind = match object.string_or_none("rope_type")? {
        Some(kind) => Some(kind),
        None => object.string_or_none("type")?,
    };
    match kind {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear(object.f32("factor")?)),
        Some("llama3") => Ok(Scaling::Llama3 {
            factor: object.f32("factor")?,
            low_frequency_factor: object.f32("low_freq_factor")?,
            high_frequency_factor: object.f32("high_freq_factor")?,
            original_context: object.f32("original_max_position_embeddings")?,
        }),
        Some(other) => {
            let what = format!("the rope scaling {other:?} ({})", object.shown("rope_type"));
            Err(object.unsupported(what, SUPPORTED_ROPE))
        }
    }
}

/// The window of each layer. Mistral has the same everywhere; Qwen from some layer on, or where `layer_types` says.
fn windows(object: Object<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = object.u32_or_none("sliding_window")?.map(|window| window as usize);
    match family {
        Family::Llama if window.is_some() => {
            Err(object.unsupported("the entry \"sliding_window\" in a llama model", "mistral, qwen2, qwen3"))
        }
        Family::Llama => Ok(vec![None; layers]),
        // `null` says that there is none.
        Family::Mistral if object.has("sliding_window") => Ok(vec![window; layers]),
        Family::Mistral => Ok(vec![Some(DEFAULT_MISTRAL_WINDOW); layers]),
        Family::Qwen2 | Family::Qwen3 if object.bool("use_sliding_window")? => {
            let window = window.ok_or_else(|| object.missing("sliding_window"))?;
            let slides = sliding_layers(object, layers)?;
            Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
        }
        Family::Qwen2 | Family::Qwen3 => Ok(vec![None; layers]),
    }
}

fn sliding_layers(object: Object<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(types) = object.array_or_none("layer_types")? else {
        let full = object.u32_or_none("max_window_layers")?.map_or(DEFAULT_MAX_WINDOW_LAYERS, |full| full as usize);
        return Ok((0..layers).map(|layer| layer >= full).collect());
    };
    if types.len() != layers {
        let problem = format!("the entry \"layer_types\" has {} layers, not {layers}", types.len());
        return Err(object.inconsistent(problem));
    }
    let slides =
        types.iter().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(object
                .unsupported(format!("the layer type {kind} (\"layer_types\")"), "full_attention, sliding_attention")),
        });
    slides.collect()
}
