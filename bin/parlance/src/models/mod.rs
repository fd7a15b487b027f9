//! Models on this machine: what a model's source can be, where its weights lie, and how they get there.

mod fetch;
mod hub;
mod progress;
mod serve;
mod source;
mod wheel;

pub(crate) use fetch::fetch;
pub(crate) use progress::mebibytes;
pub(crate) use serve::{sources, specs};
pub(crate) use source::{ModelSource, Weights};

use std::path::{Path, PathBuf};

/// The model that a node serves where nobody chose one, and that `parlance model fetch` gets.
pub(crate) const DEFAULT_NAME: &str = "smollm2-135m-instruct";

/// The name that the scripted model is served under.
pub(crate) const SCRIPTED_NAME: &str = "scripted";

/// The first bytes of every GGUF file.
pub(crate) const GGUF_MAGIC: &[u8; 4] = b"GGUF";

/// Where the weights of the model `name` lie.
pub(crate) fn weights_path(model_dir: &Path, name: &str) -> PathBuf {
    model_dir.join(format!("{name}.gguf"))
}

/// One model in the model directory.
#[derive(Debug, serde::Serialize)]
pub(crate) struct LocalModel {
    /// What `--model` calls it.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// Where it lies.
    pub(crate) path: PathBuf,
}

/// The models in `model_dir`, by name. A directory that does not exist has none.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn list(model_dir: &Path) -> std::io::Result<Vec<LocalModel>> {
    let entries = match std::fs::read_dir(model_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut models = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| !stem.starts_with('.'));
        if let (Some(name), Some("gguf")) = (name, path.extension().and_then(|extension| extension.to_str())) {
            models.push(LocalModel { name: name.to_owned(), bytes: path.metadata()?.len(), path });
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}
