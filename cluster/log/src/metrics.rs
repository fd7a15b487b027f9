//! Names, descriptions and recording of this crate's metrics.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

#[cfg(feature = "kafka")]
use crate::AppendOutcome;

const APPEND: &str = "parlance_log_append_duration_seconds";
const BATCHES: &str = "parlance_log_batches_total";
const ENTRIES: &str = "parlance_log_entries_total";
const BYTES: &str = "parlance_log_written_bytes_total";
const REFUSED: &str = "parlance_log_appends_refused_total";
const SYNC: &str = "parlance_log_sync_duration_seconds";
const QUEUE: &str = "parlance_log_queue_bytes";
const SEGMENTS: &str = "parlance_log_segments";
#[cfg(feature = "kafka")]
const UNKNOWN: &str = "parlance_log_unknown_outcomes_total";
#[cfg(feature = "kafka")]
const READS: &str = "parlance_log_reads_total";
#[cfg(feature = "kafka")]
const READ_BYTES: &str = "parlance_log_read_bytes_total";
#[cfg(feature = "kafka")]
const REACHABLE: &str = "parlance_log_reachable";
#[cfg(feature = "kafka")]
const PRODUCERS: &str = "parlance_log_producers_replaced_total";

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

/// The metrics of a log in Kafka. Bound to the recorder that is installed when the log is opened.
#[cfg(feature = "kafka")]
pub(crate) struct KafkaMetrics {
    append: Histogram,
    entries: Counter,
    bytes: Counter,
    refused: Counter,
    unknown: Counter,
    reads: Counter,
    read_bytes: Counter,
    reachable: Gauge,
    producers: Counter,
}

#[cfg(feature = "kafka")]
impl KafkaMetrics {
    pub(crate) fn new() -> Self {
        describe_histogram!(APPEND, Unit::Seconds, "Time from an append to its outcome");
        describe_counter!(ENTRIES, Unit::Count, "Entries written");
        describe_counter!(BYTES, Unit::Bytes, "Bytes written, headers and padding included");
        describe_counter!(REFUSED, Unit::Count, "Appends that were not written for being too large or too many");
        describe_counter!(UNKNOWN, Unit::Count, "Entries that were sent and whose outcome is unknown");
        describe_counter!(READS, Unit::Count, "Reads that were answered");
        describe_counter!(READ_BYTES, Unit::Bytes, "Bytes of entries that were read");
        describe_gauge!(REACHABLE, Unit::Count, "Whether Kafka answers and can take entries in every shard: 1 or 0");
        describe_counter!(PRODUCERS, Unit::Count, "Producers replaced after an outcome that was unknown");
        Self {
            append: histogram!(APPEND),
            entries: counter!(ENTRIES),
            bytes: counter!(BYTES),
            refused: counter!(REFUSED),
            unknown: counter!(UNKNOWN),
            reads: counter!(READS),
            read_bytes: counter!(READ_BYTES),
            reachable: gauge!(REACHABLE),
            producers: counter!(PRODUCERS),
        }
    }

    pub(crate) fn append_done(&self, took: Duration) {
        self.append.record(took);
    }

    pub(crate) fn refused(&self) {
        self.refused.increment(1);
    }

    /// An entry of so many bytes has its outcome.
    pub(crate) fn outcome(&self, outcome: AppendOutcome, bytes: usize) {
        match outcome {
            AppendOutcome::At(_) => {
                self.entries.increment(1);
                self.bytes.increment(bytes as u64);
            }
            AppendOutcome::Unknown => self.unknown.increment(1),
        }
    }

    pub(crate) fn producer_replaced(&self) {
        self.producers.increment(1);
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.reads.increment(1);
        self.read_bytes.increment(bytes as u64);
    }

    pub(crate) fn reachable(&self, reachable: bool) {
        self.reachable.set(if reachable { 1.0 } else { 0.0 });
    }
}
