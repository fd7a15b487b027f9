//! What the log says to directories that it cannot use.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use parlance_cluster_log::{
    LocalLog, LocalLogOptions, LogError, ShardLog,
    conformance::{append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId, WireError};
use tempfile::tempdir;

use crate::support::{
    SEGMENT_BYTES, Tmpfs, files, flip, open, options, overwrite, refused, restore, segment, used_segments,
};

/// Entries of this size take a batch of two blocks.
const ENTRY_BYTES: usize = 5000;

/// Appends so much that segments 1 to 3 have batches, and waits for the spare.
async fn three_segments(directory: &Path) {
    let log = open(directory);
    while used_segments(directory).len() < 3 {
        append_one(&log, ShardId(1), vec![7; ENTRY_BYTES]).await;
    }
    while !segment(directory, 4).exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn assert_damaged(error: &LogError, path: &Path, at: u64) {
    let matches = matches!(error, LogError::Damaged { path: p, at: a, .. } if p == path && *a == at);
    assert!(matches, "expected damage in {} at {at}, got {error:?}", path.display());
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_is_gone() {
    let directory = tempdir().expect("a temporary directory");
    let log = open(directory.path());
    let error = LocalLog::open(options(directory.path())).expect_err("it is in use");
    assert!(matches!(error, LogError::InUse { .. }), "{error:?}");
    append_one(&log, ShardId(0), "still works").await;
    drop(log);
    assert_eq!(read_all(&open(directory.path()), ShardId(0)).await.len(), 1);
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let directory = tempdir().expect("a temporary directory");
    fs::write(directory.path().join("log"), "a file").expect("a file can be written");
    let error = LocalLog::open(options(directory.path())).expect_err("it is a file");
    assert!(matches!(error, LogError::Unusable { .. }), "{error:?}");
    assert_eq!(fs::read(directory.path().join("log")).expect("it is still there"), b"a file");
}

#[test]
fn a_directory_of_something_else_is_refused() {
    let directory = tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("log")).expect("a directory can be made");
    fs::write(directory.path().join("log/notes.txt"), "mine").expect("a file can be written");
    let error = refused(directory.path());
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(!directory.path().join("log/lock").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let system = Tmpfs::mount("ro");
    let error = LocalLog::open(options(system.path())).expect_err("it is read-only");
    assert!(matches!(error, LogError::Unusable { .. }), "{error:?}");
}

#[test]
fn a_number_of_shards_out_of_range_is_refused() {
    let directory = tempdir().expect("a temporary directory");
    for shards in [0, 16_385] {
        let options = LocalLogOptions { shards, ..options(directory.path()) };
        let error = LocalLog::open(options).expect_err("no log has so many shards");
        assert!(error.to_string().contains("1 to 16384 shards"), "{error}");
        assert!(!directory.path().join("log").exists());
    }
}

#[tokio::test]
async fn a_log_keeps_its_number_of_shards() {
    let directory = tempdir().expect("a temporary directory");
    append_one(&open(directory.path()), ShardId(3), "x").await;
    let log = LocalLog::open(LocalLogOptions { shards: 9, ..options(directory.path()) }).expect("the log opens");
    assert_eq!(log.shards(), 4);
    assert_eq!(read_all(&log, ShardId(3)).await.len(), 1);
}

#[tokio::test]
async fn a_log_of_the_most_shards_works() {
    let directory = tempdir().expect("a temporary directory");
    let options = LocalLogOptions { shards: 16_384, segment_bytes: 1024 * 1024, ..options(directory.path()) };
    for round in 0..2 {
        let log = LocalLog::open(options.clone()).expect("the log opens");
        for number in 0..4 {
            let offset = append_one(&log, ShardId(16_383), vec![1; 500_000]).await;
            assert_eq!(offset, Offset(4 * round + number));
        }
        assert_eq!(read_all(&log, ShardId(16_383)).await.len(), 4 + 4 * round as usize);
    }
}

#[tokio::test]
async fn a_broken_meta_is_refused() {
    let directory = tempdir().expect("a temporary directory");
    append_one(&open(directory.path()), ShardId(0), "x").await;
    let good = files(directory.path());
    let meta = directory.path().join("log/meta");
    let bytes = fs::read(&meta).expect("meta can be read");
    for length in 0..bytes.len() {
        fs::write(&meta, &bytes[..length]).expect("meta can be cut");
        assert_damaged(&refused(directory.path()), &meta, length as u64);
    }
    for at in 0..bytes.len() {
        restore(directory.path(), &good);
        flip(&meta, at, 0x81);
        let error = refused(directory.path());
        assert!(matches!(error, LogError::Damaged { .. } | LogError::Wire(WireError::Newer { .. })), "{error:?}");
    }
    fs::remove_file(&meta).expect("meta can be removed");
    assert_damaged(&refused(directory.path()), &meta, 0);
}

#[tokio::test]
async fn a_newer_format_is_refused_with_the_remedy() {
    let directory = tempdir().expect("a temporary directory");
    three_segments(directory.path()).await;
    let good = files(directory.path());
    for path in [directory.path().join("log/meta"), segment(directory.path(), 1), segment(directory.path(), 3)] {
        restore(directory.path(), &good);
        overwrite(&path, 8, &2u32.to_le_bytes());
        let error = refused(directory.path());
        assert!(matches!(error, LogError::Wire(WireError::Newer { found: 2, supported: 1, .. })), "{error:?}");
        assert!(error.to_string().contains("upgrade parlance"), "{error}");
    }
}

#[tokio::test]
async fn broken_segments_are_refused() {
    let directory = tempdir().expect("a temporary directory");
    three_segments(directory.path()).await;
    let good = files(directory.path());
    for sequence in 1..=4 {
        let path = segment(directory.path(), sequence);
        fs::write(&path, []).expect("a segment can be emptied");
        assert_damaged(&refused(directory.path()), &path, 0);
        restore(directory.path(), &good);
    }
    let noise: Vec<u8> = (0..SEGMENT_BYTES).map(|at| (at * at % 251) as u8).collect();
    for sequence in 1..=2 {
        let path = segment(directory.path(), sequence);
        fs::write(&path, &noise).expect("a segment can be overwritten");
        assert_damaged(&refused(directory.path()), &path, 0);
        fs::remove_file(&path).expect("a segment can be removed");
        if sequence == 2 {
            assert_damaged(&refused(directory.path()), &path, 0);
        }
        restore(directory.path(), &good);
        for at in 0..116 {
            flip(&path, at, 4);
            let error = refused(directory.path());
            assert!(matches!(error, LogError::Damaged { .. } | LogError::Wire(WireError::Newer { .. })), "{error:?}");
            flip(&path, at, 4);
        }
    }
    (1..=4).for_each(|sequence| fs::remove_file(segment(directory.path(), sequence)).expect("it can be removed"));
    assert_damaged(&refused(directory.path()), &segment(directory.path(), 1), 0);
    fs::write(directory.path().join("log/other.seg"), "x").expect("a file can be written");
    assert!(refused(directory.path()).to_string().contains("other.seg"));
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let (directory, other) = (tempdir().expect("a temporary directory"), tempdir().expect("a temporary directory"));
    three_segments(directory.path()).await;
    three_segments(other.path()).await;
    for sequence in 1..=3 {
        let (path, good) = (segment(directory.path(), sequence), files(directory.path()));
        fs::copy(segment(other.path(), sequence), &path).expect("a segment can be copied");
        assert_damaged(&refused(directory.path()), &path, 0);
        restore(directory.path(), &good);
    }
    fs::copy(segment(directory.path(), 2), segment(directory.path(), 3)).expect("a segment can be copied");
    assert_damaged(&refused(directory.path()), &segment(directory.path(), 3), 0);
}

#[tokio::test]
async fn what_an_interrupted_creation_leaves_is_made_anew() {
    let directory = tempdir().expect("a temporary directory");
    drop(open(directory.path()));
    let made = files(directory.path());
    let [lock, meta, first] = ["lock", "meta", "0000000001.seg"].map(PathBuf::from);
    let meta_tmp = ("meta.tmp".into(), made[&meta].clone());
    let zeros = ("0000000001.seg.tmp".into(), vec![0; 10_000]);
    let states = [
        vec![(lock, Vec::new())],
        vec![("meta.tmp".into(), b"parl".to_vec())],
        vec![meta_tmp.clone(), zeros],
        vec![meta_tmp, (first.clone(), made[&first].clone())],
    ];
    for state in states {
        restore(directory.path(), &state.into_iter().collect());
        let log = open(directory.path());
        assert_eq!(append_one(&log, ShardId(0), "x").await, Offset(0));
        drop(log);
        assert_eq!(read_all(&open(directory.path()), ShardId(0)).await.len(), 1);
        assert!(!files(directory.path()).keys().any(|name| name.extension().is_some_and(|e| e == "tmp")));
    }
}
