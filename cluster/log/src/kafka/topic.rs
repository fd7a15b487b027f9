//! The topic: made where there is none, and refused where it or its brokers are set up so that promises would be broken.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{info, warn};

use super::{
    KafkaConfig, blocking,
    config::MAX_BATCH_BYTES,
    context::Context,
    describe::{TopicDescription, describe},
    unreachable_at,
};
use crate::LogError;

/// As the embedded log.
const MAX_SHARDS: u16 = 16_384;
/// How the topic of a log is made, besides the brokers that hold it.
const LOG_SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
    ("unclean.leader.election.enable", "false"),
    // What it takes as one batch.
    ("max.message.bytes", "2097152"),
    ("message.timestamp.type", "LogAppendTime"),
];
/// How long a new topic's partitions may take to have leaders is part of the time to open; this is how often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A broker that died is followed by another after `broker.session.timeout.ms`; longer than this stalls its shards for long.
const ADVISED_SESSION_MS: u64 = 3_000;
/// Only this many brokers are asked for their settings, which are meant to be the same everywhere.
const BROKERS_ASKED: usize = 3;

/// The topic that was found.
pub(super) struct Topic {
    /// Never given to another topic.
    pub(super) id: String,
    /// On how many brokers an entry has to be before it counts.
    pub(super) min_in_sync: u16,
}

/// What a setting has to be.
enum Demand {
    Is(&'static str),
    AtLeast(u64),
}

impl Topic {
    pub(super) async fn open(config: &KafkaConfig) -> Result<(AdminClient<Context>, Self), LogError> {
        if config.shards == 0 || config.shards > MAX_SHARDS {
            let remedy = format!("a log has 1 to {MAX_SHARDS} shards");
            return Err(misconfigured("the configuration", "shards", config.shards, remedy));
        }
        let opening = Opening::new(config.clone()).await?;
        let description = match opening.describe().await? {
            Some(description) => description,
            None => opening.create(LOG_SETTINGS).await?,
        };
        opening.check(&description)?;
        let min_in_sync = opening.check_settings().await?;
        opening.check_brokers().await?;
        let admin = Arc::into_inner(opening.admin).ok_or(LogError::Closed)?;
        Ok((admin, Self { id: description.id, min_in_sync }))
    }

    /// A topic for events: it has to have a partition for each shard. What is published is a copy, so that the rest is the operator's choice.
    pub(super) async fn open_for_events(config: &KafkaConfig) -> Result<(), LogError> {
        let opening = Opening::new(config.clone()).await?;
        let found = match opening.describe().await? {
            Some(description) => description.partitions.len(),
            None => opening.create(&[]).await?.partitions.len(),
        };
        if found < usize::from(config.shards) {
            let (topic, shards) = (&config.topic, config.shards);
            let remedy = format!(
                "there has to be one for each of {shards} shards: kafka-topics --alter --topic {topic} --partitions {shards}"
            );
            return Err(misconfigured(&opening.place(), "partitions", found, remedy));
        }
        Ok(())
    }
}

/// A topic that is being opened.
struct Opening {
    config: KafkaConfig,
    admin: Arc<AdminClient<Context>>,
    deadline: Instant,
}

impl Opening {
    async fn new(config: KafkaConfig) -> Result<Self, LogError> {
        let deadline = Instant::now() + config.open_timeout;
        let asked = config.clone();
        let admin = blocking(move || {
            for path in asked.files() {
                let unusable = |source| LogError::Unusable { path: path.into(), source: Arc::new(source) };
                std::fs::File::open(path).map_err(unusable)?;
            }
            let refused = |error: KafkaError| LogError::Options { reason: error.to_string() };
            asked.admin().create_with_context(Context).map_err(refused)
        })
        .await?;
        Ok(Self { config, admin: Arc::new(admin), deadline })
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(LOOK_AGAIN)
    }

    fn unreachable(&self, error: impl std::fmt::Display) -> LogError {
        unreachable_at(&self.config, error)
    }

    async fn describe(&self) -> Result<Option<TopicDescription>, LogError> {
        let (admin, topic, timeout) = (self.admin.clone(), self.config.topic.clone(), self.left());
        let described = blocking(move || Ok(describe(admin.inner(), &topic, timeout))).await?;
        described.map_err(|e| self.unreachable(e))
    }

