//! Where the log, its events, the records and what may be forgotten are: with the node, or in servers that nodes share.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{check::Reader, layers::Raw};

const DEFAULT_SHARDS: i64 = 64;
/// As many as a topic has partitions, at most.
const MOST_SHARDS: i64 = 4_096;
const DEFAULT_COPIES: i64 = 3;
const MOST_COPIES: i64 = 9;
const DEFAULT_TOPIC_PREFIX: &str = "parlance";
const DEFAULT_KEYSPACE: &str = "parlance";
/// Every turn may wait for as long.
const DEFAULT_CACHE_TIMEOUT: Duration = Duration::from_millis(50);
const MOST_CACHE_TIMEOUT_MS: i64 = 10_000;
/// What Kafka takes as a topic's name, and we put behind a prefix.
const MAX_PREFIX_BYTES: usize = 200;

/// Keys of `[log]` that are for Kafka alone.
const KAFKA_KEYS: &[&str] = &[
    "log.brokers",
    "log.topic_prefix",
    "log.replication",
    "log.tls",
    "log.ca",
    "log.cert",
    "log.key",
    "log.user",
    "log.password_file",
    "log.sasl",
];
/// Keys of `[records]` that are for Scylla alone.
const SCYLLA_KEYS: &[&str] = &[
    "records.contact_points",
    "records.keyspace",
    "records.replication",
    "records.datacenter",
    "records.ca",
    "records.cert",
    "records.key",
    "records.server_name",
    "records.user",
    "records.password_file",
];

/// Keys of `[cache]` that are for Redis alone.
const REDIS_KEYS: &[&str] = &["cache.url", "cache.user", "cache.password_file", "cache.timeout_ms"];

/// Where the log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogConfig {
    /// In the data directory.
    Local { shards: u16 },
    /// In Kafka.
    Kafka(KafkaSettings),
}

/// How Kafka is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KafkaSettings {
    pub(crate) brokers: Vec<String>,
    pub(crate) topic_prefix: String,
    pub(crate) shards: u16,
    pub(crate) replication: u16,
    pub(crate) tls: Option<StoreTls>,
    pub(crate) user: Option<PasswordFile>,
    pub(crate) sasl: Sasl,
}

/// How a password is proved to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sasl {
    Plain,
    ScramSha256,
    #[default]
    ScramSha512,
}

/// Where the records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordsConfig {
    /// In the data directory.
    Local,
    /// In Scylla or Cassandra.
    Scylla(Box<ScyllaSettings>),
}

/// How Scylla is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScyllaSettings {
    pub(crate) contact_points: Vec<String>,
    pub(crate) keyspace: String,
    pub(crate) replication: u8,
    pub(crate) datacenter: Option<String>,
    pub(crate) tls: Option<StoreTls>,
    pub(crate) server_name: Option<String>,
    pub(crate) user: Option<PasswordFile>,
}

/// Where limits are counted that are the whole cluster's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CacheConfig {
    /// In the node, for itself.
    Local,
    /// In Redis.
    Redis {
        /// Without a user or a password.
        url: String,
        user: Option<PasswordFile>,
        /// How long a command may take.
        timeout: Duration,
    },
}

/// TLS towards a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StoreTls {
    /// The authorities that sign its certificates; the system's where there is none.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// A user, and the file that holds the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasswordFile {
    pub(crate) user: String,
    pub(crate) file: PathBuf,
}

impl Sasl {
    const NAMES: [(&str, Self); 3] =
        [("plain", Self::Plain), ("scram-sha-256", Self::ScramSha256), ("scram-sha-512", Self::ScramSha512)];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, sasl)| *sasl == self).map_or("", |(name, _)| name)
    }
}

impl Reader {
    pub(super) fn log(&mut self) -> Option<LogConfig> {
        let shards = self.integer("log.shards", DEFAULT_SHARDS, 1..=MOST_SHARDS) as u16;
        if !self.is_kind("log.kind", "kafka", KAFKA_KEYS) {
            return Some(LogConfig::Local { shards });
        }
        let brokers = self.addresses("log.brokers", "9092")?;
        let topic_prefix = self.text("log.topic_prefix").unwrap_or_else(|| DEFAULT_TOPIC_PREFIX.to_owned());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if topic_prefix.is_empty() || topic_prefix.len() > MAX_PREFIX_BYTES || !topic_prefix.chars().all(allowed) {
            let remedy = format!("Use 1 to {MAX_PREFIX_BYTES} of the characters A-Z a-z 0-9 . _ -");
            self.wrong("log.topic_prefix", format!("\"{topic_prefix}\""), "cannot begin a topic's name", &remedy);
        }
        let replication = self.integer("log.replication", DEFAULT_COPIES, 1..=MOST_COPIES) as u16;
        let tls = self.store_tls("log");
        let tls = tls.or_else(|| (self.flag("log.tls") == Some(true)).then(StoreTls::default));
        let (user, sasl) = (self.user("log"), self.sasl());
        if sasl == Sasl::Plain && user.is_some() && tls.is_none() {
            self.wrong(
                "log.sasl",
                "\"plain\"",
                "sends the password in the clear",
                "Set log.tls = true, or choose scram-sha-512",
            );
        }
        Some(LogConfig::Kafka(KafkaSettings { brokers, topic_prefix, shards, replication, tls, user, sasl }))
    }

