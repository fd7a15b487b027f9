//! Models on this machine: what a model's source can be, where its weights lie, and how they get there.

mod fetch;
mod hub;
mod packaged;
mod progress;
mod serve;
mod source;
mod wheel;

pub(crate) use fetch::fetch;
pub(crate) use packaged::{PACKAGED, Packaged};
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

/// Where the GGUF file of the model `name` lies.
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
        models.extend(local_model(entry?.path())?);
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

/// The model at `path`, if it is one: a GGUF file, or a directory with `config.json`.
fn local_model(path: PathBuf) -> std::io::Result<Option<LocalModel>> {
    let is_directory = path.join("config.json").is_file();
    let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
    let name = if is_directory { path.file_name() } else { path.file_stem() };
    let name = name.and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')).map(str::to_owned);
    let Some(name) = name.filter(|_| is_directory || is_gguf) else { return Ok(None) };
    let bytes = if is_directory {
        std::fs::read_dir(&path)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>()?
    } else {
        path.metadata()?.len()
    };
    Ok(Some(LocalModel { name, bytes, path }))
}
