//! The shard log: a durable, ordered log per shard that owns all session state, and the rules that make its owner the only one.
//!
//! [`ShardLog`] is the port. What counts among the entries, who owns a shard and when a record is committed is decided by one pure
//! state machine, [`ownership`], for every adapter and every reader. [`EventPublisher`] is the port of what is published of it for others.

#[doc(hidden)]
pub mod conformance;
mod error;
mod events;
#[cfg(feature = "kafka")]
mod kafka;
mod local;
mod metrics;
pub mod ownership;
mod port;
pub mod sim;

pub use error::LogError;
pub use events::{EVENT_CONTENT_TYPE, EventMessage, EventPublisher};
#[cfg(feature = "kafka")]
pub use kafka::{KafkaConfig, KafkaEvents, KafkaLog, KafkaSasl, KafkaTls, SaslMechanism};
pub use local::{LocalLog, LocalLogOptions};
pub use port::{AppendDone, AppendOutcome, Bounds, MAX_ENTRY_BYTES, ShardLog, StoredEntry};
