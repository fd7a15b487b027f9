//! Texts to the tokens of a BERT model, by the WordPiece tokenizer that `tokenizer.json` describes.

use parlance_inference_engine::{EmbeddingCodec, EngineError, ReplicaInfo, TokenId};
use tokenizers::{ModelWrapper, Tokenizer};

use crate::{ModelError, checkpoint::JsonFile};

/// The tokenizer of a model.
pub struct BertCodec {
    info: ReplicaInfo,
    tokenizer: Tokenizer,
    vocabulary: usize,
}

impl BertCodec {
    pub(super) fn new(info: ReplicaInfo, tokenizer: Tokenizer, vocabulary: usize) -> Self {
        Self { info, tokenizer, vocabulary }
    }
}

impl EmbeddingCodec for BertCodec {
    fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Special tokens that are spelt out in the text count as such, as they do where these models were trained and are compared: a
    /// vector has no instructions to protect.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, EngineError> {
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding = encoding.map_err(|error| EngineError::Template(format!("the tokenizer failed: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// Reads the tokenizer of a model with `vocabulary` tokens, without the cutting and padding that the file may ask for: a text that is
/// too long is refused by its length, and batches are ragged.
///
/// # Errors
///
/// [`ModelError`] if it is damaged, of another kind, or larger than the model's vocabulary.
pub(super) fn read(file: &JsonFile, vocabulary: usize) -> Result<Tokenizer, ModelError> {
    let object = file.object();
    let refused = |problem: String| object.inconsistent(format!("the tokenizer cannot be used: {problem}"));
    let mut tokenizer = Tokenizer::from_bytes(file.file().bytes()).map_err(|error| refused(error.to_string()))?;
    if !matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_)) {
        return Err(object.unsupported("a tokenizer of another kind in an embedding model", "WordPiece"));
    }
    tokenizer.with_truncation(None).map_err(|error| refused(error.to_string()))?;
    tokenizer.with_padding(None);
    let beyond = tokenizer.get_vocab(true).into_values().max().filter(|token| *token as usize >= vocabulary);
    match beyond {
        None => Ok(tokenizer),
        Some(token) => {
            Err(refused(format!("it has the token {token}, but \"vocab_size\" in config.json is {vocabulary}")))
        }
    }
}
