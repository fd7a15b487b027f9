//! Turns settings into a checked configuration. Problems are gathered, not thrown: an operator corrects them all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    num::NonZeroU32,
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use parlance_actors_ingress::IngressLimits;
use parlance_actors_runtime::{Limits, ModelMemory};
use parlance_cluster_cache::Limit;
use parlance_inference_engine::Speculation;
use parlance_inference_model::{DeviceChoice, Precision};

use super::{
    Config, DEFAULT_MODEL, LimitsConfig, ModelConfig, NodeConfig, TlsConfig,
    layers::{Layers, Origin, Raw, Setting},
};
use crate::{
    models::{self, ModelSource},
    platform,
};

const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// The default model of a node that has none, and leaves answering to other nodes.
const NO_MODEL: &str = "none";

/// Names of nodes, zones and models go into file names, metrics and logs.
const MAX_NAME_BYTES: usize = 64;

/// No count in a configuration is larger. What really bounds a limit is the machine's memory.
const MANY: i64 = 100_000_000;

/// A day: nothing that a limit times is left to take longer.
const DAY_S: i64 = 24 * 60 * 60;

/// The share of the memory that this process may have that is for models unless the operator says otherwise, in percent: the rest is for
/// sessions, the log's and the records' caches, and the pages of files.
const MODEL_MEMORY_PERCENT: u64 = 75;

/// Below, no chat fits; above, one request is a burden to the node.
const BODY_BYTES: RangeInclusive<i64> = 1_024..=256 * 1024 * 1024;

/// Below, hyper cannot read a request; above, headers are an attack.
const HEADER_BYTES: RangeInclusive<i64> = 8_192..=1024 * 1024;

/// What a tenant's rate is counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// Checks every value.
pub(super) fn check(layers: Layers, insecure: bool) -> Result<Config, Vec<String>> {
    let mut reader = Reader { settings: layers.settings, problems: layers.problems };
    let config = reader.config(insecure);
    match config {
        Some(config) if reader.problems.is_empty() => Ok(config),
        _ => Err(reader.problems),
    }
}

pub(super) struct Reader {
    settings: BTreeMap<Vec<String>, Setting>,
    pub(super) problems: Vec<String>,
}

impl Reader {
    fn config(&mut self, insecure: bool) -> Option<Config> {
        let listen = self.address("listen", DEFAULT_LISTEN, "127.0.0.1:8080 or [::1]:8080");
        let data = self.directory("data", "--data", platform::default_data_dir);
        let model_dir = self.directory("model_dir", "--model-dir", platform::default_model_dir);
        let node = self.node();
        let cluster = self.cluster(&node);
        let log = self.log();
        let publishes_events = self.events(log.as_ref());
        let records = self.records();
        let cache = self.cache();
        let models = self.models();
        let limits = self.limits();
        let api_key_file = self.text("auth.api_key_file").map(PathBuf::from);
        let cors_origins = self.list("auth.cors_origins");
        let tls = self.tls();
        if let Some(listen) = listen {
            self.refuse_open_door(listen, api_key_file.is_some(), tls.is_some(), insecure);
        }
        let origins = self.origins();
        let (listen, data, model_dir) = (listen?, data?, model_dir?);
        Some(Config {
            listen,
            data,
            model_dir,
            node,
            cluster,
            log: log?,
            records: records?,
            publishes_events,
            cache: cache?,
            models,
            limits,
            api_key_file,
            cors_origins,
            tls,
            origins,
        })
    }

    fn origins(&self) -> BTreeMap<String, String> {
        self.settings.iter().map(|(path, setting)| (path.join("."), setting.origin.to_string())).collect()
    }

