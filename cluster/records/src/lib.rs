//! The record store: sessions, their histories, dedupe and delivery state, as a view of the log's committed records.
//!
//! [`RecordStore`] is the port; [`LocalRecords`] is the embedded store behind it, for one node, and `ScyllaRecords` (feature `scylla`) the one
//! that the nodes of a cluster share, in Scylla or Cassandra. Rows are written from committed log
//! records only, each with the position of the record that made it, so that a replay, a repeated batch or a late one
//! leaves the same rows behind. What the port promises is written down as tests in the `conformance` module, which
//! every adapter runs.

#[doc(hidden)]
pub mod conformance;
mod error;
mod limits;
mod local;
mod metrics;
mod port;
#[cfg(feature = "scylla")]
mod scylla;

#[cfg(feature = "scylla")]
pub use self::scylla::{Credentials, Replication, ScyllaOptions, ScyllaRecords, TlsOptions};
pub use error::RecordsError;
pub use limits::MAX_ID_BYTES;
pub use local::{LocalOptions, LocalRecords, MAX_VALUE_BYTES};
pub use port::{At, Change, ChangeKind, MAX_POSITION, Order, RecordStore, Row, StoredItem, StoredSession};
