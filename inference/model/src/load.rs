//! From a file to a model that is ready to answer.

use std::{path::Path, sync::Arc, time::Instant};

use burn::tensor::DType;
use parlance_inference_engine::{
    ChatMessage, ChatRole, EngineError, LaneInput, ModelKind, ReplicaInfo, TextCodec as _, TokenId, TokenModel,
};

use crate::{
    ChatCodec, DeviceChoice, LlamaModel, Model, ModelError, Precision, bert,
    blocks::{BLOCK_TOKENS, Capacity},
    device::Compute,
    kv::{KvCache, bytes_per_token},
    precision::Numbers,
    source::{Description, Source},
    tensor::{TensorModel, TensorOptions},
    weights::{Weights, pack_rows},
};

const DEFAULT_LANES: usize = 16;
const DEFAULT_CONTEXT_TOKENS: u32 = 2_048;
/// Positions of the warm-up's prompt: as many as the longest step of an engine has by default, so that buffers have their size.
const WARM_UP_TOKENS: usize = 256;
/// What a first user says, as far as tokenizer and template can tell: they find out about kinds of characters when they meet them.
const WARM_UP_TEXT: &str = "Hello! I'd like a story of 1,024 words (in English, 90 % true): \"Once upon a time…\"\n\n\tÄrger; naïve façade @ www.example.org?";

/// What a model takes beside weights and cache: buffers of a step, and ...
const REST_BYTES: u64 = 24 << 20;
/// ... for each token its text, its merges and where they are looked up.
const BYTES_PER_TOKEN_OF_VOCABULARY: u64 = 512;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The name that the model is served under.
    pub name: String,
    /// How many sequences can run at once.
    pub lanes: usize,
    /// The most tokens of one sequence; cut to what the model was trained for.
    pub context_tokens: u32,
    /// The most tokens of all sequences together, running and kept for later ones, shared beginnings counted once; at least
    /// `context_tokens`, by default as much for every lane. A token takes, once it is written, `2 · layers · kv_heads · head · 4`
    /// bytes: 45 KiB for SmolLM2-135M.
    pub cache_tokens: Option<usize>,
    /// What computes.
    pub device: DeviceChoice,
    /// In which numbers.
    pub precision: Precision,
}

impl LoadOptions {
    /// 16 lanes of 2,048 tokens, on the device and in the numbers that suit machine and file.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            lanes: DEFAULT_LANES,
            context_tokens: DEFAULT_CONTEXT_TOKENS,
            cache_tokens: None,
            device: DeviceChoice::default(),
            precision: Precision::default(),
        }
    }
}

impl LoadOptions {
    /// How large the cache of a model is that was trained for so many tokens.
    fn capacity(&self, trained: usize) -> Capacity {
        let context = trained.min(self.context_tokens as usize);
        let all_lanes = self.lanes.saturating_mul(context.next_multiple_of(BLOCK_TOKENS));
        Capacity { lanes: self.lanes, context, tokens: self.cache_tokens.unwrap_or(all_lanes) }
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
    pub model: Model,
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
    let compute = options.device.open(options.precision)?;
    let description = source.describe()?;
    if options.lanes == 0 || options.context_tokens == 0 {
        return Err(ModelError::Capacity { problem: "a model needs at least one lane and one token".to_owned() });
    }
    let on_weights = |done| report(LoadStage::Weights, done);
    // Digest, tokenizer and weights do not need each other.
    let (digest, (text, built)) = rayon::join(
        || source.digest(),
        || rayon::join(|| description.text(), || build(&description, options, &compute, &on_weights)),
    );
    let (tokenizer, template) = text?;
    let (mut model, numerics) = built?;
    report(LoadStage::WarmUp, total_bytes);
    match model {
        Model::Kernels(_) => warm_up(&mut model)?,
        Model::Tensors(_) => options.device.guarded(|| warm_up(&mut model))??,
    }
    let info =
        ReplicaInfo { name: options.name.clone(), digest, numerics, context_tokens: model.context_tokens() as u32 };
    let codec = ChatCodec::new(info, tokenizer, template);
    if let Err(error) = codec.encode_chat(&[ChatMessage { role: ChatRole::User, content: WARM_UP_TEXT }]) {
        tracing::warn!(%error, "the chat template does not take a single message");
    }
    Ok(LoadedModel { model, codec: Arc::new(codec) })
}

/// Reads the weights into a model for what computes, and names its numerics class.
fn build(
    description: &Description<'_>,
    options: &LoadOptions,
    compute: &Compute,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Model, String), ModelError> {
    let (config, tensors) = (description.config.clone(), &description.tensors);
    let capacity = options.capacity(config.context);
    match compute {
        Compute::Kernels => {
            let numbers = options.precision.of(tensors)?;
            let cache = KvCache::new(&config, capacity)?;
            let weights = Weights::read(tensors, &config, &|rows: &_| pack_rows(rows, numbers), progress)?;
            let model = LlamaModel::new(config, weights, cache, capacity.context);
            Ok((Model::Kernels(Box::new(model)), numbers.numerics().to_owned()))
        }
        Compute::Tensors { kind, device, dtype } => {
            let numerics = format!("tensor-{kind}-{}-2", DType::from(*dtype).name());
            let tensor_options = TensorOptions { device: device.clone(), dtype: *dtype, capacity };
            let read = || TensorModel::read(config, tensors, tensor_options, progress);
            Ok((Model::Tensors(Box::new(options.device.guarded(read)??)), numerics))
        }
    }
}

/// What a model takes in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Its weights, as they are computed with.
    pub weights: u64,
    /// Keys and values, once all blocks are full.
    pub cache: u64,
    /// Tokenizer, template and working memory, roughly.
    pub rest: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.rest)
    }
}

