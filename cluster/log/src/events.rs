use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_cluster_protocol::ShardId;

use crate::LogError;

/// The content type of every payload: a CloudEvent in JSON, envelope and data in one.
pub const EVENT_CONTENT_TYPE: &str = "application/cloudevents+json";

/// An event as its consumers get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventMessage {
    /// Whom it is about.
    pub key: Bytes,
    /// A CloudEvent 1.0 in JSON.
    pub payload: Bytes,
}

/// Where a log's events are published for others to consume: as many ordered sequences as the log has shards.
pub trait EventPublisher: Send + Sync + 'static {
    /// Publishes `events` behind everything that was published of `shard`, in their order. Of a shard, one batch at a time is under way; a
    /// second call waits for the first.
    ///
    /// *Cancel safety:* a call that is dropped may still publish some or all of them.
    ///
    /// # Errors
    ///
    /// [`LogError::OutOfRange`] for a shard that there is not; otherwise what keeps events from being published. Then some may be published,
    /// the first ones and no others: whoever publishes the same batch again leaves no gap.
    fn publish(&self, shard: ShardId, events: Vec<EventMessage>) -> BoxFuture<'_, Result<(), LogError>>;
}
