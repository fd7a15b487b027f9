//! The record store: sessions, their histories, dedupe and delivery state, as a view of the log's committed records.
//!
//! [`RecordStore`] is the port and [`LocalRecords`] the embedded store behind it. Rows are written from committed log
//! records only, each with the position of the record that made it, so that a replay, a repeated batch or a late one
//! leaves the same rows behind. What the port promises is written down as tests in the `conformance` module, which
//! every adapter runs.

#[doc(hidden)]
pub mod conformance;
mod error;
mod local;
mod metrics;
mod port;

pub use error::RecordsError;
pub use local::{LocalOptions, LocalRecords, MAX_ID_BYTES, MAX_VALUE_BYTES};
pub use port::{At, Change, ChangeKind, Order, RecordStore, Row, StoredItem, StoredSession};