    pub(super) fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.get(&key.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    /// One of the keys of `section` that were set, with where it was.
    pub(super) fn any_set_in(&self, section: &str) -> Option<String> {
        let (path, setting) = self.settings.iter().find(|(path, _)| path.len() > 1 && path[0] == section)?;
        Some(format!("{} ({})", path.join("."), setting.origin))
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.setting(key).map(|setting| &setting.raw) {
            Some(Raw::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Notes what is wrong with the value at `key`: the key, the value, where it was set, and the remedy.
    pub(super) fn wrong(&mut self, key: &str, value: impl std::fmt::Display, problem: &str, remedy: &str) {
        let origin = self.setting(key).map_or(Origin::Default, |setting| setting.origin.clone());
        self.problems.push(format!("{key} = {value} ({origin}) {problem}. {remedy}"));
    }

    pub(super) fn integer(&mut self, key: &str, default: i64, range: RangeInclusive<i64>) -> i64 {
        let Some(Raw::Integer(value)) = self.setting(key).map(|setting| setting.raw.clone()) else { return default };
        if !range.contains(&value) {
            let remedy = format!("Choose a number from {} to {}", range.start(), range.end());
            self.wrong(key, value, "is out of range", &remedy);
        }
        value
    }

    fn count(&mut self, key: &str, default: usize) -> usize {
        self.integer(key, default as i64, 1..=MANY) as usize
    }

    fn bytes(&mut self, key: &str, default: usize, range: RangeInclusive<i64>) -> usize {
        self.integer(key, default as i64, range) as usize
    }

    fn seconds(&mut self, key: &str, default: Duration) -> Duration {
        Duration::from_secs(self.integer(key, default.as_secs() as i64, 1..=DAY_S).unsigned_abs())
    }

    pub(super) fn millis(&mut self, key: &str, default: Duration, range: RangeInclusive<i64>) -> Duration {
        Duration::from_millis(self.integer(key, default.as_millis() as i64, range).unsigned_abs())
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        match self.setting(key).map(|setting| &setting.raw) {
            Some(Raw::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn one_of(&mut self, key: &str, choices: &[&str]) {
        if let Some(value) = self.text(key).filter(|value| !choices.contains(&value.as_str())) {
            let remedy = format!("Set {key} = \"{}\"", choices.join("\" or \""));
            self.wrong(key, format!("\"{value}\""), "is not in this version", &remedy);
        }
    }

    /// Where to listen.
    pub(super) fn address(&mut self, key: &str, default: &str, examples: &str) -> Option<SocketAddr> {
        let text = self.text(key).unwrap_or_else(|| default.to_owned());
        let address = text.parse().ok();
        if address.is_none() {
            let remedy = format!("Write an IP address and a port, for example {examples}");
            self.wrong(key, format!("\"{text}\""), "is not an address", &remedy);
        }
        address
    }

    fn directory(&mut self, key: &str, flag: &str, default: fn() -> Option<PathBuf>) -> Option<PathBuf> {
        let directory = match self.text(key) {
            Some(text) if text.is_empty() => None,
            Some(text) => Some(PathBuf::from(text)),
            None => default(),
        };
        if directory.is_none() {
            self.wrong(key, "\"\"", "names no directory, and HOME is not set", &format!("Pass {flag} DIR"));
        }
        directory
    }

    fn node(&mut self) -> NodeConfig {
        let name = self.text("node.name").unwrap_or_else(host_name);
        let zone = self.text("node.zone");
        // A cluster's rule for names is narrower, and told of instead.
        if self.any_set_in("cluster").is_none() {
            self.check_name("node.name", &name);
            zone.iter().for_each(|zone| self.check_name("node.zone", zone));
        }
        NodeConfig { name, zone }
    }

    fn check_name(&mut self, key: &str, name: &str) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) {
            let remedy = format!("Use 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ -");
            self.wrong(key, format!("\"{name}\""), "is not a name", &remedy);
        }
    }

    fn models(&mut self) -> BTreeMap<String, ModelConfig> {
        let in_section = |path: &&Vec<String>| path.len() == 3 && path[0] == "models";
        let mut names: BTreeSet<String> = self.settings.keys().filter(in_section).map(|path| path[1].clone()).collect();
        if names.is_empty() {
            names.insert(DEFAULT_MODEL.to_owned());
        }
        if self.text("models.default.source").as_deref() == Some(NO_MODEL) && self.may_have_none(&names) {
            names.remove(DEFAULT_MODEL);
        }
        names.into_iter().filter_map(|name| self.model(&name).map(|model| (name, model))).collect()
    }

    /// Whether the node may do without models: other nodes have to answer for its sessions.
    fn may_have_none(&mut self, names: &BTreeSet<String>) -> bool {
        if names.len() == 1 && self.any_set_in("cluster").is_none() {
            let remedy = "Name a model, or set [cluster], whose other nodes have some";
            self.wrong("models.default.source", format!("\"{NO_MODEL}\""), "leaves this node without a model", remedy);
            return false;
        }
        true
    }

    /// A number of a model's section; `None` where it is not given, or out of range, which is told.
    fn model_integer(&mut self, name: &str, key: &str, range: RangeInclusive<i64>) -> Option<usize> {
        let path = ["models", name, key].map(str::to_owned).to_vec();
        let Some(Raw::Integer(value)) = self.settings.get(&path).map(|setting| setting.raw.clone()) else {
            return None;
        };
        if range.contains(&value) {
            return usize::try_from(value).ok();
        }
        let (least, most) = (range.start(), range.end());
        let problem = format!("models.{name}.{key} = {value} is out of range. Choose a number from {least} to {most}");
        self.problems.push(problem);
        None
    }

    /// A word of a model's section; the default where it is not given, or unknown, which is told.
    fn model_choice<T: FromStr<Err: Display> + Default>(&mut self, name: &str, key: &str) -> T {
        let path = ["models", name, key].map(str::to_owned).to_vec();
        let Some(Raw::Text(text)) = self.settings.get(&path).map(|setting| setting.raw.clone()) else {
            return T::default();
        };
        text.parse().unwrap_or_else(|problem| {
            self.problems.push(format!("models.{name}.{key} = \"{text}\" {problem}"));
            T::default()
        })
    }

    fn model(&mut self, name: &str) -> Option<ModelConfig> {
        let path = |key: &str| vec!["models".to_owned(), name.to_owned(), key.to_owned()];
        let shown = |key: &str| format!("models.{name}.{key}");
        let raw = |reader: &Self, key: &str| reader.settings.get(&path(key)).map(|setting| setting.raw.clone());
        if !is_model_name(name) {
            self.problems.push(format!(
                "[models.{name:?}] is not a name. Use 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ : / -"
            ));
        }
        let replicas = self.model_integer(name, "replicas", 1..=64).unwrap_or(1);
        let lanes = self.model_integer(name, "lanes", 1..=1_024);
        let context_tokens = self.model_integer(name, "context_tokens", 64..=1 << 20);
        let cache_tokens = self.model_integer(name, "cache_tokens", 64..=1 << 30);
        let kept_tokens = self.model_integer(name, "kept_tokens", 0..=1 << 30);
        let target_first_token = self.model_integer(name, "target_first_token_ms", 1..=DAY_S * 1_000);
        let target_first_token = target_first_token.map(|target| Duration::from_millis(target as u64));
        let precision = self.model_choice::<Precision>(name, "precision");
        let device = self.model_choice::<DeviceChoice>(name, "device");
        let speculation = self.model_choice::<Speculation>(name, "speculation");
        let pinned = raw(self, "pinned") == Some(Raw::Flag(true));
        let preload = raw(self, "preload") != Some(Raw::Flag(false));
        if pinned && !preload {
            let problem = format!("{} = false does not go with pinned = true. Remove one of them", shown("preload"));
            self.problems.push(problem);
        }
        let source = match raw(self, "source") {
            Some(Raw::Text(text)) => text,
            _ if name == DEFAULT_MODEL => models::DEFAULT_NAME.to_owned(),
            _ => name.to_owned(),
        };
        match source.parse::<ModelSource>() {
            Ok(ModelSource::Scripted(_)) if ![DEFAULT_MODEL, models::SCRIPTED_NAME].contains(&name) => {
                self.problems.push(format!(
                    "{} = \"{source}\" is served under the name `scripted` only. Rename the section [models.scripted]",
                    shown("source")
                ));
                None
            }
            Ok(source) => Some(ModelConfig {
                source,
                replicas,
                pinned,
                preload,
                device,
                precision,
                lanes,
                context_tokens,
                cache_tokens,
                kept_tokens,
                speculation,
                target_first_token,
            }),
            Err(problem) => {
                self.problems.push(format!("{} = \"{source}\" {problem}", shown("source")));
                None
            }
        }
    }

    fn limits(&mut self) -> LimitsConfig {
        LimitsConfig { node: self.node_limits(), ingress: self.ingress_limits(), memory: self.model_memory() }
    }

    fn model_memory(&mut self) -> ModelMemory {
        let default =
            platform::memory_bytes().map_or(MANY, |bytes| ((bytes * MODEL_MEMORY_PERCENT / 100) >> 20) as i64);
        let mib = self.integer("limits.model_memory_mib", default.max(1), 1..=MANY);
        let evict = self.setting("limits.evict_idle_models").map(|setting| &setting.raw);
        ModelMemory { budget_bytes: mib.unsigned_abs() << 20, evict_idle: evict == Some(&Raw::Flag(true)) }
    }

    fn node_limits(&mut self) -> Limits {
        let default = Limits::default();
        Limits {
            open_turns: self.count("limits.open_turns", default.open_turns),
            open_turns_per_tenant: self.count("limits.open_turns_per_tenant", default.open_turns_per_tenant),
            turn_rate: self.turn_rate(),
            queued_turns_per_session: self.count("limits.queued_turns_per_session", default.queued_turns_per_session),
            live_sessions: self.count("limits.live_sessions", default.live_sessions),
            session_idle: self.seconds("limits.session_idle_s", default.session_idle),
            turn_deadline: self.seconds("limits.turn_deadline_s", default.turn_deadline),
            projection_lag: self.count("limits.projection_lag", default.projection_lag),
            history_bytes: self.count("limits.history_bytes", default.history_bytes),
            stateless: self.count("limits.stateless", default.stateless),
            model_wait: self.seconds("limits.model_wait_s", default.model_wait),
            model_drain: self.seconds("limits.model_drain_s", default.model_drain),
        }
    }

    fn turn_rate(&mut self) -> Option<Limit> {
        let (rate, burst) = ("limits.turns_per_minute_per_tenant", "limits.turn_burst_per_tenant");
        if let (Some(setting), None) = (self.setting(burst), self.setting(rate)) {
            let origin = setting.origin.clone();
            self.problems.push(format!("{burst} ({origin}) goes with {rate}. Set both, or remove it"));
        }
        let mut number = |key: &str, default: u32| {
            NonZeroU32::new(self.integer(key, default.into(), 1..=MANY) as u32).filter(|_| self.setting(rate).is_some())
        };
        let tokens = number(rate, 1)?;
        Some(Limit { tokens, per: MINUTE, burst: number(burst, tokens.get())? })
    }

    fn ingress_limits(&mut self) -> IngressLimits {
        let default = IngressLimits::default();
        IngressLimits {
            connections: self.count("limits.connections", default.connections),
            websockets: self.count("limits.websockets", default.websockets),
            body_bytes: self.bytes("limits.body_bytes", default.body_bytes, BODY_BYTES),
            header_bytes: self.bytes("limits.header_bytes", default.header_bytes, HEADER_BYTES),
            header_timeout: self.seconds("limits.header_timeout_s", default.header_timeout),
            body_timeout: self.seconds("limits.body_timeout_s", default.body_timeout),
            idle_timeout: self.seconds("limits.idle_timeout_s", default.idle_timeout),
            stall_timeout: self.seconds("limits.stall_timeout_s", default.stall_timeout),
            drain_timeout: self.seconds("limits.drain_s", default.drain_timeout),
        }
    }

    fn tls(&mut self) -> Option<TlsConfig> {
        let [cert, key, client_ca] =
            ["tls.cert", "tls.key", "tls.client_ca"].map(|key| self.text(key).map(PathBuf::from));
        match (cert, key, client_ca) {
            (Some(cert), Some(key), client_ca) => Some(TlsConfig { cert, key, client_ca }),
            (None, None, None) => None,
            (cert, _, _) => {
                let (set, missing) = match cert {
                    Some(_) => ("tls.cert", "tls.key (--tls-key)"),
                    None => ("part of [tls]", "tls.cert (--tls-cert)"),
                };
                self.problems.push(format!(
                    "{set} is set but {missing} is not. Set both, or make a pair with `parlance cert dev`"
                ));
                None
            }
        }
    }

    fn refuse_open_door(&mut self, listen: SocketAddr, keys: bool, tls: bool, insecure: bool) {
        if listen.ip().is_loopback() || insecure || (keys && tls) {
            return;
        }
        let missing = match (keys, tls) {
            (false, false) => "API keys and TLS",
            (false, true) => "API keys",
            (true, _) => "TLS",
        };
        let remedy = "Pass --api-key-file, --tls-cert and --tls-key (`parlance cert dev` makes a pair), or --insecure \
                      where the network itself is trusted";
        self.wrong("listen", format!("\"{listen}\""), &format!("serves other machines without {missing}"), remedy);
    }
}

fn is_model_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(allowed)
}

/// The host's name as far as it can stand in a node's name.
fn host_name() -> String {
    let name = platform::host_name().unwrap_or_default();
    let kept: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).collect();
    let kept = kept.chars().take(MAX_NAME_BYTES).collect::<String>();
    if kept.is_empty() { "node".to_owned() } else { kept }
}
