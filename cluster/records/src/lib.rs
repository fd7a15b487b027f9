//! The record store: sessions, their histories, dedupe and delivery state, as a view of the log's committed records.

mod error;
mod port;

pub use error::RecordsError;
pub use port::{At, Change, ChangeKind, Order, RecordStore, Row, StoredItem};
