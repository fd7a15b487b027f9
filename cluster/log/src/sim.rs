//! A log in memory that fails on purpose, by a seed: the same seed and the same calls give the same faults.
//!
//! [`SimCore`] is the log itself, with a clock of its own that only moves when it is told to: for plain loops that step through
//! time. [`SimLog`] puts it behind the [`ShardLog`](crate::ShardLog) port, on tokio's clock: for actors and the
//! conformance suite. The entries live in the [`SimCluster`], as those of a real log live in its brokers; each process opens
//! its own [`SimLog`], and can be paused or crashed alone. [`SimEvents`] takes published events.

#[cfg(test)]
mod chaos;
mod core;
mod events;
mod faults;
mod log;

pub use self::core::{Answer, AppendId, ClientId, SimCore};
pub use events::SimEvents;
pub use faults::{Fault, FaultCounts, Faults};
pub use log::{SimCluster, SimLog};
