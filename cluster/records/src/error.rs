use std::path::PathBuf;

use thiserror::Error;

/// Why the record store cannot serve.
#[derive(Debug, Clone, Error)]
pub enum RecordsError {
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
    /// A stored row cannot be read.
    #[error("a stored {what} is damaged: {reason}")]
    Damaged {
        /// The kind of row.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not serve now; try again.
    #[error("the record store does not answer: {0}")]
    Unavailable(String),
}
