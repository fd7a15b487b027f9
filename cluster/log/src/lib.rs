//! The shard log: a durable, ordered log per shard that owns all session state, and the rules that make its owner the only one.
//!
//! [`ShardLog`] is the port. What counts among the entries, who owns a shard and when a record is committed is decided by one pure
//! state machine, [`ownership`], for every adapter and every reader.

#[doc(hidden)]
pub mod conformance;
mod error;
#[cfg(feature = "kafka")]
mod kafka;
mod local;
mod metrics;
pub mod ownership;
mod port;
pub mod sim;

pub use error::LogError;
#[cfg(feature = "kafka")]
pub use kafka::{KafkaConfig, KafkaLog, KafkaSasl, KafkaTls, SaslMechanism};
pub use local::{LocalLog, LocalLogOptions};
pub use port::{AppendDone, AppendOutcome, Bounds, MAX_ENTRY_BYTES, ShardLog, StoredEntry};
