//! `parlance model`: the weights on this machine, and the models that a node serves.

mod served;

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use self::served::{Load, Unload};
use crate::{
    client::Remote,
    config::{Config, Overrides},
    failure::Failure,
    models::{self, ModelSource},
    output,
};

/// Get and list models, and have a node load and unload them
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Download a model's weights, verify them and keep them in the model directory
    Fetch {
        /// smollm2-135m-instruct, or a GGUF file of the Hugging Face hub as hf:OWNER/REPO/FILE.gguf
        #[arg(default_value = models::DEFAULT_NAME)]
        name: String,
        /// The SHA-256 that the weights must have (for hf: references)
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// List the models in the model directory, or with --server those of a node
    List {
        #[command(flatten)]
        place: Place,
        /// The node whose models are listed instead
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// A file whose first key is used
        #[arg(long, value_name = "FILE", env = "PARLANCE_API_KEY_FILE")]
        api_key_file: Option<PathBuf>,
        /// A certificate authority to trust besides the machine's own (PEM)
        #[arg(long, value_name = "FILE", env = "PARLANCE_CA_CERT")]
        ca_cert: Option<PathBuf>,
    },
    Load(Load),
    Unload(Unload),
}

/// Which model directory, and how to tell about it.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "PARLANCE_CONFIG")]
    config: Option<PathBuf>,
    /// Where weights are kept [default: usually ~/.local/share/parlance/models]
    #[arg(long, value_name = "DIR")]
    model_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Place {
    fn config(&self) -> Result<Config, Failure> {
        let overrides =
            Overrides { config: self.config.clone(), model_dir: self.model_dir.clone(), ..Overrides::default() };
        Config::load(&overrides)
    }
}

impl Model {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Fetch { name, sha256, place } => fetch(&name, sha256.as_deref(), &place),
            Self::List { place, server: None, .. } => list(&place),
            Self::List { place, server: Some(server), api_key_file, ca_cert } => {
                served::list(&Remote::at(server, api_key_file, ca_cert), place.json)
            }
            Self::Load(load) => load.run(),
            Self::Unload(unload) => unload.run(),
        }
    }
}

fn fetch(name: &str, sha256: Option<&str>, place: &Place) -> Result<(), Failure> {
    let name = if name == crate::config::DEFAULT_MODEL { models::DEFAULT_NAME } else { name };
    let source: ModelSource = name.parse().map_err(|problem| {
        Failure::usage(format!("`{name}` {problem}"), format!("The default model is {}", models::DEFAULT_NAME))
    })?;
    let fetched = models::fetch(&source, &place.config()?.model_dir, sha256)?;
    let path = fetched.path.display();
    if place.json {
        output::json(&json!({
            "name": fetched.name, "path": fetched.path, "sha256": fetched.sha256, "already": fetched.already,
        }));
    } else if fetched.already {
        output::line(format!("{} is already there and verified: {path}", fetched.name));
    } else {
        output::line(format!("{} is ready: {path} (SHA-256 {})", fetched.name, fetched.sha256));
    }
    Ok(())
}

fn list(place: &Place) -> Result<(), Failure> {
    let dir = place.config()?.model_dir;
    let models = models::list(&dir).map_err(|error| {
        Failure::failed(format!("cannot list {}: {error}", dir.display()), "Check the directory, or pass --model-dir")
    })?;
    if place.json {
        output::json(&models);
    } else if models.is_empty() {
        output::note(format!("No models in {}. Get the default one with `parlance model fetch`.", dir.display()));
    } else {
        let row = |model: &models::LocalModel| {
            vec![model.name.clone(), models::mebibytes(model.bytes), model.path.display().to_string()]
        };
        output::table(&["NAME", "SIZE", "PATH"], &models.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}
