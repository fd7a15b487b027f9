//! Opens the log, its events, the records and the limiter where the configuration has them.

use std::{fs, io, num::NonZeroUsize, path::Path, sync::Arc};

use parlance_actors_runtime::EventOptions;
use parlance_cluster_cache::{Limiter, LocalLimiter, Redis, RedisLimiter, RedisOptions};
use parlance_cluster_log::{
    KafkaConfig, KafkaEvents, KafkaLog, KafkaSasl, KafkaTls, LocalLog, LocalLogOptions, LogError, SaslMechanism,
    ShardLog,
};
use parlance_cluster_records::{
    Credentials, LocalRecords, RecordStore, Replication, ScyllaOptions, ScyllaRecords, TlsOptions,
};

use crate::{
    config::{
        CacheConfig, Config, DEFAULT_CLUSTER, KafkaSettings, LogConfig, PasswordFile, RecordsConfig, Sasl,
        ScyllaSettings,
    },
    failure::{Failure, chain, one_line},
    files,
};

/// What the names of the topics have behind their prefix.
const TOPIC: &str = "shards";
const EVENTS_TOPIC: &str = "events";
/// Where the id of the topic is kept, so that another topic of the same name is noticed.
const TOPIC_ID: &str = "kafka-topic-id";
/// Token buckets of the node's own, at most: one per tenant that asked lately.
const MAX_BUCKETS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");
/// What all keys in Redis begin with, before the cluster's name.
const KEYS: &str = "parlance";
/// The longest password that is read, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4_096;

/// Opens the log.
///
/// # Errors
///
/// Exit code 1 with what is wrong and the remedy, 2 for a password file that cannot be used.
pub(crate) async fn open_log(config: &Config) -> Result<Arc<dyn ShardLog>, Failure> {
    match &config.log {
        LogConfig::Local { shards } => Ok(Arc::new(open_local_log(config, *shards)?)),
        LogConfig::Kafka(settings) => Ok(Arc::new(open_kafka(config, settings).await?)),
    }
}

/// Opens what takes the events, if they are published.
///
/// # Errors
///
/// As [`open_log`].
pub(crate) async fn open_events(config: &Config) -> Result<Option<EventOptions>, Failure> {
    let LogConfig::Kafka(settings) = &config.log else { return Ok(None) };
    if !config.publishes_events {
        return Ok(None);
    }
    let opened = KafkaEvents::open(kafka_config(settings, EVENTS_TOPIC)?).await;
    let remedy = "Correct [log] or the brokers, or set events.publish = false";
    let publisher = opened.map_err(|error| Failure::failed(chain(&error), remedy))?;
    let cluster = config.cluster.as_ref().map_or_else(|| DEFAULT_CLUSTER.to_owned(), |cluster| cluster.id.to_string());
    Ok(Some(EventOptions { cluster, publisher: Arc::new(publisher) }))
}

/// Makes the limiter. Redis need not be there.
///
/// # Errors
///
/// Exit code 2 for an address or a password file that cannot be used.
pub(crate) fn open_limiter(config: &Config) -> Result<Arc<dyn Limiter>, Failure> {
    let CacheConfig::Redis { url, user, timeout } = &config.cache else {
        return Ok(Arc::new(LocalLimiter::new(MAX_BUCKETS)));
    };
    let credentials = user.as_ref().map(|user| password(user).map(|password| (user.user.clone(), password)));
    let prefix = match &config.cluster {
        Some(cluster) => format!("{KEYS}:{}", cluster.id),
        None => KEYS.to_owned(),
    };
    let options =
        RedisOptions { credentials: credentials.transpose()?, timeout: *timeout, ..RedisOptions::new(url, prefix) };
    let redis = Redis::connect(options).map_err(|error| Failure::usage(chain(&error), "Correct cache.url"))?;
    Ok(Arc::new(RedisLimiter::new(redis, MAX_BUCKETS)))
}

/// Opens the records.
///
/// # Errors
///
/// As [`open_log`].
pub(crate) async fn open_records(config: &Config) -> Result<Arc<dyn RecordStore>, Failure> {
    match &config.records {
        RecordsConfig::Local => {
            let opened = LocalRecords::open(config.data.join("records"));
            let remedy = "Check the directory, or choose another with --data";
            Ok(Arc::new(opened.map_err(|error| Failure::failed(chain(&error), remedy))?))
        }
        RecordsConfig::Scylla(settings) => {
            let opened = ScyllaRecords::open(scylla_options(settings)?).await;
            Ok(Arc::new(opened.map_err(|error| Failure::failed(chain(&error), "Correct [records] or the servers"))?))
        }
    }
}