/// Reads the description of the model in `source`, a GGUF file or a directory, and none of its weights: takes little time, finds
/// files that are cut short, damaged or of a kind that this build cannot run, and says what [`load`] would take.
///
/// # Errors
///
/// [`ModelError`], as [`load`] or [`load_embedder`](crate::load_embedder) would give it.
pub fn inspect(source: &Path, options: &LoadOptions) -> Result<Footprint, ModelError> {
    let source = Source::open(source)?;
    if let Source::Directory(checkpoint) = &source
        && checkpoint.embeds()
    {
        let (weights, vocabulary) = bert::describe(checkpoint)?.footprint(options)?;
        return Ok(Footprint { weights, cache: 0, rest: rest_bytes(vocabulary) });
    }
    let description = source.describe()?;
    let numbers = match options.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => options.precision.of(&description.tensors)?,
        // Its memory is its own, and how much of this machine's its driver takes nobody says.
        _ => Numbers::F32,
    };
    let blocks = options.capacity(description.config.context).blocks().map_or(u64::MAX, |blocks| blocks as u64);
    let block = (BLOCK_TOKENS * bytes_per_token(&description.config)) as u64;
    Ok(Footprint {
        weights: description.tensors.all().map(|tensor| numbers.bytes(tensor.kind, &tensor.shape)).sum(),
        cache: blocks.saturating_mul(block),
        rest: rest_bytes(description.config.vocabulary),
    })
}

fn rest_bytes(vocabulary: usize) -> u64 {
    REST_BYTES + vocabulary as u64 * BYTES_PER_TOKEN_OF_VOCABULARY
}

/// What the model in `source` is for. Reads its description alone.
///
/// # Errors
///
/// [`ModelError`] if there are no files of a model.
pub fn kind(source: &Path) -> Result<ModelKind, ModelError> {
    Ok(match Source::open(source)? {
        Source::Directory(checkpoint) if checkpoint.embeds() => ModelKind::Embedding,
        _ => ModelKind::Chat,
    })
}

/// A text of so many tokens for a model's first steps.
pub(crate) fn warm_up_tokens(count: usize, vocabulary: usize) -> Vec<TokenId> {
    (0..count).map(|at| (at % vocabulary) as TokenId).collect()
}

/// Runs every shape where there are shapes, and prefills and decodes once, so that the first request finds all in place.
fn warm_up(model: &mut Model) -> Result<(), ModelError> {
    if let Model::Tensors(tensors) = model {
        let begun = Instant::now();
        let shapes = tensors.warm_up().map_err(ModelError::WarmUp)?;
        tracing::info!(shapes, seconds = begun.elapsed().as_secs_f64(), "every shape of a step is warm");
    }
    let tokens = warm_up_tokens(WARM_UP_TOKENS.min(model.context_tokens()), model.vocabulary());
    let mut logits = Vec::new();
    let (prompt, last) = tokens.split_at(tokens.len() - 1);
    for (start, tokens) in [(0, prompt), (prompt.len(), last)] {
        if !tokens.is_empty() {
            let input = LaneInput { lane: 0, start, tokens, logits: 1 };
            model.step(&[input], &mut logits).map_err(ModelError::WarmUp)?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                let why = "a logit is not a finite number".to_owned();
                return Err(ModelError::WarmUp(EngineError::ModelFailed(why)));
            }
        }
    }
    Ok(())
}
