//! What the log refuses when it is opened, and what it says then.

use std::time::{Duration, Instant};

use parlance_cluster_log::{KafkaConfig, KafkaTls, LogError, ShardLog, conformance::append_one};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};

use crate::support::{SHARD, SHARED, admin, config, delete_topic, fresh_topic, make_topic, refused, shared, until};

async fn refuses(settings: &[(&str, &str)], says: &[&str]) {
    let topic = fresh_topic();
    make_topic(SHARED, &topic, 1, settings).await;
    let error = refused(config(SHARED, &topic)).await;
    assert!(matches!(error, LogError::Misconfigured { .. }), "{error}");
    let message = error.to_string();
    for part in [&topic[..]].iter().chain(says) {
        assert!(message.contains(part), "{message} does not say {part}");
    }
}

#[tokio::test]
async fn a_topic_that_would_forget_is_refused() {
    refuses(&[("retention.ms", "1000000")], &["retention.ms = 1000000", "--add-config retention.ms=-1"]).await;
    refuses(&[("retention.bytes", "1000000")], &["retention.bytes = 1000000", "--add-config retention.bytes=-1"]).await;
    refuses(&[("cleanup.policy", "compact")], &["cleanup.policy = compact", "cleanup.policy=delete"]).await;
    refuses(&[("unclean.leader.election.enable", "true")], &["unclean.leader.election.enable = true"]).await;
}

#[tokio::test]
async fn a_topic_that_would_refuse_entries_is_refused() {
    refuses(&[("max.message.bytes", "1048576")], &["max.message.bytes = 1048576", "max.message.bytes=1064960"]).await;
    refuses(&[("message.timestamp.type", "CreateTime")], &["message.timestamp.type = CreateTime", "LogAppendTime"])
        .await;
}

#[tokio::test]
async fn a_topic_as_a_log_needs_it_is_taken() {
    let topic = fresh_topic();
    make_topic(SHARED, &topic, 1, &[]).await;
    assert_eq!(shared(&topic).await.shards(), 4);
}

#[tokio::test]
async fn the_number_of_shards_is_fixed() {
    let topic = fresh_topic();
    drop(shared(&topic).await);
    let error = refused(KafkaConfig { shards: 8, ..config(SHARED, &topic) }).await.to_string();
    assert!(error.contains("partitions = 4") && error.contains("fixed when the topic is made"), "{error}");
    for shards in [0, 16_385] {
        let error = refused(KafkaConfig { shards, ..config(SHARED, &topic) }).await.to_string();
        assert!(error.contains(&format!("shards = {shards}")) && error.contains("1 to 16384"), "{error}");
    }
}

#[tokio::test]
async fn one_copy_has_to_be_asked_for() {
    let topic = fresh_topic();
    // There is one broker, so three copies cannot be made.
    let error = refused(KafkaConfig { replication: 3, ..config(SHARED, &topic) }).await.to_string();
    assert!(error.contains("replication factor = 3") && error.contains("1 for development"), "{error}");
    make_topic(SHARED, &topic, 1, &[]).await;
    let error = refused(KafkaConfig { replication: 3, ..config(SHARED, &topic) }).await.to_string();
    assert!(error.contains("replication factor = 1") && error.contains("kafka-reassign-partitions"), "{error}");
}

#[tokio::test]
async fn brokers_that_are_not_there_are_named_in_time() {
    let begun = Instant::now();
    let config = KafkaConfig { open_timeout: Duration::from_secs(2), ..config("127.0.0.1:1", "parlance.shards") };
    let error = refused(config).await;
    assert!(matches!(error, LogError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("cannot reach Kafka at 127.0.0.1:1"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn files_and_options_that_cannot_be_used_are_told() {
    let missing = KafkaTls { ca: Some("/no/such/authorities.pem".into()), identity: None };
    let error = refused(KafkaConfig { tls: Some(missing), ..config(SHARED, &fresh_topic()) }).await.to_string();
    assert!(error.contains("cannot use /no/such/authorities.pem"), "{error}");
    let wrong = KafkaTls { ca: Some("/dev/null".into()), identity: None };
    let error = refused(KafkaConfig { tls: Some(wrong), ..config(SHARED, &fresh_topic()) }).await.to_string();
    assert!(error.contains("ssl.ca.location") && error.contains("check the certificates"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_is_refused_and_shuts_an_open_log() {
    let topic = fresh_topic();
    let log = shared(&topic).await;
    let id = log.topic_id().to_owned();
    append_one(&log, SHARD, "lost").await;
    delete_topic(SHARED, &topic).await;
    until("the new topic", async || {
        let new = NewTopic::new(&topic, 4, TopicReplication::Fixed(1))
            .set("retention.ms", "-1")
            .set("max.message.bytes", "2097152")
            .set("message.timestamp.type", "LogAppendTime");
        let made = admin(SHARED).create_topics([&new], &AdminOptions::new()).await.expect("the broker answers");
        made.iter().all(Result::is_ok)
    })
    .await;
    until("the end of the log", async || matches!(log.admission(), Err(LogError::Recreated { .. }))).await;
    assert!(matches!(log.bounds(SHARD).await, Err(LogError::Recreated { .. })));
    assert!(matches!(log.read(SHARD, parlance_cluster_protocol::Offset(0), 1).await, Err(LogError::Recreated { .. })));
    let expecting = KafkaConfig { expected_topic_id: Some(id.clone()), ..config(SHARED, &topic) };
    let error = refused(expecting).await;
    assert!(
        matches!(&error, LogError::Recreated { expected, found, .. } if *expected == id && *found != id),
        "{error}"
    );
    let again = shared(&topic).await;
    let expecting = KafkaConfig { expected_topic_id: Some(again.topic_id().into()), ..config(SHARED, &topic) };
    crate::support::open(expecting).await;
}
