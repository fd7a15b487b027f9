//! Names, descriptions and recording of this crate's metrics.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const APPEND: &str = "parlance_log_append_duration_seconds";
const BATCHES: &str = "parlance_log_batches_total";
const ENTRIES: &str = "parlance_log_entries_total";
const BYTES: &str = "parlance_log_written_bytes_total";
const REFUSED: &str = "parlance_log_appends_refused_total";
const SYNC: &str = "parlance_log_sync_duration_seconds";
const QUEUE: &str = "parlance_log_queue_bytes";
const SEGMENTS: &str = "parlance_log_segments";

/// The metrics of a local log. Bound to the recorder that is installed when the log is opened.
pub(crate) struct LogMetrics {
    append: Histogram,
    batches: Counter,
    entries: Counter,
    bytes: Counter,
    refused: Counter,
    sync: Histogram,
    queue: Gauge,
    segments: Gauge,
}

impl LogMetrics {
    pub(crate) fn new() -> Self {
        describe_histogram!(APPEND, Unit::Seconds, "Time from an append to its outcome");
        describe_counter!(BATCHES, Unit::Count, "Batches written, each with one sync");
        describe_counter!(ENTRIES, Unit::Count, "Entries written");
        describe_counter!(BYTES, Unit::Bytes, "Bytes written, headers and padding included");
        describe_counter!(REFUSED, Unit::Count, "Appends that were not written for being too large or too many");
        describe_histogram!(SYNC, Unit::Seconds, "Time that the sync of a batch took");
        describe_gauge!(QUEUE, Unit::Bytes, "Bytes of entries that wait for the writer or are being written");
        describe_gauge!(SEGMENTS, Unit::Count, "Segment files with entries");
        Self {
            append: histogram!(APPEND),
            batches: counter!(BATCHES),
            entries: counter!(ENTRIES),
            bytes: counter!(BYTES),
            refused: counter!(REFUSED),
            sync: histogram!(SYNC),
            queue: gauge!(QUEUE),
            segments: gauge!(SEGMENTS),
        }
    }

    pub(crate) fn append_done(&self, took: Duration) {
        self.append.record(took);
    }

    pub(crate) fn refused(&self) {
        self.refused.increment(1);
    }

    pub(crate) fn batch_written(&self, entries: u64, bytes: u64, sync: Duration) {
        self.batches.increment(1);
        self.entries.increment(entries);
        self.bytes.increment(bytes);
        self.sync.record(sync);
    }

    pub(crate) fn queue_bytes(&self, bytes: usize) {
        self.queue.set(bytes as f64);
    }

    pub(crate) fn segments(&self, segments: usize) {
        self.segments.set(segments as f64);
    }
}
