//! How Kafka is reached, and what each of the log's clients is told.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::{MAX_QUEUED_BYTES, MAX_QUEUED_ENTRIES};
use crate::MAX_ENTRY_BYTES;

/// The largest batch that is sent: one of the largest entries, and what Kafka writes around it.
pub(super) const MAX_BATCH_BYTES: usize = MAX_ENTRY_BYTES + 16 * 1024;
/// What is fetched of one partition at once, and what waits of it: a partition holds at most both.
pub(super) const FETCH_BYTES: usize = 1024 * 1024;
/// How long a broker holds a fetch for which it has nothing. Partitions that join the fetch wait for it too.
const FETCH_WAIT: Duration = Duration::from_millis(20);
/// How long until a lost connection is tried again: at first, and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How long until an event that was not acknowledged is given up: longer than brokers take to follow a leader that died.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a [`KafkaLog`](super::KafkaLog) reaches its brokers, and what its topic has to be like.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// Brokers to begin with: `HOST:PORT,…`.
    pub bootstrap: String,
    /// The topic; one partition per shard. Made where there is none.
    pub topic: String,
    /// How many shards the log has, 1 to 16,384. Fixed when the topic is made.
    pub shards: u16,
    /// How many brokers hold each entry. With 3, each has to be on 2 before it counts, and one broker may be lost; 1 is for development: what
    /// its disk loses is lost.
    pub replication: u16,
    /// The id of the topic as it was seen before, from [`KafkaLog::topic_id`](super::KafkaLog::topic_id). Another topic of the same name is
    /// refused.
    pub expected_topic_id: Option<String>,
    /// Encryption; none where there is none.
    pub tls: Option<KafkaTls>,
    /// Who we are; nobody where there is none.
    pub sasl: Option<KafkaSasl>,
    /// How long until the outcome of an entry counts as unknown.
    pub append_timeout: Duration,
    /// How long a broker may take to answer. Shorter than `append_timeout`, or a broker that hangs is never left for another in time.
    pub socket_timeout: Duration,
    /// How long a read, a trim or a look at the bounds may take.
    pub request_timeout: Duration,
    /// How long opening may take to find the brokers.
    pub open_timeout: Duration,
    /// For how long the brokers may be out of reach, or too few in sync, before new turns are refused. Longer than the brokers take to
    /// follow a leader that died, which is `broker.session.timeout.ms` and a moment.
    pub admission_grace: Duration,
}

/// TLS towards the brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaTls {
    /// Certificates of the authorities that sign the brokers', as PEM; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, as PEM, where brokers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A name and a password for the brokers.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSasl {
    /// How they are proved.
    pub mechanism: SaslMechanism,
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// How a password is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// It is sent. Only over TLS.
    Plain,
    /// Salted challenge and response with SHA-256.
    ScramSha256,
    /// Salted challenge and response with SHA-512.
    ScramSha512,
}

/// Without the password.
impl fmt::Debug for KafkaSasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mechanism, user, password: _ } = self;
        f.debug_struct("KafkaSasl").field("mechanism", mechanism).field("user", user).finish_non_exhaustive()
    }
}

