//! Brokers, topics and logs for the tests.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use parlance_cluster_log::{AppendOutcome, KafkaConfig, KafkaLog, LogError, ShardLog};
use parlance_cluster_protocol::ShardId;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use tempfile::TempDir;
use tokio::sync::{OnceCell, oneshot};

/// The broker that `make services` starts.
pub(crate) const SHARED: &str = "127.0.0.1:19092";
/// How often a broker is started again whose port is taken.
const PORT_TRIES: u32 = 5;
const NO_BROKER: &str = "Does Kafka run? `make services` installs and starts it.";
/// How long a test waits for what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// A topic of a test that must be over.
const OLD: Duration = Duration::from_secs(30 * 60);
pub(crate) const SHARD: ShardId = ShardId(1);

/// A name that no other topic has, in this run or another.
pub(crate) fn fresh_topic() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970").as_nanos();
    format!("test-{}-{nanos}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// For one broker, with few shards.
pub(crate) fn config(bootstrap: &str, topic: &str) -> KafkaConfig {
    KafkaConfig { topic: topic.into(), shards: 4, replication: 1, ..KafkaConfig::new(bootstrap) }
}

/// Opens a log on the shared broker.
pub(crate) async fn shared(topic: &str) -> KafkaLog {
    static SWEPT: OnceCell<()> = OnceCell::const_new();
    SWEPT.get_or_init(sweep).await;
    open(config(SHARED, topic)).await
}

/// Deletes what earlier runs left on the shared broker, which runs for days.
async fn sweep() {
    let admin = admin(SHARED);
    let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(5)) else { return };
    let is_old = |name: &&str| {
        let made = name.strip_prefix("test-").and_then(|name| name.split('-').nth(1)?.parse().ok());
        made.is_some_and(|made: u128| made + OLD.as_nanos() < now_nanos())
    };
    let old: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).filter(is_old).collect();
    if !old.is_empty() {
        // Another run may be at it too.
        let _ = admin.delete_topics(&old, &AdminOptions::new()).await;
    }
}

fn now_nanos() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_nanos()
}

pub(crate) async fn open(config: KafkaConfig) -> KafkaLog {
    KafkaLog::open(config).await.unwrap_or_else(|error| panic!("{error}\n{NO_BROKER}"))
}

pub(crate) async fn refused(config: KafkaConfig) -> LogError {
    let is_shared = config.bootstrap == SHARED;
    match KafkaLog::open(config).await {
        Ok(_) => panic!("the log opened"),
        Err(LogError::Unreachable { reason, .. }) if is_shared => panic!("{reason}\n{NO_BROKER}"),
        Err(error) => error,
    }
}

pub(crate) fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a client can be made")
}

/// Makes a topic of four partitions as a log needs it, but for what `settings` say.
pub(crate) async fn make_topic(bootstrap: &str, name: &str, replication: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, 4, TopicReplication::Fixed(replication))
        .set("retention.ms", "-1")
        .set("max.message.bytes", "2097152")
        .set("message.timestamp.type", "LogAppendTime");
    for (setting, value) in settings {
        topic = topic.set(setting, value);
    }
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let made = admin(bootstrap).create_topics([&topic], &options).await;
    let made = made.unwrap_or_else(|error| panic!("{error}\n{NO_BROKER}"));
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

pub(crate) async fn delete_topic(bootstrap: &str, name: &str) {
    let deleted = admin(bootstrap).delete_topics(&[name], &AdminOptions::new()).await.expect("the broker answers");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

/// Begins an append; the outcomes come by the channel, or its sender is dropped.
pub(crate) fn begin(log: &dyn ShardLog, shard: ShardId, entries: Vec<Bytes>) -> oneshot::Receiver<Vec<AppendOutcome>> {
    let (done, outcomes) = oneshot::channel();
    // A test may have given up.
    log.append(shard, entries, Box::new(move |outcomes| drop(done.send(outcomes))));
    outcomes
}

/// Waits until the log takes new turns.
pub(crate) async fn until_admission(log: &KafkaLog) {
    let begun = Instant::now();
    while let Err(error) = log.admission() {
        assert!(begun.elapsed() < PATIENCE, "still refused: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until `what` holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A broker of a test's own, killed with this.
pub(crate) struct Broker {
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    /// Whether its cluster has eligible leader replicas.
    has_eligible: bool,
}

impl Broker {
    pub(crate) fn start() -> Self {
        Self::start_with(|_, _| Vec::new())
    }

    /// With the settings that `settings` says for its directory and its port.
    pub(crate) fn start_with(settings: impl FnOnce(&Path, u16) -> Vec<String>) -> Self {
        let mut broker = Self::prepare(free_ports(), Vec::new(), true);
        broker.settings = settings(broker.directory.path(), broker.port);
        broker.restart();
        broker
    }

    /// Three brokers of one cluster, which has eligible leader replicas or not.
    pub(crate) fn start_three(has_eligible: bool) -> Vec<Self> {
        let ports: Vec<u16> = (0..3).map(|_| free_ports()).collect();
        let voters: Vec<String> = (1..).zip(&ports).map(|(id, port)| format!("{id}@127.0.0.1:{}", port + 1)).collect();
        let voters = voters.join(",");
        let brokers: Vec<Self> = (1..)
            .zip(ports)
            .map(|(id, port)| {
                Self::prepare(
                    port,
                    vec![format!("node.id={id}"), format!("controller.quorum.voters={voters}")],
                    has_eligible,
                )
            })
            .collect();
        // None starts before most do.
        std::thread::scope(|scope| brokers.iter().for_each(|broker| drop(scope.spawn(|| broker.restart()))));
        brokers
    }

    fn prepare(port: u16, settings: Vec<String>, has_eligible: bool) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self { directory, port, settings, has_eligible }
    }

    /// Starts it on its ports. Some connection of the machine's may have one of them for a moment, while it was down.
    pub(crate) fn restart(&self) {
        for tries in 0.. {
            let mut command = Command::new(script());
            command.arg("start").arg(self.directory.path()).arg(self.port.to_string()).args(&self.settings);
            command.env("KAFKA_ELIGIBLE_LEADER_REPLICAS", if self.has_eligible { "1" } else { "0" });
            let output = command.output().expect("the script runs");
            if output.status.success() {
                return;
            }
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let taken = tries < PORT_TRIES && log.contains("Address already in use");
            assert!(taken, "{}\n{log}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn stop(&self) {
        let stopped = Command::new(script()).arg("stop").arg(self.directory.path()).output().expect("the script runs");
        assert!(stopped.status.success(), "{stopped:?}");
    }

    /// Its disk forgets what a shard held.
    pub(crate) fn lose(&self, topic: &str, shard: ShardId) {
        let partition = self.directory.path().join(format!("data/{topic}-{}", shard.0));
        for file in std::fs::read_dir(partition).expect("the broker had the partition") {
            let path = file.expect("it can be listed").path();
            if path.file_name().is_some_and(|name| name != "partition.metadata") {
                std::fs::remove_file(path).expect("it can be removed");
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.directory.path().join("pid")).expect("it was started");
        let status = Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs");
        assert!(status.success(), "the broker is gone");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have been killed by its test.
        if let Ok(pid) = std::fs::read_to_string(self.directory.path().join("pid")) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).stderr(std::process::Stdio::null()).status();
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/kafka")
}

/// Two neighbouring ports that are free now. Whoever takes one meanwhile makes the broker end, and the test say so.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = first.local_addr().expect("bound").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}
