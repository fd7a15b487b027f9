//! The configuration: one TOML file, over it `PARLANCE_SECTION__KEY` in the environment, over that the command line.
//!
//! Everything is checked before anything is started, and everything that is wrong is told at once: where it was set, what is wrong
//! with it and what to do.

mod check;
mod cluster;
mod layers;
mod schema;
mod show;
mod stores;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use parlance_actors_ingress::IngressLimits;
use parlance_actors_runtime::{Limits, ModelMemory};
use parlance_inference_engine::Speculation;
use parlance_inference_model::{DeviceChoice, Precision};

pub(crate) use self::cluster::{ClusterConfig, DEFAULT_CLUSTER, Seed};
use self::layers::Layers;
pub(crate) use self::stores::{
    CacheConfig, KafkaSettings, LogConfig, PasswordFile, RecordsConfig, Sasl, ScyllaSettings,
};
use crate::{
    failure::{Exit, Failure},
    models::ModelSource,
};

/// The name of the model that answers where a request names none.
pub(crate) const DEFAULT_MODEL: &str = "default";

/// What the command line says about the configuration. Empty fields leave a key as file and environment have it.
#[derive(Debug, Default, Clone, clap::Args)]
pub(crate) struct Overrides {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "PARLANCE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where to serve HTTP, as IP:PORT; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where log and records are kept [default: the user's state directory, usually ~/.local/state/parlance]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where `parlance model fetch` keeps weights [default: usually ~/.local/share/parlance/models]
    #[arg(long, value_name = "DIR")]
    pub(crate) model_dir: Option<PathBuf>,
    /// The model named `default`: a fetched one by name, a GGUF file or a directory by path, scripted:ttft_ms=20,token_ms=5, or none
    #[arg(long, value_name = "NAME|PATH|scripted:…")]
    pub(crate) model: Option<String>,
    /// This node's name [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The failure zone that this node is in
    #[arg(long, value_name = "ZONE")]
    pub(crate) zone: Option<String>,
    /// Where to listen for the other nodes of a cluster, as IP:PORT; port 0 takes a free one [default: 0.0.0.0:7946]
    #[arg(long, value_name = "ADDR")]
    pub(crate) cluster_listen: Option<String>,
    /// Where other nodes of the cluster are found: HOST:PORT or file:PATH, with commas between them
    #[arg(long, value_name = "A,B")]
    pub(crate) seeds: Option<String>,
    /// The keys that clients may use, one per line: KEY or TENANT KEY
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// The server's certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve other machines without API keys or without TLS
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) model_dir: PathBuf,
    pub(crate) node: NodeConfig,
    /// The cluster that the node is part of; none for a node that runs alone.
    pub(crate) cluster: Option<ClusterConfig>,
    pub(crate) log: LogConfig,
    pub(crate) records: RecordsConfig,
    /// Whether what happens to turns is published. Only where the log is in Kafka.
    pub(crate) publishes_events: bool,
    pub(crate) cache: CacheConfig,
    /// By the name that a model is served under. Empty only in a cluster.
    pub(crate) models: BTreeMap<String, ModelConfig>,
    pub(crate) limits: LimitsConfig,
    pub(crate) api_key_file: Option<PathBuf>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) tls: Option<TlsConfig>,
    /// Where each value that is not a default was set, by its key.
    origins: BTreeMap<String, String>,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
}

/// One model to serve.
#[derive(Debug, Clone)]
pub(crate) struct ModelConfig {
    pub(crate) source: ModelSource,
    pub(crate) replicas: usize,
    pub(crate) pinned: bool,
    /// Whether it is loaded at the start. A pinned one always is.
    pub(crate) preload: bool,
    pub(crate) device: DeviceChoice,
    pub(crate) precision: Precision,
    /// Sequences in memory at once, if not the model's default.
    pub(crate) lanes: Option<usize>,
    /// The longest sequence, if not the model's default.
    pub(crate) context_tokens: Option<usize>,
    /// Tokens in memory at once, of all sequences, if not the model's default.
    pub(crate) cache_tokens: Option<usize>,
    /// Tokens that stay in memory for later requests, if not the engine's default.
    pub(crate) kept_tokens: Option<usize>,
    pub(crate) speculation: Speculation,
    /// The longest likely wait for a first token, if not the engine's default; a request that would wait longer is refused.
    pub(crate) target_first_token: Option<Duration>,
}

impl ModelConfig {
    /// One replica of `source`, loaded at the start, with the model's own defaults.
    pub(crate) fn of(source: ModelSource) -> Self {
        Self {
            source,
            replicas: 1,
            pinned: false,
            preload: true,
            device: DeviceChoice::default(),
            precision: Precision::default(),
            lanes: None,
            context_tokens: None,
            cache_tokens: None,
            kept_tokens: None,
            speculation: Speculation::default(),
            target_first_token: None,
        }
    }
}

/// The bounds of the node and of its public face. Past one of them a request is refused at once.
#[derive(Debug, Clone)]
pub(crate) struct LimitsConfig {
    pub(crate) node: Limits,
    pub(crate) ingress: IngressLimits,
    pub(crate) memory: ModelMemory,
}

/// The files of the server's TLS identity.
#[derive(Debug, Clone)]
pub(crate) struct TlsConfig {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// If set, clients must show a certificate of this authority.
    pub(crate) client_ca: Option<PathBuf>,
}

impl Config {
    /// Reads and checks the configuration of this process.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, a line each, with exit code 2.
    pub(crate) fn load(overrides: &Overrides) -> Result<Self, Failure> {
        Self::from_layers(
            overrides,
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))),
        )
    }

    fn from_layers(
        overrides: &Overrides,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let mut layers = Layers::default();
        if let Some(file) = &overrides.config {
            layers.add_file(file);
        }
        layers.add_environment(environment);
        add_flags(&mut layers, overrides);
        check::check(layers, overrides.insecure).map_err(|lines| Failure { exit: Exit::Usage, lines })
    }

    /// The effective configuration as TOML that says where each value was set. It holds no secret: keys stay in their files.
    pub(crate) fn to_toml(&self) -> String {
        show::to_toml(self)
    }

    /// The same as JSON, without the origins.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        show::to_json(self)
    }
}

fn add_flags(layers: &mut Layers, overrides: &Overrides) {
    let path = |path: &Option<PathBuf>| path.as_deref().map(shown);
    layers.add_flag("--listen", "listen", overrides.listen.clone());
    layers.add_flag("--data", "data", path(&overrides.data));
    layers.add_flag("--model-dir", "model_dir", path(&overrides.model_dir));
    layers.add_flag("--model", "models.default.source", overrides.model.clone());
    layers.add_flag("--node", "node.name", overrides.node.clone());
    layers.add_flag("--zone", "node.zone", overrides.zone.clone());
    layers.add_flag("--cluster-listen", "cluster.listen", overrides.cluster_listen.clone());
    layers.add_flag("--seeds", "cluster.seeds", overrides.seeds.clone());
    layers.add_flag("--api-key-file", "auth.api_key_file", path(&overrides.api_key_file));
    layers.add_flag("--tls-cert", "tls.cert", path(&overrides.tls_cert));
    layers.add_flag("--tls-key", "tls.key", path(&overrides.tls_key));
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
