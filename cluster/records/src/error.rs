use std::path::PathBuf;

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
    /// The store does not serve now; try again.
    #[error("the record store does not answer: {0}")]
    Unavailable(String),
}