    /// Whether events are published: where there is a Kafka, unless it is told not to.
    pub(super) fn events(&mut self, log: Option<&LogConfig>) -> bool {
        let has_kafka = !matches!(log, Some(LogConfig::Local { .. }));
        let publishes = self.flag("events.publish").unwrap_or(has_kafka);
        if publishes && !has_kafka {
            let problem = "needs a topic to publish to, and the log is local";
            self.wrong("events.publish", "true", problem, "Set log.kind = \"kafka\", or remove it");
        }
        publishes
    }

    pub(super) fn records(&mut self) -> Option<RecordsConfig> {
        if !self.is_kind("records.kind", "scylla", SCYLLA_KEYS) {
            return Some(RecordsConfig::Local);
        }
        let contact_points = self.addresses("records.contact_points", "9042")?;
        Some(RecordsConfig::Scylla(Box::new(ScyllaSettings {
            contact_points,
            keyspace: self.text("records.keyspace").unwrap_or_else(|| DEFAULT_KEYSPACE.to_owned()),
            replication: self.integer("records.replication", DEFAULT_COPIES, 1..=MOST_COPIES) as u8,
            datacenter: self.text("records.datacenter"),
            tls: self.records_tls(),
            server_name: self.text("records.server_name"),
            user: self.user("records"),
        })))
    }

    pub(super) fn cache(&mut self) -> Option<CacheConfig> {
        if !self.is_kind("cache.kind", "redis", REDIS_KEYS) {
            return Some(CacheConfig::Local);
        }
        let Some(url) = self.text("cache.url") else {
            let problem =
                "cache.kind = \"redis\" needs cache.url. Set it, for example cache.url = \"redis://one.example:6379\"";
            self.problems.push(problem.to_owned());
            return None;
        };
        if url.contains('@') {
            // What stands before it may be a password, which is not repeated.
            let origin = self.setting("cache.url").map(|setting| setting.origin.to_string()).unwrap_or_default();
            self.problems.push(format!(
                "cache.url ({origin}) names a user or a password. Set cache.user and cache.password_file instead"
            ));
            return None;
        }
        let timeout = self.millis("cache.timeout_ms", DEFAULT_CACHE_TIMEOUT, 1..=MOST_CACHE_TIMEOUT_MS);
        Some(CacheConfig::Redis { url, user: self.user("cache"), timeout })
    }

    /// Whether the kind at `key` is `other` than local; else what is for that kind alone is refused.
    fn is_kind(&mut self, key: &str, other: &str, own_keys: &[&str]) -> bool {
        self.one_of(key, &["local", other]);
        let is_other = self.text(key).as_deref() == Some(other);
        for own in own_keys.iter().filter(|_| !is_other) {
            if let Some(setting) = self.setting(own) {
                let origin = setting.origin.clone();
                self.problems.push(format!("{own} ({origin}) is for {key} = \"{other}\". Set that, or remove it"));
            }
        }
        is_other
    }

    /// A list of hosts, each with a port or not; at least one.
    fn addresses(&mut self, key: &str, port: &str) -> Option<Vec<String>> {
        let addresses = self.list(key);
        if addresses.is_empty() {
            let remedy = format!("Name at least one server, for example {key} = [\"one.example:{port}\"]");
            self.wrong(key, "[]", "names nobody", &remedy);
            return None;
        }
        let bad = |text: &&String| text.is_empty() || text.contains([',', ' ', '/']) || text.len() > 255;
        if let Some(bad) = addresses.iter().find(bad).cloned() {
            self.wrong(
                key,
                format!("\"{bad}\""),
                "is not a server",
                &format!("Write HOST:PORT, for example one.example:{port}"),
            );
        }
        Some(addresses)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match self.setting(key).map(|setting| &setting.raw) {
            Some(Raw::Flag(flag)) => Some(*flag),
            _ => None,
        }
    }