impl KafkaConfig {
    /// A log of 64 shards in topic `parlance.shards`, three times each.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            topic: "parlance.shards".into(),
            shards: 64,
            replication: 3,
            expected_topic_id: None,
            tls: None,
            sasl: None,
            append_timeout: Duration::from_secs(3),
            socket_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
            admission_grace: Duration::from_secs(5),
        }
    }

    /// The files that are named, which have to be readable.
    pub(super) fn files(&self) -> Vec<&Path> {
        let Some(KafkaTls { ca, identity }) = &self.tls else { return Vec::new() };
        let identity = identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        ca.iter().chain(identity).map(PathBuf::as_path).collect()
    }

    /// On how many brokers an entry has to be before it counts.
    pub(super) fn min_in_sync(&self) -> u16 {
        self.replication.min(2)
    }

    /// What all clients have in common.
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", "parlance-log")
            .set("socket.timeout.ms", millis(self.socket_timeout))
            .set("socket.connection.setup.timeout.ms", millis(self.socket_timeout.max(Duration::from_secs(1))))
            .set("reconnect.backoff.ms", millis(RECONNECT.0))
            .set("reconnect.backoff.max.ms", millis(RECONNECT.1))
            .set("allow.auto.create.topics", "false")
            .set("security.protocol", self.protocol())
            .set_log_level(RDKafkaLogLevel::Warning);
        self.authenticate(&mut client);
        client
    }

    fn protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }

    fn authenticate(&self, client: &mut ClientConfig) {
        if let Some(KafkaTls { ca, identity }) = &self.tls {
            match ca {
                Some(ca) => client.set("ssl.ca.location", ca.to_string_lossy()),
                // The OpenSSL in here was built elsewhere than where its authorities are.
                None => client.set("ssl.ca.location", "probe"),
            };
            if let Some((certificate, key)) = identity {
                client.set("ssl.certificate.location", certificate.to_string_lossy());
                client.set("ssl.key.location", key.to_string_lossy());
            }
        }
        if let Some(KafkaSasl { mechanism, user, password }) = &self.sasl {
            let mechanism = match mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client.set("sasl.mechanisms", mechanism).set("sasl.username", user).set("sasl.password", password);
        }
    }

    /// For questions about the topic. Nobody takes what this client says by itself, so it says nothing.
    pub(super) fn admin(&self) -> ClientConfig {
        let mut client = self.client();
        client.set_log_level(RDKafkaLogLevel::Emerg);
        client
    }

    /// Idempotent and in order, acknowledged by all that are in sync, one message per entry.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", millis(self.append_timeout))
            .set("request.timeout.ms", millis(self.socket_timeout.min(self.append_timeout)))
            .set("message.max.bytes", MAX_BATCH_BYTES.to_string())
            // Of a first retry, which is common on a new topic; each further one waits twice as long. At 20 ms, such appends were measured at 40.
            .set("retry.backoff.ms", "4")
            .set("queue.buffering.max.messages", (2 * MAX_QUEUED_ENTRIES).to_string())
            .set("queue.buffering.max.kbytes", (2 * MAX_QUEUED_BYTES / 1024).to_string());
        client
    }

    /// As [`producer`](Self::producer), for batches of events: what is sent of one is its beginning. Patient, since what is given up is published twice.
    pub(super) fn event_producer(&self) -> ClientConfig {
        let mut client = self.producer();
        client
            .set("client.id", "parlance-events")
            .set("linger.ms", "5")
            .set("message.timeout.ms", millis(EVENT_TIMEOUT))
            .set("max.in.flight.requests.per.connection", "1")
            .set("enable.gapless.guarantee", "true");
        client
    }

    /// Partitions are assigned by hand. The group is a name that librdkafka wants; nobody joins it and no offset is committed.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut client = self.client();
        client
            .set("group.id", "parlance-log-unused")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_uncommitted")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", millis(FETCH_WAIT))
            .set("fetch.queue.backoff.ms", "2")
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.message.max.bytes", FETCH_BYTES.to_string())
            .set("fetch.max.bytes", (16 * FETCH_BYTES).to_string())
            .set("queued.max.messages.kbytes", (FETCH_BYTES / 1024).to_string());
        client
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let sasl =
            KafkaSasl { mechanism: SaslMechanism::ScramSha512, user: "parlance".into(), password: "s3cret".into() };
        let config =
            KafkaConfig { sasl: Some(sasl), tls: Some(KafkaTls::default()), ..KafkaConfig::new("broker:9093") };
        let shown = format!("{config:?}");
        assert!(shown.contains("parlance") && !shown.contains("s3cret"), "{shown}");
        assert!(!format!("{:?}", config.producer()).contains("s3cret"), "what the client shows of itself");
    }

    #[test]
    fn the_protocol_follows_from_what_is_asked_for() {
        let plain = KafkaConfig::new("broker:9092");
        let sasl = Some(KafkaSasl { mechanism: SaslMechanism::Plain, user: "u".into(), password: "p".into() });
        let tls = Some(KafkaTls { ca: Some("/ca.pem".into()), identity: Some(("/c.pem".into(), "/k.pem".into())) });
        let both = KafkaConfig { tls: tls.clone(), sasl: sasl.clone(), ..plain.clone() };
        for (config, protocol) in [
            (plain.clone(), "plaintext"),
            (KafkaConfig { tls, ..plain.clone() }, "ssl"),
            (KafkaConfig { sasl, ..plain }, "sasl_plaintext"),
        ] {
            assert_eq!(config.client().get("security.protocol"), Some(protocol));
        }
        let client = both.consumer();
        assert_eq!(client.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(client.get("ssl.ca.location"), Some("/ca.pem"));
        assert_eq!(client.get("ssl.key.location"), Some("/k.pem"));
        assert_eq!(client.get("sasl.mechanisms"), Some("PLAIN"));
    }

    #[test]
    fn librdkafka_takes_every_option() {
        let sasl = Some(KafkaSasl { mechanism: SaslMechanism::ScramSha256, user: "u".into(), password: "p".into() });
        let config = KafkaConfig { tls: Some(KafkaTls::default()), sasl, ..KafkaConfig::new("127.0.0.1:1") };
        for client in [config.admin(), config.consumer(), config.producer(), config.event_producer()] {
            client.create_native_config().expect("every option is known");
        }
        let _producer: rdkafka::producer::BaseProducer =
            config.producer().create().expect("TLS and SCRAM are compiled in");
    }
}
