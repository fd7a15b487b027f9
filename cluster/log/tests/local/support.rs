//! What the tests of the local log share.

use std::path::Path;

use parlance_cluster_log::{LocalLog, LocalLogOptions};

/// Small enough that a test fills many.
pub(crate) const SEGMENT_BYTES: usize = 128 * 1024;

pub(crate) fn options(directory: &Path) -> LocalLogOptions {
    LocalLogOptions { shards: 4, segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, directory: directory.join("log") }
}

pub(crate) fn open(directory: &Path) -> LocalLog {
    LocalLog::open(options(directory)).expect("the log opens")
}
