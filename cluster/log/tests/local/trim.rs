//! Trimming frees disk space and never lets offsets be used again.

use std::fs;

use parlance_cluster_log::{
    LocalLog, LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};
use tempfile::tempdir;

use crate::support::{SEGMENT_BYTES, open, options, segment, used_segments};

const BUSY: ShardId = ShardId(0);
const QUIET: ShardId = ShardId(1);

async fn fill(log: &LocalLog, segments: usize) {
    for _ in 0..segments * SEGMENT_BYTES / 10_000 {
        append_one(log, BUSY, vec![b'b'; 10_000]).await;
    }
}

async fn trim_to_end(log: &LocalLog, shard: ShardId) -> Offset {
    let end = log.bounds(shard).await.expect("bounds").end;
    log.trim(shard, end).await.expect("the end is within the bounds");
    end
}

#[tokio::test]
async fn a_shard_whose_entries_are_all_gone_goes_on_where_it_was() {
    let directory = tempdir().expect("a temporary directory");
    let log = open(directory.path());
    append(&log, QUIET, vec!["one".into(), "two".into(), "three".into()]).await;
    drop(log);
    for round in 0..5 {
        let log = open(directory.path());
        fill(&log, 4).await;
        trim_to_end(&log, BUSY).await;
        assert_eq!(trim_to_end(&log, QUIET).await, Offset(3), "round {round}");
        assert!(!segment(directory.path(), 1).exists());
        assert!(used_segments(directory.path()).len() == 1, "only the active segment is left");
        assert_eq!(log.bounds(QUIET).await.expect("bounds").start, Offset(3));
    }
    let log = open(directory.path());
    assert_eq!(append_one(&log, QUIET, "four").await, Offset(3));
    drop(log);
    let log = open(directory.path());
    assert_eq!(read_all(&log, QUIET).await[0].bytes, "four");
    let error = log.read(QUIET, Offset(2), 1).await.expect_err("it is gone");
    assert!(matches!(error, LogError::OutOfRange { offset: Offset(2), .. }), "{error:?}");
}

#[tokio::test]
async fn a_segment_stays_while_any_shard_needs_it() {
    let directory = tempdir().expect("a temporary directory");
    let log = open(directory.path());
    append_one(&log, QUIET, "needed").await;
    fill(&log, 4).await;
    trim_to_end(&log, BUSY).await;
    assert!(segment(directory.path(), 1).exists());
    assert_eq!(read_all(&log, QUIET).await[0].bytes, "needed");
    trim_to_end(&log, QUIET).await;
    assert_eq!(used_segments(directory.path()).len(), 1);
}

#[tokio::test]
async fn trim_points_last_over_a_restart_once_a_segment_was_begun() {
    let directory = tempdir().expect("a temporary directory");
    let log = open(directory.path());
    append_one(&log, QUIET, "not needed").await;
    trim_to_end(&log, QUIET).await;
    fill(&log, 3).await;
    drop(log);
    let log = open(directory.path());
    assert!(segment(directory.path(), 1).exists());
    trim_to_end(&log, BUSY).await;
    assert_eq!(used_segments(directory.path()).len(), 1, "the quiet shard did not have to be trimmed again");
}

#[tokio::test]
async fn a_crash_between_two_deletions_leaves_a_log() {
    let directory = tempdir().expect("a temporary directory");
    let log = open(directory.path());
    append_one(&log, QUIET, "gone").await;
    fill(&log, 6).await;
    let all = log.bounds(BUSY).await.expect("bounds");
    drop(log);
    for gone in 1..=4 {
        fs::remove_file(segment(directory.path(), gone)).expect("it can be removed");
        let log = open(directory.path());
        let bounds = log.bounds(BUSY).await.expect("bounds");
        assert!(bounds.end == all.end && bounds.start > all.start);
        assert_eq!(read_all(&log, BUSY).await.len() as u64, bounds.end.0 - bounds.start.0);
        assert_eq!(log.bounds(QUIET).await.expect("bounds").start, Offset(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_race_with_trims_and_see_entries_or_out_of_range() {
    let directory = tempdir().expect("a temporary directory");
    let log = std::sync::Arc::new(open(directory.path()));
    let reader = tokio::spawn({
        let log = log.clone();
        async move {
            let (mut read, mut trimmed) = (0, 0);
            while log.bounds(BUSY).await.expect("bounds").end < Offset(400) {
                let start = log.bounds(BUSY).await.expect("bounds").start;
                match log.read(BUSY, start, 50_000).await {
                    Ok(entries) => read += entries.len(),
                    Err(LogError::OutOfRange { .. }) => trimmed += 1,
                    Err(other) => panic!("{other}"),
                }
                tokio::task::yield_now().await;
            }
            (read, trimmed)
        }
    });
    for number in 0..400 {
        append_one(&*log, BUSY, vec![b'b'; 10_000]).await;
        if number % 10 == 0 {
            trim_to_end(&log, BUSY).await;
        }
    }
    assert!(reader.await.expect("the reader does not panic").0 > 0);
}

#[tokio::test]
async fn an_append_larger_than_a_segment_is_taken_and_trimmed() {
    let directory = tempdir().expect("a temporary directory");
    let large = vec![b'L'; 1024 * 1024];
    for round in 0..3 {
        let log = LocalLog::open(options(directory.path())).expect("the log opens");
        assert_eq!(append_one(&log, BUSY, large.clone()).await, Offset(2 * round));
        assert_eq!(append_one(&log, BUSY, "small").await, Offset(2 * round + 1));
        assert_eq!(log.read(BUSY, Offset(2 * round), 1).await.expect("it is there")[0].bytes, large);
        trim_to_end(&log, BUSY).await;
        assert_eq!(used_segments(directory.path()).len(), 1);
    }
}
