//! Three brokers, as in production.

use std::time::Duration;

use bytes::Bytes;
use parlance_cluster_log::{
    AppendOutcome, KafkaConfig, LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{Broker, SHARD, config, fresh_topic, make_topic, open, refused, until, until_admission};

fn replicated(brokers: &[Broker]) -> KafkaConfig {
    let bootstrap: Vec<String> = brokers.iter().map(Broker::address).collect();
    KafkaConfig {
        replication: 3,
        admission_grace: Duration::from_secs(1),
        ..config(&bootstrap.join(","), &fresh_topic())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_may_die_and_two_may_not() {
    let brokers = Broker::start_three(true);
    let config = replicated(&brokers);
    too_few_in_sync_are_refused(&config).await;
    let log = open(config.clone()).await;
    let mut acknowledged = Vec::new();
    for shard in (0..4).map(ShardId) {
        acknowledged.push((shard, append_one(&log, shard, format!("of {shard}")).await));
    }
    brokers[0].signal("-KILL");
    for shard in (0..4).map(ShardId) {
        until("a new leader", async || {
            matches!(append(&log, shard, vec![Bytes::from_static(b"after")]).await[..], [AppendOutcome::At(_)])
        })
        .await;
    }
    // Two in sync are enough.
    until_admission(&log).await;
    for (shard, offset) in &acknowledged {
        let stored = read_all(&log, *shard).await;
        assert_eq!(stored[offset.0 as usize].bytes, format!("of {shard}"));
    }
    brokers[1].signal("-KILL");
    until("refusal of new turns", async || log.admission().is_err()).await;
    assert_eq!(append(&log, SHARD, vec![Bytes::from_static(b"alone")]).await, [AppendOutcome::Unknown]);
    brokers[0].restart();
    until_admission(&log).await;
    until("an acknowledged append", async || {
        matches!(append(&log, SHARD, vec![Bytes::from_static(b"again")]).await[..], [AppendOutcome::At(_)])
    })
    .await;
    assert!(log.read(SHARD, Offset(0), 1).await.is_ok(), "nothing was truncated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_without_eligible_leader_replicas_are_refused() {
    let brokers = Broker::start_three(false);
    let error = refused(replicated(&brokers)).await;
    assert!(matches!(error, LogError::Misconfigured { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("eligible.leader.replicas.version = 0") && error.contains("kafka-features upgrade"),
        "{error}"
    );
}

async fn too_few_in_sync_are_refused(config: &KafkaConfig) {
    let topic = fresh_topic();
    make_topic(&config.bootstrap, &topic, 3, &[("min.insync.replicas", "1")]).await;
    let error = refused(KafkaConfig { topic: topic.clone(), ..config.clone() }).await;
    assert!(matches!(error, LogError::Misconfigured { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("min.insync.replicas = 1") && error.contains("min.insync.replicas=2"), "{error}");
}
