use thiserror::Error;

/// Why a stored or received payload cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The payload was written by a newer release. The reader must stop, not skip.
    #[error("{what} has format version {found}, this build reads up to {supported}: upgrade parlance on this node")]
    Newer {
        /// What was being read, for example `log entry`.
        what: &'static str,
        /// The version in the payload.
        found: u32,
        /// The newest version that this build knows.
        supported: u32,
    },
    /// The payload's kind is not known to this build. The reader must stop, not skip.
    #[error("{what} is of a kind that this build does not know: upgrade parlance on this node")]
    UnknownKind {
        /// What was being read.
        what: &'static str,
    },
    /// The bytes are not such a payload.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl WireError {
    pub(crate) fn malformed(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { what, reason: reason.into() }
    }
}
