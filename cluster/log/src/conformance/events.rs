//! What every [`EventPublisher`] promises.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use parlance_cluster_protocol::ShardId;

use crate::{EventMessage, EventPublisher, LogError};

/// As many as the publisher under test has.
pub const SHARDS: u16 = 4;
/// As large as events ever come, all of a batch together.
const LARGE_BATCH: (usize, usize) = (500, 512);

/// Runs every check. `publisher` has [`SHARDS`] shards of which nothing was published; `published` reads back what was.
///
/// # Panics
///
/// If it breaks a promise.
pub async fn check_all(publisher: Arc<dyn EventPublisher>, published: impl AsyncFn(ShardId) -> Vec<EventMessage>) {
    assert_eq!(published(ShardId(0)).await, []);
    keeps_batches_in_order(&*publisher, &published).await;
    keeps_calls_in_order(&*publisher, &published).await;
    keeps_shards_apart(&*publisher, &published).await;
    refuses_a_shard_that_is_not(&*publisher).await;
    assert_eq!(published(ShardId(3)).await, [], "nothing was published of it");
}

fn event(key: &str, number: usize) -> EventMessage {
    EventMessage { key: Bytes::from(key.to_owned()), payload: Bytes::from(format!("{{\"number\":{number}}}")) }
}

async fn keeps_batches_in_order(
    publisher: &dyn EventPublisher,
    published: &impl AsyncFn(ShardId) -> Vec<EventMessage>,
) {
    let mut expected = Vec::new();
    for batch in [0..1, 1..1, 1..50, 50..52] {
        // Keys that repeat: the place follows from the shard alone.
        let events: Vec<_> = batch.map(|number| event(["one", "other", ""][number % 3], number)).collect();
        publisher.publish(ShardId(0), events.clone()).await.expect("published");
        expected.extend(events);
        assert_eq!(published(ShardId(0)).await, expected);
    }
}

async fn keeps_calls_in_order(publisher: &dyn EventPublisher, published: &impl AsyncFn(ShardId) -> Vec<EventMessage>) {
    let events = |call: usize| (0..7).map(|number| event("key", 7 * call + number)).collect::<Vec<_>>();
    // The futures take their turn when first polled, which is in this order.
    try_join_all((0..40).map(|call| publisher.publish(ShardId(1), events(call)))).await.expect("published");
    assert!(published(ShardId(1)).await.into_iter().eq((0..40).flat_map(events)));
}

async fn keeps_shards_apart(publisher: &dyn EventPublisher, published: &impl AsyncFn(ShardId) -> Vec<EventMessage>) {
    let (count, bytes) = LARGE_BATCH;
    let large = |fill: u8| EventMessage { key: "large".into(), payload: Bytes::from(vec![fill; bytes]) };
    let before = published(ShardId(1)).await.len();
    let batches = (0..3).map(|batch| publisher.publish(ShardId(2), vec![large(batch); count]));
    let (ends, other) = futures_util::join!(join_all(batches), publisher.publish(ShardId(1), vec![large(9)]));
    assert!(ends.iter().chain([&other]).all(Result::is_ok), "{ends:?} {other:?}");
    let expected = (0..3).flat_map(|batch| vec![large(batch); count]);
    assert!(published(ShardId(2)).await.into_iter().eq(expected));
    assert_eq!(published(ShardId(1)).await[before..], [large(9)]);
}

async fn refuses_a_shard_that_is_not(publisher: &dyn EventPublisher) {
    let refused = publisher.publish(ShardId(SHARDS), vec![event("key", 0)]).await;
    assert!(matches!(refused, Err(LogError::OutOfRange { .. })), "{refused:?}");
}
