//! The crate's metrics: names, descriptions and recording, here and nowhere else.

use std::{sync::Once, time::Duration};

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
#[cfg(feature = "scylla")]
use metrics::{describe_gauge, gauge};

const WRITE_DURATION: &str = "parlance_records_write_duration_seconds";
const CHECKPOINT_DURATION: &str = "parlance_records_checkpoint_duration_seconds";
const READ_DURATION: &str = "parlance_records_read_duration_seconds";
const WRITTEN_BYTES: &str = "parlance_records_written_bytes_total";
const CHANGES: &str = "parlance_records_changes_total";

#[cfg(feature = "scylla")]
const UP: &str = "parlance_records_up";
#[cfg(feature = "scylla")]
const FAILURES: &str = "parlance_records_failures_total";
#[cfg(feature = "scylla")]
const RETRIES: &str = "parlance_records_retries_total";

/// Describes the metrics to the recorder that is installed when the first store is opened.
pub(crate) fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        describe_histogram!(WRITE_DURATION, Unit::Seconds, "Time to apply one batch of changes to the record store");
        describe_histogram!(CHECKPOINT_DURATION, Unit::Seconds, "Time to make the rows and a checkpoint durable");
        describe_histogram!(READ_DURATION, Unit::Seconds, "Time of one read of the record store");
        describe_counter!(WRITTEN_BYTES, Unit::Bytes, "Keys and values written to the record store");
        describe_counter!(CHANGES, Unit::Count, "Changes given to the record store, by what became of them");
        #[cfg(feature = "scylla")]
        {
            describe_gauge!(UP, Unit::Count, "Whether the record store answers: 1 or 0");
            describe_counter!(
                FAILURES,
                Unit::Count,
                "Requests that the record store refused or did not answer in time"
            );
            describe_counter!(RETRIES, Unit::Count, "Requests that were sent to the record store again");
        }
    });
}

/// One batch of changes was applied: `applied` of them changed something, `stale` came late or again.
pub(crate) fn batch_written(took: Duration, applied: u64, stale: u64, bytes: u64) {
    histogram!(WRITE_DURATION).record(took);
    counter!(WRITTEN_BYTES).increment(bytes);
    counter!(CHANGES, "outcome" => "applied").increment(applied);
    counter!(CHANGES, "outcome" => "stale").increment(stale);
}

/// One checkpoint was made durable.
pub(crate) fn checkpoint_written(took: Duration) {
    histogram!(CHECKPOINT_DURATION).record(took);
}

/// One read was answered.
pub(crate) fn read_answered(took: Duration) {
    histogram!(READ_DURATION).record(took);
}

/// One batch of changes was sent and acknowledged. Which of them changed something only the servers know.
#[cfg(feature = "scylla")]
pub(crate) fn batch_sent(took: Duration, changes: u64, bytes: u64) {
    histogram!(WRITE_DURATION).record(took);
    counter!(WRITTEN_BYTES).increment(bytes);
    counter!(CHANGES, "outcome" => "sent").increment(changes);
}

/// Whether the servers answer.
#[cfg(feature = "scylla")]
pub(crate) fn store_up(up: bool) {
    gauge!(UP).set(if up { 1.0 } else { 0.0 });
}

/// A request failed for good.
#[cfg(feature = "scylla")]
pub(crate) fn request_failed() {
    counter!(FAILURES).increment(1);
}

/// A request is sent again.
#[cfg(feature = "scylla")]
pub(crate) fn request_retried() {
    counter!(RETRIES).increment(1);
}
