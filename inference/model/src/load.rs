//! From a file to a model that is ready to answer.

use std::{path::Path, sync::Arc};

use parlance_inference_engine::{EngineError, LaneInput, ReplicaInfo, TokenModel};

use crate::{
    ChatCodec, DeviceChoice, LlamaModel, ModelError, Precision, kv::KvCache, source::Source, weights::Weights,
};

const DEFAULT_LANES: usize = 16;
const DEFAULT_CONTEXT_TOKENS: u32 = 2_048;
/// Positions of the warm-up's prompt: enough that every kind of kernel runs.
const WARM_UP_TOKENS: usize = 16;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The name that the model is served under.
    pub name: String,
    /// How many sequences can be resident at once.
    pub lanes: usize,
    /// The most tokens of one lane; cut to what the model was trained for. Every token of every lane takes, once it is written,
    /// `2 · layers · kv_heads · head · 4` bytes: 45 KiB for SmolLM2-135M.
    pub context_tokens: u32,
    /// What computes.
    pub device: DeviceChoice,
    /// In which numbers.
    pub precision: Precision,
}

impl LoadOptions {
    /// 16 lanes of 2,048 tokens on the CPU, in the numbers that suit the file.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            lanes: DEFAULT_LANES,
            context_tokens: DEFAULT_CONTEXT_TOKENS,
            device: DeviceChoice::default(),
            precision: Precision::default(),
        }
    }
}

/// What [`load`] is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStage {
    /// Reading header, metadata and tokenizer.
    Description,
    /// Reading the weights.
    Weights,
    /// Running the first steps.
    WarmUp,
}

/// How far [`load`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// The stage.
    pub stage: LoadStage,
    /// Bytes of weights that are read.
    pub done_bytes: u64,
    /// Bytes of the whole file.
    pub total_bytes: u64,
}

/// A model that is ready to answer.
pub struct LoadedModel {
    /// The model, for the engine's thread.
    pub model: LlamaModel,
    /// Its tokenizer and chat template, to share.
    pub codec: Arc<ChatCodec>,
}

/// Loads the model in `source`, a GGUF file or a directory of safetensors files as transformers writes it, and runs its first steps.
/// `progress` may be called from any thread.
///
/// # Errors
///
/// [`ModelError`], which names the file, the place and the remedy. Nothing is kept.
pub fn load(
    source: &Path,
    options: &LoadOptions,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<LoadedModel, ModelError> {
    let source = Source::open(source)?;
    let total_bytes = source.bytes();
    let report = |stage, done_bytes| progress(LoadProgress { stage, done_bytes, total_bytes });
    report(LoadStage::Description, 0);
    let description = source.describe()?;
    let config = description.config.clone();
    if options.lanes == 0 || options.context_tokens == 0 {
        return Err(ModelError::Capacity { problem: "a model needs at least one lane and one token".to_owned() });
    }
    let numbers = options.precision.of(&description.tensors);
    let context = config.context.min(options.context_tokens as usize);
    let cache = KvCache::new(&config, options.lanes, context)?;
    let on_weights = |done| report(LoadStage::Weights, done);
    // Digest, tokenizer and weights do not need each other.
    let (digest, (text, weights)) = rayon::join(
        || source.digest(),
        || rayon::join(|| description.text(), || Weights::read(&description.tensors, &config, numbers, &on_weights)),
    );
    let (tokenizer, template) = text?;
    let mut model = LlamaModel::new(config, weights?, cache, options.lanes, context);
    report(LoadStage::WarmUp, total_bytes);
    warm_up(&mut model)?;
    let info = ReplicaInfo {
        name: options.name.clone(),
        digest,
        numerics: numbers.numerics().to_owned(),
        context_tokens: context as u32,
    };
    Ok(LoadedModel { model, codec: Arc::new(ChatCodec::new(info, tokenizer, template)) })
}

/// Reads the description of the model in `source`, a GGUF file or a directory, and none of its weights: takes little time, and finds
/// files that are cut short, damaged or of a kind that this build cannot run.
///
/// # Errors
///
/// [`ModelError`], as [`load`] would give it.
pub fn inspect(source: &Path) -> Result<(), ModelError> {
    Source::open(source)?.describe().map(drop)
}

/// Prefills and decodes once, so that the first request finds threads and memory in place.
fn warm_up(model: &mut LlamaModel) -> Result<(), ModelError> {
    let count = WARM_UP_TOKENS.min(model.context_tokens());
    let tokens: Vec<_> = (0..count).map(|at| (at % model.vocabulary()) as u32).collect();
    let mut logits = Vec::new();
    let (prompt, last) = tokens.split_at(count - 1);
    for (start, tokens) in [(0, prompt), (prompt.len(), last)] {
        if !tokens.is_empty() {
            let input = LaneInput { lane: 0, start, tokens, want_logits: true };
            model.step(&[input], &mut logits).map_err(ModelError::WarmUp)?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                let why = "a logit is not a finite number".to_owned();
                return Err(ModelError::WarmUp(EngineError::ModelFailed(why)));
            }
        }
    }
    Ok(())
}
