use std::{io, path::PathBuf, sync::Arc};

use parlance_cluster_protocol::{Offset, ShardId, WireError};
use thiserror::Error;

/// Why the log cannot serve.
#[derive(Debug, Clone, Error)]
pub enum LogError {
    /// Another process has the log open.
    #[error("{} is in use by another process: stop that one, or choose another --data directory", path.display())]
    InUse {
        /// The locked directory.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Unusable {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Stored bytes are wrong in a place where no crash can have torn them.
    #[error("{} is damaged at byte {at}: {reason}; restore it from a copy, or move the directory away to start empty", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry or its file is of a format that this build cannot read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The offset is no longer, or not yet, in the log.
    #[error("shard {shard} holds no entry {offset}")]
    OutOfRange {
        /// The shard.
        shard: ShardId,
        /// The offset that was asked for.
        offset: Offset,
    },
    /// No space is left for new turns; reads go on.
    #[error("no space left in {}: free some, new turns are refused until then", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// The log was closed or its writer failed; the reason was logged when it happened.
    #[error("the log is closed")]
    Closed,
}
