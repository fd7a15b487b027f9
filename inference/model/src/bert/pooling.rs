//! From a text's hidden states to its vector, as the files of sentence-transformers beside the model say.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    ModelError,
    checkpoint::{JsonFile, MAX_DESCRIPTION_BYTES, is_plain, map},
    gguf::MappedFile,
};

/// What is made of a text's hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// Their mean.
    Mean,
    /// The first one.
    First,
}

/// How a text's hidden states become its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pooling {
    pool: Pool,
    /// Whether the vector is brought to length 1.
    normalise: bool,
}

/// What the model's makers say beside its weights, where they say it.
#[derive(Debug)]
pub(super) struct SentenceFiles {
    pub(super) pooling: Pooling,
    /// The most tokens of one text, if it is less than the model could read.
    pub(super) context: Option<usize>,
    files: Vec<MappedFile>,
}

/// One entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Pooling {
    /// Appends the vector of the hidden states `rows`, each of `width` values.
    pub(super) fn pool(self, rows: &[f32], width: usize, vectors: &mut Vec<f32>) {
        let begin = vectors.len();
        vectors.extend_from_slice(&rows[..width]);
        let vector = &mut vectors[begin..];
        if self.pool == Pool::Mean {
            for row in rows[width..].chunks_exact(width) {
                vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let count = (rows.len() / width) as f32;
            vector.iter_mut().for_each(|sum| *sum /= count);
        }
        if self.normalise {
            let squares: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
            // What sentence-transformers bounds it by, so that zeros stay zeros.
            let length = squares.sqrt().max(1e-12);
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
    }
}

impl SentenceFiles {
    /// Reads `modules.json` and what it names, and `sentence_bert_config.json`. Without them the mean is taken and brought to length 1.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for what is damaged, and for steps that are not built in.
    pub(super) fn read(directory: &Path) -> Result<Self, ModelError> {
        let mut found =
            Self { pooling: Pooling { pool: Pool::Mean, normalise: true }, context: None, files: Vec::new() };
        found.read_modules(directory)?;
        found.read_limits(directory)?;
        found.refuse_prompts(directory)?;
        Ok(found)
    }

    /// Adds what decides over vectors to the model's digest.
    pub(super) fn add_to(&self, digest: &mut Sha256) {
        for file in &self.files {
            digest.update(format!("{}:", file.bytes().len()));
            digest.update(file.bytes());
        }
    }

    fn read_modules(&mut self, directory: &Path) -> Result<(), ModelError> {
        if !directory.join("modules.json").exists() {
            return Ok(());
        }
        let file = map(directory, "modules.json")?;
        let modules: Vec<Module> = serde_json::from_slice(file.bytes())
            .map_err(|source| ModelError::Json { file: file.path().to_path_buf(), source })?;
        self.pooling.normalise = false;
        for Module { path, kind } in modules {
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if path.is_empty() => {}
                "Pooling" if is_plain(&path) => self.read_pooling(&directory.join(path))?,
                "Normalize" => self.pooling.normalise = true,
                _ => {
                    let what = format!("the step {kind:?} at {path:?}");
                    return Err(ModelError::unsupported(file.path(), what, "Transformer, Pooling, Normalize"));
                }
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn read_pooling(&mut self, directory: &Path) -> Result<(), ModelError> {
        let file = JsonFile::read(map(directory, "config.json")?, MAX_DESCRIPTION_BYTES)?;
        let object = file.object();
        let named = object.string_or_none("pooling_mode")?;
        let mut modes: Vec<&str> = named.into_iter().collect();
        for key in file.entries().keys() {
            if let Some(mode) = key.strip_prefix("pooling_mode_")
                && object.bool(key)?
            {
                modes.push(mode);
            }
        }
        self.pooling.pool = match modes.as_slice() {
            ["mean_tokens" | "mean"] => Pool::Mean,
            ["cls_token" | "cls"] => Pool::First,
            other => {
                return Err(object.unsupported(format!("the pooling {other:?}"), "one of mean_tokens, cls_token"));
            }
        };
        self.files.push(file.into_file());
        Ok(())
    }

    fn read_limits(&mut self, directory: &Path) -> Result<(), ModelError> {
        let name = "sentence_bert_config.json";
        if !directory.join(name).exists() {
            return Ok(());
        }
        let file = JsonFile::read(map(directory, name)?, MAX_DESCRIPTION_BYTES)?;
        self.context = file.object().bounded_or_none("max_seq_length", u32::MAX)?;
        if file.object().bool("do_lower_case")? {
            let what = "the entry \"do_lower_case\"";
            return Err(file.object().unsupported(what, "tokenizers that lower the case themselves"));
        }
        Ok(())
    }

    /// A prompt before every text would have to be the caller's own.
    fn refuse_prompts(&self, directory: &Path) -> Result<(), ModelError> {
        let name = "config_sentence_transformers.json";
        if !directory.join(name).exists() {
            return Ok(());
        }
        let file = JsonFile::read(map(directory, name)?, MAX_DESCRIPTION_BYTES)?;
        match file.object().string_or_none("default_prompt_name")? {
            None => Ok(()),
            Some(prompt) => {
                let what = format!("the prompt {prompt:?} before every text (\"default_prompt_name\")");
                Err(file.object().unsupported(what, "models without one"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_become_one_vector() {
        let rows = [3.0, 0.0, 0.0, 1.0, 3.0, -4.0];
        for (pool, normalise, expected) in [
            (Pool::Mean, false, [2.0, -1.0]),
            (Pool::First, false, [3.0, 0.0]),
            (Pool::First, true, [1.0, 0.0]),
            (Pool::Mean, true, [2.0 / 5.0_f32.sqrt(), -1.0 / 5.0_f32.sqrt()]),
        ] {
            let mut vectors = vec![9.0];
            Pooling { pool, normalise }.pool(&rows, 2, &mut vectors);
            assert_eq!(vectors.len(), 3);
            for (found, expected) in vectors[1..].iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{pool:?} {normalise}: {vectors:?}");
            }
        }
        let mut vectors = Vec::new();
        Pooling { pool: Pool::Mean, normalise: true }.pool(&[0.0, 0.0], 2, &mut vectors);
        assert_eq!(vectors, [0.0, 0.0]);
    }
}
