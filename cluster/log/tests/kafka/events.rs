//! Events in a topic of Kafka.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parlance_cluster_log::{
    EVENT_CONTENT_TYPE, EventMessage, EventPublisher as _, KafkaConfig, KafkaEvents, LogError, conformance,
};
use parlance_cluster_protocol::ShardId;
use rdkafka::{
    ClientConfig, Message as _, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};

use crate::support::{Broker, PATIENCE, SHARD, SHARED, config, delete_topic, fresh_topic, make_topic, until};

async fn open(config: KafkaConfig) -> KafkaEvents {
    KafkaEvents::open(config).await.unwrap_or_else(|error| panic!("{error}\nDoes Kafka run? `make services`"))
}

/// What the shard's partition holds.
fn published(bootstrap: &str, topic: &str, shard: ShardId) -> Vec<EventMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer can be made");
    let partition = i32::from(shard.0);
    let (start, end) = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the broker answers");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, rdkafka::Offset::Beginning).expect("an offset");
    consumer.assign(&from).expect("assigned");
    let messages = (start..end).map(|_| {
        let message = consumer.poll(PATIENCE).expect("it is there").expect("it can be read");
        let headers = message.headers().expect("it has headers");
        let header = headers.get_as::<str>(0).expect("text");
        assert_eq!((headers.count(), header.key, header.value), (1, "content-type", Some(EVENT_CONTENT_TYPE)));
        let bytes = |part: Option<&[u8]>| Bytes::copy_from_slice(part.unwrap_or_default());
        EventMessage { key: bytes(message.key()), payload: bytes(message.payload()) }
    });
    messages.collect()
}

fn event(number: u32) -> EventMessage {
    EventMessage { key: "key".into(), payload: number.to_string().into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_kafka_keep_the_promises_of_the_port() {
    let topic = fresh_topic();
    let events = open(KafkaConfig { shards: conformance::events::SHARDS, ..config(SHARED, &topic) }).await;
    let read = async |shard| tokio::task::block_in_place(|| published(SHARED, &topic, shard));
    conformance::events::check_all(Arc::new(events), read).await;
}

#[tokio::test]
async fn a_topic_with_too_few_partitions_is_refused() {
    let topic = fresh_topic();
    make_topic(SHARED, &topic, 1, &[]).await;
    open(config(SHARED, &topic)).await;
    let refused = KafkaEvents::open(KafkaConfig { shards: 5, ..config(SHARED, &topic) }).await;
    let Err(error @ LogError::Misconfigured { .. }) = refused else { panic!("{refused:?}") };
    for part in [&topic, "partitions = 4", "kafka-topics --alter", "--partitions 5"] {
        assert!(error.to_string().contains(part), "{error} does not say {part}");
    }
}

/// Without the idempotent, gapless producer an outage leaves a hole in the middle of a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_outage_interrupted_is_published_again_without_a_gap() {
    let (broker, topic) = (Broker::start(), fresh_topic());
    let address = broker.address();
    let events = open(config(&address, &topic)).await;
    events.publish(SHARD, vec![event(0)]).await.expect("published");
    broker.signal("-STOP");
    let batch: Vec<_> = (1..400).map(event).collect();
    let failed = events.publish(SHARD, batch.clone()).await;
    assert!(matches!(failed, Err(LogError::Unreachable { .. })), "{failed:?}");
    broker.signal("-CONT");
    until("the broker's return", async || events.publish(SHARD, batch.clone()).await.is_ok()).await;
    let published = tokio::task::block_in_place(|| published(&address, &topic, SHARD));
    let numbers = published.iter().map(|event| std::str::from_utf8(&event.payload).ok()?.parse().ok());
    let numbers: Vec<u32> = numbers.collect::<Option<_>>().expect("numbers");
    // Each number is new, or was there before.
    let mut highest = 0;
    for number in &numbers {
        assert!(*number <= highest + 1, "{number} behind {highest}");
        highest = highest.max(*number);
    }
    assert_eq!(highest, 399, "{} messages", numbers.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_vanished_fails_and_is_no_gap() {
    let topic = fresh_topic();
    let events = open(config(SHARED, &topic)).await;
    events.publish(SHARD, vec![event(0)]).await.expect("published");
    delete_topic(SHARED, &topic).await;
    let failed = tokio::time::timeout(Duration::from_secs(30), events.publish(SHARD, vec![event(1)])).await;
    assert!(matches!(failed, Ok(Err(LogError::Unreachable { .. }))), "{failed:?}");
    make_topic(SHARED, &topic, 1, &[]).await;
    until("the topic's return", async || events.publish(SHARD, vec![event(1)]).await.is_ok()).await;
    let published = tokio::task::block_in_place(|| published(SHARED, &topic, SHARD));
    assert!(!published.is_empty() && published.iter().all(|published| *published == event(1)), "{published:?}");
}
