//! What callers may do, and what they see of it.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use parlance_cluster_log::{
    AppendOutcome, LocalLog, LocalLogOptions, MAX_ENTRY_BYTES, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{open, options, quick_directory};

const SHARD: ShardId = ShardId(1);
/// For what must happen: no measure of speed.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn past_the_bound_of_the_queue_appends_are_refused_and_the_rest_is_whole() {
    let directory = quick_directory();
    let log =
        LocalLog::open(LocalLogOptions { segment_bytes: 16 << 20, ..options(directory.path()) }).expect("it opens");
    let large = Bytes::from(vec![b'L'; MAX_ENTRY_BYTES]);
    // 7 MiB each: 64 MiB are bound to be queued before the writer has written a part of it.
    let appends = (0..200).map(|_| append(&log, SHARD, vec![large.clone(); 7]));
    let outcomes = futures_util::future::join_all(appends).await.concat();
    let written = outcomes.iter().filter(|outcome| **outcome != AppendOutcome::Unknown).count();
    assert!((7..200 * 7).contains(&written), "{written} entries were written");
    let offsets = outcomes.into_iter().filter(|outcome| *outcome != AppendOutcome::Unknown);
    assert!(offsets.eq((0..written as u64).map(|offset| AppendOutcome::At(Offset(offset)))));
    assert_eq!(append_one(&log, SHARD, "after").await, Offset(written as u64));
    assert_eq!(read_all(&log, SHARD).await.len(), written + 1);
}

#[tokio::test]
async fn an_append_too_large_for_a_batch_is_refused() {
    let directory = quick_directory();
    let log = open(directory.path());
    let nine = vec![Bytes::from(vec![b'L'; MAX_ENTRY_BYTES]); 9];
    assert_eq!(append(&log, SHARD, nine).await, [AppendOutcome::Unknown; 9]);
    assert_eq!(append_one(&log, SHARD, "after").await, Offset(0));
}

#[tokio::test]
async fn a_callback_that_panics_harms_nobody_else() {
    let directory = quick_directory();
    let log = open(directory.path());
    log.append(SHARD, vec!["x".into()], Box::new(|_| panic!("a callback of a test panics")));
    assert_eq!(append_one(&log, SHARD, "y").await, Offset(1));
}

#[test]
fn a_callback_may_drop_the_last_handle() {
    let directory = quick_directory();
    let log: Arc<dyn ShardLog> = Arc::new(open(directory.path()));
    let (told, outcome) = mpsc::channel();
    let (handle, handles) = mpsc::channel();
    let callback = move |_| {
        let handle: Arc<dyn ShardLog> = handles.recv().expect("the test hands it over");
        drop(handle);
        told.send(()).expect("the test waits");
    };
    log.append(SHARD, vec!["x".into()], Box::new(callback));
    handle.send(log).expect("the callback waits");
    outcome.recv_timeout(LONG).expect("the drop returns");
    // The directory is free as soon as the threads have ended.
    let free = (0..600).any(|_| {
        std::thread::sleep(LONG / 600);
        LocalLog::open(options(directory.path())).is_ok()
    });
    assert!(free);
}

#[tokio::test]
async fn metrics_count_what_was_appended() {
    let directory = quick_directory();
    let recorder = PrometheusBuilder::new().build_recorder();
    let log = metrics::with_local_recorder(&recorder, || open(directory.path()));
    for _ in 0..5 {
        append(&log, SHARD, vec!["one".into(), "two".into()]).await;
    }
    append(&log, SHARD, vec![Bytes::from(vec![0; MAX_ENTRY_BYTES + 1])]).await;
    drop(log);
    let page = recorder.handle().render();
    for line in [
        "parlance_log_append_duration_seconds_count 6",
        "parlance_log_entries_total 10",
        "parlance_log_batches_total 5",
        "parlance_log_sync_duration_seconds_count 5",
        "parlance_log_written_bytes_total 20480",
        "parlance_log_appends_refused_total 1",
        "parlance_log_queue_bytes 0",
        "parlance_log_segments 1",
    ] {
        assert!(page.lines().any(|found| found == line), "no line {line:?} in:\n{page}");
    }
}
