use std::time::{SystemTime, UNIX_EPOCH};

use parlance_cluster_protocol::TimestampMs;
use tokio::time::Instant;

/// The node's time: the system's at its start, carried on by the monotonic clock, so that it never runs backwards while the node
/// lives, and stands still where a test pauses tokio's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    at_start: TimestampMs,
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at_start: TimestampMs(as_millis(since_epoch)), start: Instant::now() }
    }

    pub(crate) fn now(&self) -> TimestampMs {
        TimestampMs(self.at_start.0 + as_millis(self.start.elapsed()))
    }
}

pub(crate) fn as_millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
