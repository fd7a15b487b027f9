use std::{path::PathBuf, time::Duration};

use parlance_cluster_protocol::Position;
use thiserror::Error;

/// Why the record store cannot serve.
#[derive(Debug, Clone, Error)]
pub enum RecordsError {
    /// Another process has the store open.
    #[error("the records in {} are in use by another process: stop that one, or choose another --data directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The store's directory cannot be used.
    #[error("cannot open the records in {}: {reason}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the store said.
        reason: String,
    },
    /// The store was written by a newer release.
    #[error("the records in {} have schema version {found}, this build knows up to {supported}: upgrade parlance", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version that this build knows.
        supported: u32,
    },
    /// Stored bytes are wrong where no crash can have torn them.
    #[error("a stored {what} is damaged: {reason}; restore the records from a copy")]
    Damaged {
        /// The kind of row or file.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or value is longer than the store takes. Nothing of the same call was written.
    #[error("a {what} of {bytes} bytes is too large for the records, the limit is {limit}")]
    TooLarge {
        /// The kind of key or value.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// No space is left for new rows; reads go on. Writes go on by themselves once there is space.
    #[error("no space left for the records in {}: free some", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// A change has a position that the store cannot keep in order. Nothing of the same call was written.
    #[error("position {} is past the records' limit, {}: its log has to begin anew", position.0, limit.0)]
    PositionTooHigh {
        /// The position.
        position: Position,
        /// The highest that is taken.
        limit: Position,
    },
    /// No server of the store can be reached. It is tried again all the time.
    #[error("cannot reach the record store at {nodes}: {reason}; check that it runs, its addresses and the network")]
    Unreachable {
        /// The nodes to begin with, as configured.
        nodes: String,
        /// What the last one said.
        reason: String,
    },
    /// The store did not answer in time. Whether a write was made is unknown; making it again is harmless.
    #[error("the record store did not answer within {} ms: check its load and its logs", after.as_millis())]
    TimedOut {
        /// How long the answer was waited for.
        after: Duration,
    },
    /// The store refuses the user, or what the user may do there does not suffice.
    #[error("the record store refuses the user: {reason}; check the user, the password and the permissions")]
    Unauthorized {
        /// What the store said.
        reason: String,
    },
    /// The store refuses what it is told, and would again.
    #[error("the record store refuses a request: {reason}; check that the keyspace is parlance's own and complete")]
    Refused {
        /// What the store said.
        reason: String,
    },
    /// There is no such keyspace, and none is to be created.
    #[error(
        "the record store has no keyspace {keyspace}: create it, or configure its replication so that it is created"
    )]
    NoKeyspace {
        /// The keyspace.
        keyspace: String,
    },
    /// The tables were made by a newer release.
    #[error("keyspace {keyspace} has schema version {found}, this build knows up to {supported}: upgrade parlance")]
    NewerSchema {
        /// The keyspace.
        keyspace: String,
        /// The version found.
        found: u32,
        /// The newest version that this build knows.
        supported: u32,
    },
    /// The store is configured in a way that cannot work.
    #[error("the record store's {option} cannot be used: {reason}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// What is wrong with it, and what is right.
        reason: String,
    },
    /// The store does not serve now; try again.
    #[error("the record store does not answer: {0}")]
    Unavailable(String),
}

impl RecordsError {
    /// Whether the same request may succeed later, without anybody's doing: the store cannot be reached, or not in time.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Unavailable(_))
    }
}
