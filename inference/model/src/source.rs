//! A model's files, whatever their kind: a GGUF file, or a directory as transformers writes it.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{
    ModelError,
    checkpoint::Checkpoint,
    codec,
    config::LlamaConfig,
    gguf::{Gguf, MappedFile, Metadata},
    hex,
    template::ChatTemplate,
    tensors::{Naming, Tensors},
    tokenizer::Tokenizer,
};

/// The files of a model, mapped.
#[derive(Debug)]
pub(crate) enum Source {
    Gguf(MappedFile),
    Directory(Box<Checkpoint>),
}

/// What the files say, borrowed from them: everything but the values of the weights.
#[derive(Debug)]
pub(crate) struct Description<'a> {
    pub(crate) config: LlamaConfig,
    pub(crate) tensors: Tensors<'a>,
    text: TextSource<'a>,
}

/// Where the tokenizer and the chat template are described.
#[derive(Debug)]
enum TextSource<'a> {
    Gguf(Metadata<'a>),
    Directory(&'a Checkpoint),
}

impl Source {
    /// Maps the file or the directory's files.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if there is nothing of either kind.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Ok(Self::Directory(Box::new(Checkpoint::open(path)?)));
        }
        Ok(Self::Gguf(MappedFile::open(path)?))
    }

    /// The bytes of the files of weights.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Gguf(file) => file.bytes().len() as u64,
            Self::Directory(checkpoint) => checkpoint.weight_bytes(),
        }
    }

    /// SHA-256 in hexadecimal of all that decides what the model says.
    pub(crate) fn digest(&self) -> String {
        hex(&match self {
            Self::Gguf(file) => Sha256::digest(file.bytes()),
            Self::Directory(checkpoint) => checkpoint.digest().finalize(),
        })
    }

    /// Reads and checks everything but the weights, the tokenizer and the template.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the files are damaged, contradictory or of a kind that this build cannot run.
    pub(crate) fn describe(&self) -> Result<Description<'_>, ModelError> {
        match self {
            Self::Gguf(file) => {
                let gguf = Gguf::parse(file.path(), file.bytes())?;
                let config = gguf.config()?;
                Ok(Description { config, tensors: gguf.tensors, text: TextSource::Gguf(gguf.metadata) })
            }
            Self::Directory(checkpoint) => {
                let config = checkpoint.config()?;
                let tensors = checkpoint.tensors(Naming::Transformers, &|name| is_ignored(name, &config))?;
                Ok(Description { config, tensors, text: TextSource::Directory(checkpoint) })
            }
        }
    }
}

/// What transformers does not read either: a map to logits beside an embedding that serves as one, and the frequencies of the rotary
/// embedding, which old files keep.
fn is_ignored(name: &str, config: &LlamaConfig) -> bool {
    (config.tied && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq")
}

impl Description<'_> {
    /// Builds the tokenizer and the chat template, and tries them on one message.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if either is missing, of an unsupported kind or unusable.
    pub(crate) fn text(&self) -> Result<(Tokenizer, ChatTemplate), ModelError> {
        let (file, tokenizer, template) = match &self.text {
            TextSource::Gguf(metadata) => {
                let tokenizer = Tokenizer::from_metadata(metadata)?;
                (metadata.file(), tokenizer, metadata.string("tokenizer.chat_template")?)
            }
            TextSource::Directory(checkpoint) => {
                let tokenizer = checkpoint.tokenizer(self.config.vocabulary)?;
                (checkpoint.directory(), tokenizer, checkpoint.template()?)
            }
        };
        let template = codec::template(file, template, &tokenizer)?;
        Ok((tokenizer, template))
    }
}