    async fn create(&self, settings: &[(&str, &str)]) -> Result<TopicDescription, LogError> {
        let KafkaConfig { topic, shards, replication, .. } = &self.config;
        let min_in_sync = self.config.min_in_sync().to_string();
        let new = NewTopic::new(topic, i32::from(*shards), TopicReplication::Fixed(i32::from(*replication)));
        let new = new.set("min.insync.replicas", &min_in_sync);
        let new = settings.iter().fold(new, |new, (setting, value)| new.set(setting, value));
        let options = AdminOptions::new().request_timeout(Some(self.left())).operation_timeout(Some(self.left()));
        let made = self.admin.create_topics([&new], &options).await.map_err(|e| self.unreachable(e))?;
        match made.into_iter().next() {
            Some(Ok(_)) => info!(topic, shards, replication, "kafka topic made"),
            // Another node was first.
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => {}
            Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => {
                let remedy =
                    "there are fewer brokers: start as many, or ask for fewer copies, 1 for development".to_owned();
                return Err(misconfigured(&self.place(), "replication factor", replication, remedy));
            }
            Some(Err((_, code))) => return Err(self.unreachable(format!("topic {topic} could not be made: {code}"))),
        }
        self.await_leaders().await
    }

    async fn await_leaders(&self) -> Result<TopicDescription, LogError> {
        loop {
            let described = self.describe().await?;
            if let Some(topic) = described.filter(|topic| topic.partitions.iter().all(|partition| partition.has_leader))
            {
                return Ok(topic);
            }
            if Instant::now() >= self.deadline {
                return Err(self.unreachable("the new topic has no leaders"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn place(&self) -> String {
        format!("Kafka topic {}", self.config.topic)
    }

    fn check(&self, found: &TopicDescription) -> Result<(), LogError> {
        let KafkaConfig { topic, shards, replication, expected_topic_id, .. } = &self.config;
        if let Some(expected) = expected_topic_id.as_ref().filter(|expected| **expected != found.id) {
            let (topic, expected, found) = (topic.clone(), expected.clone(), found.id.clone());
            return Err(LogError::Recreated { topic, expected, found });
        }
        if found.partitions.len() != usize::from(*shards) {
            let remedy = format!(
                "the number of shards is fixed when the topic is made; configure it as it is, or name another topic than one of \
                 {shards} shards"
            );
            return Err(misconfigured(&self.place(), "partitions", found.partitions.len(), remedy));
        }
        let copies = found.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
        if copies < usize::from(*replication) {
            let remedy = format!(
                "{replication} copies are asked for: add some with kafka-reassign-partitions, or, for development alone, ask for as many \
                 as there are"
            );
            return Err(misconfigured(&self.place(), "replication factor", copies, remedy));
        }
        if *replication == 1 {
            warn!(topic, "each entry is on one broker alone: what its disk loses is lost");
        }
        Ok(())
    }

    /// Gives `min.insync.replicas`.
    async fn check_settings(&self) -> Result<u16, LogError> {
        let topic = &self.config.topic;
        let settings = self.topic_settings().await?;
        let demands = [
            ("cleanup.policy", Demand::Is("delete")),
            ("retention.ms", Demand::Is("-1")),
            ("retention.bytes", Demand::Is("-1")),
            ("unclean.leader.election.enable", Demand::Is("false")),
            // By the clocks of the brokers: one wrong clock of a node must not make its appends fail.
            ("message.timestamp.type", Demand::Is("LogAppendTime")),
            ("max.message.bytes", Demand::AtLeast(MAX_BATCH_BYTES as u64)),
            ("min.insync.replicas", Demand::AtLeast(self.config.min_in_sync().into())),
        ];
        for (setting, demand) in demands {
            let value = value_of(&settings, setting);
            if let Some(wanted) = demand.refuses(value) {
                let remedy = format!(
                    "entries could be lost or refused; it has to be {wanted}: kafka-configs --alter --topic {topic} --add-config \
                     {setting}={}",
                    demand.remedy()
                );
                return Err(misconfigured(&self.place(), setting, value, remedy));
            }
        }
        Ok(value_of(&settings, "min.insync.replicas").parse().unwrap_or_else(|_| self.config.min_in_sync()))
    }

    /// A broker that has not heard of a new topic tells nothing of it, and is asked again.
    async fn topic_settings(&self) -> Result<HashMap<String, ConfigEntry>, LogError> {
        loop {
            let asked = self.settings(ResourceSpecifier::Topic(&self.config.topic)).await;
            match asked {
                Ok(settings) if !settings.is_empty() => return Ok(settings),
                _ if Instant::now() < self.deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Ok(_) => return Err(self.unreachable("no broker tells the topic's settings")),
                Err(error) => return Err(self.unreachable(error)),
            }
        }
    }

    /// What can be seen of the brokers. Who may not see it is told so, and trusted.
    async fn check_brokers(&self) -> Result<(), LogError> {
        let (admin, timeout) = (self.admin.clone(), self.left());
        let metadata = blocking(move || {
            let metadata = admin.inner().fetch_metadata(None, timeout);
            Ok(metadata.map(|metadata| metadata.brokers().iter().map(|broker| broker.id()).collect::<Vec<_>>()))
        });
        let brokers = metadata.await?.map_err(|e| self.unreachable(e))?;
        for broker in brokers.into_iter().take(BROKERS_ASKED) {
            match self.settings(ResourceSpecifier::Broker(broker)).await {
                Ok(settings) => self.check_broker(broker, &settings)?,
                Err(error) => warn!(broker, %error, "the settings of a kafka broker could not be checked"),
            }
        }
        Ok(())
    }

    fn check_broker(&self, broker: i32, settings: &HashMap<String, ConfigEntry>) -> Result<(), LogError> {
        let session = value_of(settings, "broker.session.timeout.ms");
        if session.parse().is_ok_and(|session: u64| session > ADVISED_SESSION_MS) {
            warn!(
                broker,
                value = session,
                advised = ADVISED_SESSION_MS,
                "broker.session.timeout.ms is long: after the death of a broker its shards take no turns until then"
            );
        }
        // While eligible leader replicas are on, the cluster itself has a value for this, which cannot be removed; there is no other sign that
        // librdkafka can see.
        let in_sync = settings.get("min.insync.replicas");
        let is_set = in_sync.is_some_and(|entry| entry.source == ConfigSource::DynamicDefaultBroker);
        if self.config.replication > 1 && !is_set {
            let remedy = "entries that were acknowledged could be lost when brokers fail one after the other; switch it on: kafka-features upgrade \
                          --feature eligible.leader.replicas.version=1"
                .to_owned();
            return Err(misconfigured(
                &format!("Kafka broker {broker}"),
                "eligible.leader.replicas.version",
                0,
                remedy,
            ));
        }
        Ok(())
    }

    async fn settings(&self, of: ResourceSpecifier<'_>) -> Result<HashMap<String, ConfigEntry>, KafkaError> {
        let options = AdminOptions::new().request_timeout(Some(self.left()));
        let described = self.admin.describe_configs([&of], &options).await?;
        let described = described.into_iter().next().ok_or(KafkaError::NoMessageReceived)?;
        let entries = described.map_err(KafkaError::AdminOp)?.entries;
        Ok(entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect())
    }
}

impl Demand {
    /// What is wanted instead, in words.
    fn refuses(&self, value: &str) -> Option<String> {
        match self {
            Self::Is(wanted) => (value != *wanted).then(|| (*wanted).to_owned()),
            Self::AtLeast(least) => {
                let is_enough = value.parse().is_ok_and(|value: u64| value >= *least);
                (!is_enough).then(|| format!("{least} or more"))
            }
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Is(wanted) => (*wanted).to_owned(),
            Self::AtLeast(least) => least.to_string(),
        }
    }
}

/// Empty for what the broker does not tell.
fn value_of<'a>(settings: &'a HashMap<String, ConfigEntry>, setting: &str) -> &'a str {
    settings.get(setting).and_then(|entry| entry.value.as_deref()).unwrap_or_default()
}

fn misconfigured(place: &str, setting: &str, value: impl ToString, remedy: String) -> LogError {
    LogError::Misconfigured { place: place.into(), setting: setting.into(), value: value.to_string(), remedy }
}
