//! From a directory to a model that is ready to embed.

use std::{path::Path, sync::Arc};

use parlance_inference_engine::{EmbeddingModel as _, ReplicaInfo};
use sha2::Digest as _;

use super::{
    BertCodec, BertModel, codec, config::BertConfig, forward::Workspace, pooling::SentenceFiles, weights,
    weights::BertWeights,
};
use crate::{
    DeviceChoice, LoadOptions, LoadProgress, LoadStage, ModelError,
    checkpoint::Checkpoint,
    gguf::GgmlType,
    hex,
    load::warm_up_tokens,
    precision::Numbers,
    tensors::{Naming, Tensors},
};

/// Positions of the warm-up's text: enough that every kind of kernel runs.
const WARM_UP_TOKENS: usize = 16;

/// A model that is ready to embed.
pub struct LoadedEmbedder {
    /// The model, for the engine's thread.
    pub model: BertModel,
    /// Its tokenizer, to share.
    pub codec: Arc<BertCodec>,
}

/// What the files say, borrowed from them: everything but the values of the weights.
pub(crate) struct Description<'a> {
    config: BertConfig,
    tensors: Tensors<'a>,
    sentence: SentenceFiles,
}

impl Description<'_> {
    /// What the weights take in memory, in bytes, and how many tokens the vocabulary has.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unsupported`] if the file cannot be computed in the numbers asked for.
    pub(crate) fn footprint(&self, options: &LoadOptions) -> Result<(u64, usize), ModelError> {
        let numbers = options.precision.of(&self.tensors)?;
        // No product takes the table of positions: it stays as it is.
        let positions = [self.config.hidden, self.config.positions];
        let bytes = |numbers: Numbers| numbers.bytes(GgmlType::F32, &positions);
        let kept = bytes(Numbers::F32).saturating_sub(bytes(numbers));
        let weights: u64 = self.tensors.all().map(|tensor| numbers.bytes(tensor.kind, &tensor.shape)).sum();
        Ok((weights + kept, self.config.vocabulary))
    }
}

/// Reads and checks everything but the weights and the tokenizer.
///
/// # Errors
///
/// [`ModelError`] if the files are damaged, contradictory or of a kind that this build cannot run.
pub(crate) fn describe(checkpoint: &Checkpoint) -> Result<Description<'_>, ModelError> {
    let mut config = BertConfig::read(checkpoint.config_file())?;
    let sentence = SentenceFiles::read(checkpoint.directory())?;
    config.context = sentence.context.map_or(config.positions, |context| context.min(config.positions));
    let tensors = checkpoint.tensors(Naming::Own, &weights::is_ignored)?;
    Ok(Description { config, tensors, sentence })
}

/// Loads the model in `source`, a directory of safetensors files as transformers and sentence-transformers write it, and embeds a first
/// text. Of `options`, lanes have no meaning here. `progress` may be called from any thread.
///
/// # Errors
///
/// [`ModelError`], which names the file, the place and the remedy. Nothing is kept.
pub fn load_embedder(
    source: &Path,
    options: &LoadOptions,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<LoadedEmbedder, ModelError> {
    let checkpoint = Checkpoint::open(source)?;
    let total_bytes = checkpoint.weight_bytes();
    let report = |stage, done_bytes| progress(LoadProgress { stage, done_bytes, total_bytes });
    report(LoadStage::Description, 0);
    let Description { mut config, tensors, sentence } = describe(&checkpoint)?;
    if options.context_tokens == 0 {
        return Err(ModelError::Capacity { problem: "a model needs at least one token".to_owned() });
    }
    config.context = config.context.min(options.context_tokens as usize);
    if !matches!(options.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
        let what = format!("the device {} for a model that embeds", options.device);
        return Err(ModelError::unsupported(source, what, "auto, cpu"));
    }
    let numbers = options.precision.of(&tensors)?;
    let on_weights = |done| report(LoadStage::Weights, done);
    // Digest, tokenizer and weights do not need each other.
    let (digest, (tokenizer, weights)) = rayon::join(
        || {
            let mut digest = checkpoint.digest();
            sentence.add_to(&mut digest);
            hex(&digest.finalize())
        },
        || {
            rayon::join(
                || codec::read(checkpoint.tokenizer_file(), config.vocabulary),
                || BertWeights::read(&tensors, &config, numbers, &on_weights),
            )
        },
    );
    let info = ReplicaInfo {
        name: options.name.clone(),
        digest,
        numerics: numbers.numerics().to_owned(),
        context_tokens: config.context as u32,
    };
    let codec = BertCodec::new(info, tokenizer?, config.vocabulary);
    let mut model = BertModel { pooling: sentence.pooling, weights: weights?, config, workspace: Workspace::default() };
    report(LoadStage::WarmUp, total_bytes);
    let tokens = warm_up_tokens(WARM_UP_TOKENS.min(model.config.context), model.config.vocabulary);
    model.embed(&[&tokens], &mut Vec::new()).map_err(ModelError::WarmUp)?;
    Ok(LoadedEmbedder { model, codec: Arc::new(codec) })
}
