//! What `--model` and `[models.NAME] source` may say.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use parlance_inference_engine::ScriptedOptions;

use super::{GGUF_MAGIC, hub::HubFile, weights_path};
use crate::failure::Failure;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// The scripted model with its settings: `scripted:ttft_ms=20,token_ms=5`.
    Scripted(String),
    /// A GGUF file by its path.
    Path(PathBuf),
    /// A fetched model by its name.
    Named(String),
    /// A fetched file of the Hugging Face hub.
    Hub(HubFile),
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if ScriptedOptions::names_scripted(text) {
            let checked = ScriptedOptions::parse(text).map_err(|error| {
                format!("is no scripted model: {error}. Write for example scripted:ttft_ms=20,token_ms=5")
            });
            return checked.map(|_| Self::Scripted(text.to_owned()));
        }
        if let Some(reference) = text.strip_prefix("hf:") {
            return reference.parse().map(Self::Hub);
        }
        if text.contains('/') || text.ends_with(".gguf") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.starts_with('.') || !text.chars().all(allowed) {
            return Err(
                "is no model. Give a fetched model's name, the path of a GGUF file, hf:OWNER/REPO/FILE.gguf or \
                        scripted:ttft_ms=20,token_ms=5"
                    .to_owned(),
            );
        }
        Ok(Self::Named(text.to_owned()))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scripted(reference) => f.write_str(reference),
            Self::Path(path) => path.display().fmt(f),
            Self::Named(name) => f.write_str(name),
            Self::Hub(file) => file.fmt(f),
        }
    }
}

/// A model that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Weights {
    /// No weights: the scripted model with its settings.
    Scripted(String),
    /// A GGUF file, and what its model is called.
    File {
        /// The model's own name: the file's without its ending.
        name: String,
        /// Where it lies.
        path: PathBuf,
    },
}

impl ModelSource {
    /// Finds the weights.
    ///
    /// # Errors
    ///
    /// Exit code 2 if there is no such file or it is not a GGUF, with the command that gets it.
    pub(crate) fn resolve(&self, model_dir: &Path) -> Result<Weights, Failure> {
        let (path, remedy) = match self {
            Self::Scripted(reference) => return Ok(Weights::Scripted(reference.clone())),
            Self::Path(path) => (path.clone(), "Give the path of a GGUF file".to_owned()),
            Self::Named(name) if name == super::DEFAULT_NAME => {
                (weights_path(model_dir, name), "Get it with `parlance model fetch`".to_owned())
            }
            Self::Named(name) => {
                let remedy = "See `parlance model list`, or get it with `parlance model fetch hf:OWNER/REPO/FILE.gguf`";
                (weights_path(model_dir, name), remedy.to_owned())
            }
            Self::Hub(file) => {
                (weights_path(model_dir, file.name()), format!("Get it with `parlance model fetch {file}`"))
            }
        };
        check_magic(&path)
            .map_err(|problem| Failure::usage(format!("model `{self}`: {} {problem}", path.display()), remedy))?;
        let name = path.file_stem().map_or_else(|| self.to_string(), |stem| stem.to_string_lossy().into_owned());
        Ok(Weights::File { name, path })
    }
}

/// A cheap look before anything is started; the loader checks the rest.
fn check_magic(path: &Path) -> Result<(), String> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| {
        if file.metadata()?.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        file.read_exact(&mut magic)
    });
    match read {
        Ok(()) if magic == *GGUF_MAGIC => Ok(()),
        Ok(()) => Err("is not a GGUF file".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("does not exist".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err("is not a GGUF file".to_owned()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_and_print_as_they_were_written() {
        let parse = |text: &str| text.parse::<ModelSource>();
        assert_eq!(parse("scripted:token_ms=5"), Ok(ModelSource::Scripted("scripted:token_ms=5".into())));
        assert_eq!(parse("scripted-twin"), Ok(ModelSource::Named("scripted-twin".into())));
        assert_eq!(parse("./a.gguf"), Ok(ModelSource::Path("./a.gguf".into())));
        assert_eq!(parse("a.gguf"), Ok(ModelSource::Path("a.gguf".into())));
        assert_eq!(parse("qwen2.5-0.5b"), Ok(ModelSource::Named("qwen2.5-0.5b".into())));
        for text in ["scripted", "scripted:token_ms=5", "dir/a.gguf", "smollm2-135m-instruct", "hf:a/b/c.gguf"] {
            assert_eq!(parse(text).map(|source| source.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "..", ".hidden", "a b", "hf:a/b", "hf:a/b/c.bin", "hf:../b/c.gguf", "a\nb", "scripted:x=1"] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn missing_and_wrong_files_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let named = ModelSource::Named(crate::models::DEFAULT_NAME.into());
        let missing = named.resolve(dir.path()).expect_err("nothing was fetched");
        assert!(missing.lines[0].contains("does not exist") && missing.lines[0].contains("parlance model fetch"));
        for bytes in [&b""[..], b"GG", b"GGML and more"] {
            let path = dir.path().join("bad.gguf");
            std::fs::write(&path, bytes).expect("written");
            let refused = ModelSource::Path(path).resolve(dir.path()).expect_err("not a GGUF");
            assert!(refused.lines[0].contains("is not a GGUF file"), "{:?}", refused.lines);
        }
        let refused = ModelSource::Path(dir.path().to_owned()).resolve(dir.path()).expect_err("a directory");
        assert!(refused.lines[0].contains("directory"), "{:?}", refused.lines);
    }
}