fn open_local_log(config: &Config, shards: u16) -> Result<LocalLog, Failure> {
    let directory = config.data.join("log");
    let options = LocalLogOptions { shards, ..LocalLogOptions::new(&directory) };
    LocalLog::open(options).map_err(|error| match error {
        LogError::InUse { .. } => Failure::failed(
            format!("the data directory {} is in use by another process", config.data.display()),
            "Stop that one, or choose another directory with --data",
        ),
        other => Failure::failed(chain(&other), "Check the directory, or choose another with --data"),
    })
}

async fn open_kafka(config: &Config, settings: &KafkaSettings) -> Result<KafkaLog, Failure> {
    let remembered = config.data.join(TOPIC_ID);
    let known = read_known(&remembered)?;
    let kafka = KafkaConfig { expected_topic_id: known.clone(), ..kafka_config(settings, TOPIC)? };
    let remedy = match &known {
        Some(_) => format!(
            "Correct [log] or the brokers; where the topic is another on purpose, remove {}",
            remembered.display()
        ),
        None => "Correct [log] or the brokers".to_owned(),
    };
    let log = KafkaLog::open(kafka).await.map_err(|error| Failure::failed(chain(&error), &remedy))?;
    if known.is_none() {
        let written = files::write_whole(&remembered, log.topic_id().as_bytes());
        written.map_err(|error| cannot_use(&remembered, &error))?;
    }
    Ok(log)
}

fn kafka_config(settings: &KafkaSettings, topic: &str) -> Result<KafkaConfig, Failure> {
    Ok(KafkaConfig {
        topic: format!("{}.{topic}", settings.topic_prefix),
        shards: settings.shards,
        replication: settings.replication,
        tls: settings.tls.clone().map(|tls| KafkaTls { ca: tls.ca, identity: tls.identity }),
        sasl: settings.user.as_ref().map(|user| sasl(user, settings.sasl)).transpose()?,
        ..KafkaConfig::new(settings.brokers.join(","))
    })
}

fn read_known(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(id) => Ok(Some(id.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_use(path, &error)),
    }
}

fn cannot_use(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot use {}: {error}", path.display()), "Check the data directory and its permissions")
}

fn sasl(user: &PasswordFile, sasl: Sasl) -> Result<KafkaSasl, Failure> {
    let mechanism = match sasl {
        Sasl::Plain => SaslMechanism::Plain,
        Sasl::ScramSha256 => SaslMechanism::ScramSha256,
        Sasl::ScramSha512 => SaslMechanism::ScramSha512,
    };
    Ok(KafkaSasl { mechanism, user: user.user.clone(), password: password(user)? })
}

fn scylla_options(settings: &ScyllaSettings) -> Result<ScyllaOptions, Failure> {
    let credentials = settings
        .user
        .as_ref()
        .map(|user| password(user).map(|password| Credentials { user: user.user.clone(), password }));
    let tls = settings.tls.clone().and_then(|tls| {
        let certificate = tls.identity;
        tls.ca.map(|authorities| TlsOptions { authorities, certificate, server_name: settings.server_name.clone() })
    });
    Ok(ScyllaOptions {
        replication: Some(Replication::Everywhere(settings.replication)),
        credentials: credentials.transpose()?,
        tls,
        datacenter: settings.datacenter.clone(),
        ..ScyllaOptions::new(settings.contact_points.iter().cloned(), settings.keyspace.clone())
    })
}

/// The password in a file, without the line's end.
fn password(user: &PasswordFile) -> Result<String, Failure> {
    let refuse = |problem: &str| {
        let shown = user.file.display();
        Failure::usage(
            one_line(&format!("the password file {shown} {problem}")),
            "Write the password into it, one line",
        )
    };
    let length = fs::metadata(&user.file).map_err(|error| refuse(&format!("cannot be read: {error}")))?.len();
    if length > MAX_PASSWORD_BYTES {
        return Err(refuse("is too long"));
    }
    let text = fs::read_to_string(&user.file).map_err(|error| refuse(&format!("cannot be read: {error}")))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(refuse("is empty")),
        password => Ok(password.to_owned()),
    }
}