    fn store_tls(&mut self, section: &str) -> Option<StoreTls> {
        let path = |reader: &Self, name: &str| reader.text(&format!("{section}.{name}")).map(PathBuf::from);
        let (ca, cert, key) = (path(self, "ca"), path(self, "cert"), path(self, "key"));
        if cert.is_some() != key.is_some() {
            self.problems.push(format!("{section}.cert and {section}.key go together. Set both or none"));
        }
        let identity = cert.zip(key);
        (ca.is_some() || identity.is_some()).then_some(StoreTls { ca, identity })
    }

    /// The record store needs the authority: there is no place where all systems keep theirs.
    fn records_tls(&mut self) -> Option<StoreTls> {
        let tls = self.store_tls("records");
        if (tls.is_some() || self.text("records.server_name").is_some()) && self.text("records.ca").is_none() {
            self.problems
                .push("[records] has part of TLS but no records.ca. Name the authority's certificate".to_owned());
        }
        tls
    }

    fn user(&mut self, section: &str) -> Option<PasswordFile> {
        let user = self.text(&format!("{section}.user"));
        let file = self.text(&format!("{section}.password_file")).map(PathBuf::from);
        if user.is_some() != file.is_some() {
            self.problems.push(format!("{section}.user and {section}.password_file go together. Set both or none"));
        }
        user.zip(file).map(|(user, file)| PasswordFile { user, file })
    }

    fn sasl(&mut self) -> Sasl {
        let Some(text) = self.text("log.sasl") else { return Sasl::default() };
        match Sasl::NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, sasl)) => *sasl,
            None => {
                let remedy = "Choose scram-sha-512, scram-sha-256 or plain";
                self.wrong("log.sasl", format!("\"{text}\""), "is not a way to prove a password", remedy);
                Sasl::default()
            }
        }
    }
}

/// A key without its section, and its value.
type Row = (&'static str, Value);

impl LogConfig {
    /// What is in force, for people; passwords stay in their files.
    pub(super) fn rows(&self) -> Vec<Row> {
        match self {
            Self::Local { shards } => vec![("kind", json!("local")), ("shards", json!(shards))],
            Self::Kafka(kafka) => {
                let mut rows = vec![
                    ("kind", json!("kafka")),
                    ("shards", json!(kafka.shards)),
                    ("brokers", json!(kafka.brokers)),
                    ("topic_prefix", json!(kafka.topic_prefix)),
                    ("replication", json!(kafka.replication)),
                    ("tls", json!(kafka.tls.is_some())),
                ];
                rows.extend(tls_rows(kafka.tls.as_ref()));
                rows.extend(user_rows(kafka.user.as_ref()));
                rows.push(("sasl", kafka.user.as_ref().map_or(Value::Null, |_| json!(kafka.sasl.name()))));
                rows
            }
        }
    }
}

impl RecordsConfig {
    /// What is in force, for people; passwords stay in their files.
    pub(super) fn rows(&self) -> Vec<Row> {
        match self {
            Self::Local => vec![("kind", json!("local"))],
            Self::Scylla(scylla) => {
                let mut rows = vec![
                    ("kind", json!("scylla")),
                    ("contact_points", json!(scylla.contact_points)),
                    ("keyspace", json!(scylla.keyspace)),
                    ("replication", json!(scylla.replication)),
                    ("datacenter", json!(scylla.datacenter)),
                    ("server_name", json!(scylla.server_name)),
                ];
                rows.extend(tls_rows(scylla.tls.as_ref()));
                rows.extend(user_rows(scylla.user.as_ref()));
                rows
            }
        }
    }
}

impl CacheConfig {
    /// What is in force, for people; passwords stay in their files.
    pub(super) fn rows(&self) -> Vec<Row> {
        match self {
            Self::Local => vec![("kind", json!("local"))],
            Self::Redis { url, user, timeout } => {
                let mut rows = vec![("kind", json!("redis")), ("url", json!(url))];
                rows.push(("timeout_ms", json!(timeout.as_millis() as u64)));
                rows.extend(user_rows(user.as_ref()));
                rows
            }
        }
    }
}

fn tls_rows(tls: Option<&StoreTls>) -> Vec<Row> {
    let Some(StoreTls { ca, identity }) = tls else { return Vec::new() };
    let (cert, key) = identity.as_ref().map(|(cert, key)| (cert, key)).unzip();
    vec![("ca", json!(ca)), ("cert", json!(cert)), ("key", json!(key))]
}

fn user_rows(user: Option<&PasswordFile>) -> Vec<Row> {
    let Some(PasswordFile { user, file }) = user else { return Vec::new() };
    vec![("user", json!(user)), ("password_file", json!(file))]
}
