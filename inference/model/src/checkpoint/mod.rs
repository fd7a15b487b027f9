//! Models as directories: `config.json`, weights in safetensors files, `tokenizer.json`, `tokenizer_config.json` and perhaps
//! `chat_template.jinja`, the layout that transformers' `save_pretrained` writes.
//!
//! As with GGUF files, nothing that the files say is trusted: the container's own checks are those of the crate `safetensors`, names
//! of further files must stay in the directory, and JSON has a limit on its length.

mod config;
mod json;
mod shards;
mod text;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::shards::Shard;
pub(crate) use self::{config::MAX_VOCABULARY, json::JsonFile, shards::is_plain};
use crate::{
    ModelError,
    config::LlamaConfig,
    gguf::MappedFile,
    tensors::{Naming, Tensors},
};

/// The most bytes of a description; those in use have some kilobytes.
pub(crate) const MAX_DESCRIPTION_BYTES: usize = 16 << 20;
/// The most bytes of a tokenizer; the largest in use have some 35 MB.
const MAX_TOKENIZER_BYTES: usize = 256 << 20;

/// The files of one model, mapped, their headers read. They must not be changed while they are mapped.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    directory: PathBuf,
    config: JsonFile,
    tokenizer: JsonFile,
    tokenizer_config: JsonFile,
    generation_config: Option<JsonFile>,
    /// `chat_template.jinja`, which counts before the template in `tokenizer_config.json`.
    template: Option<MappedFile>,
    shards: Vec<Shard>,
}

impl Checkpoint {
    /// Finds and maps the files in `directory`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if one is missing, damaged or no file of this kind.
    pub(crate) fn open(directory: &Path) -> Result<Self, ModelError> {
        let json = |name, most| JsonFile::read(map(directory, name)?, most);
        Ok(Self {
            directory: directory.to_path_buf(),
            config: json("config.json", MAX_DESCRIPTION_BYTES)?,
            tokenizer: json("tokenizer.json", MAX_TOKENIZER_BYTES)?,
            tokenizer_config: json("tokenizer_config.json", MAX_DESCRIPTION_BYTES)?,
            generation_config: match directory.join("generation_config.json").exists() {
                true => Some(json("generation_config.json", MAX_DESCRIPTION_BYTES)?),
                false => None,
            },
            template: match directory.join("chat_template.jinja").exists() {
                true => Some(map(directory, "chat_template.jinja")?),
                false => None,
            },
            shards: shards::open(directory)?,
        })
    }

    /// The directory, for errors that are about all of it.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// `config.json`.
    pub(crate) fn config_file(&self) -> &JsonFile {
        &self.config
    }

    /// `tokenizer.json`.
    pub(crate) fn tokenizer_file(&self) -> &JsonFile {
        &self.tokenizer
    }

    /// Whether the model embeds texts, as against answering messages.
    pub(crate) fn embeds(&self) -> bool {
        self.config.object().value("model_type").and_then(|kind| kind.as_str()) == Some("bert")
    }

    /// The shape of the model, if it answers messages.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if it is of another family, a variant that is not built in, or nonsense.
    pub(crate) fn config(&self) -> Result<LlamaConfig, ModelError> {
        config::read(&self.config)
    }

    /// The tensors of all files together, but those that `is_ignored` knows.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if one appears twice or has a type that is not read.
    pub(crate) fn tensors(&self, naming: Naming, is_ignored: &dyn Fn(&str) -> bool) -> Result<Tensors<'_>, ModelError> {
        let infos = self.shards.iter().flat_map(|shard| shard.infos(is_ignored)).collect::<Result<Vec<_>, _>>()?;
        Tensors::new(&self.directory, naming, infos)
    }

    /// The length of all files of weights in bytes.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.file().bytes().len() as u64).sum()
    }

    /// A digest of all files that decide what the model says, each with its name and length.
    pub(crate) fn digest(&self) -> Sha256 {
        let described = [&self.config, &self.tokenizer, &self.tokenizer_config];
        let described = described.into_iter().chain(&self.generation_config).map(JsonFile::file);
        let files = described.chain(&self.template).chain(self.shards.iter().map(Shard::file));
        let mut digest = Sha256::new();
        for file in files {
            let name = file.path().file_name().unwrap_or_default().as_encoded_bytes();
            digest.update(format!("{}:", name.len()));
            digest.update(name);
            digest.update(format!("{}:", file.bytes().len()));
            digest.update(file.bytes());
        }
        digest
    }
}

/// Maps one file of the directory, which must be there.
pub(crate) fn map(directory: &Path, name: &str) -> Result<MappedFile, ModelError> {
    let path = directory.join(name);
    if !path.is_file() {
        return Err(ModelError::inconsistent(directory, format!("the file {name:?} is missing")));
    }
    MappedFile::open(&path)
}
