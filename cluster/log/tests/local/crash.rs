//! What a crash or a bad disk can do to the files, and what the next open makes of it.

use std::{fs, path::Path};

use parlance_cluster_log::{
    LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{
    BLOCK, files, flip, last_blocks, open, overwrite, quick_directory, refused, restore, segment, used_segments,
};

const SHARD: ShardId = ShardId(2);
/// Batches of one block that lie before the last one.
const SYNCED: usize = 5;
/// What an entry takes besides its payload when it is alone in its batch.
const OVERHEAD: usize = 60;

/// A log of [`SYNCED`] batches and a last one with an entry of `last` bytes.
async fn log_with_last_entry(directory: &Path, last: usize) {
    let log = open(directory);
    for number in 0..SYNCED {
        append_one(&log, SHARD, format!("synced {number}")).await;
    }
    append_one(&log, SHARD, vec![b'L'; last]).await;
}

/// Opens the log, checks that exactly the synced entries and `last` of the last batch are there, and that it goes on durably.
async fn assert_opens_with(directory: &Path, last: usize) {
    for round in 0..2 {
        let log = open(directory);
        let entries = read_all(&log, SHARD).await;
        assert_eq!(entries.len(), SYNCED + last + round);
        for (number, entry) in entries.iter().take(SYNCED).enumerate() {
            assert_eq!(entry.bytes, format!("synced {number}"));
        }
        assert!(entries[SYNCED + last..].iter().all(|entry| entry.bytes == "after"));
        assert_eq!(append_one(&log, SHARD, "after").await, Offset((SYNCED + last + round) as u64));
    }
}

/// The third segment, where the log had time to prepare it.
fn remove_spare(directory: &Path) {
    let spare = segment(directory, 3);
    if spare.exists() {
        fs::remove_file(spare).expect("the spare can be removed");
    }
}

#[tokio::test]
async fn a_last_batch_cut_at_any_byte_is_dropped() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 40).await;
    let (path, good) = (segment(directory.path(), 1), files(directory.path()));
    let last = last_blocks(&path, 1);
    for length in last.start..=last.start + OVERHEAD + 40 {
        restore(directory.path(), &good);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(length as u64))
            .expect("it can be cut");
        assert_opens_with(directory.path(), usize::from(length == last.start + OVERHEAD + 40)).await;
    }
}

#[tokio::test]
async fn a_last_batch_corrupt_at_any_byte_is_dropped() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 40).await;
    let (path, good) = (segment(directory.path(), 1), files(directory.path()));
    let last = last_blocks(&path, 1);
    for at in last.start..last.start + OVERHEAD + 40 {
        for bits in [0x01, 0x80] {
            restore(directory.path(), &good);
            flip(&path, at, bits);
            assert_opens_with(directory.path(), 0).await;
        }
    }
}

#[tokio::test]
async fn a_last_batch_is_whole_or_dropped_whichever_of_its_blocks_are_lost() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 4 * BLOCK - OVERHEAD).await;
    let (path, good) = (segment(directory.path(), 1), files(directory.path()));
    let last = last_blocks(&path, 4);
    for lost in 0..1 << 4 {
        restore(directory.path(), &good);
        for block in (0..4).filter(|block| lost >> block & 1 == 1) {
            overwrite(&path, last.start + block * BLOCK, &[0; BLOCK]);
        }
        assert_opens_with(directory.path(), usize::from(lost == 0)).await;
    }
}

#[tokio::test]
async fn a_torn_first_batch_of_a_segment_is_dropped() {
    let directory = quick_directory();
    let log = open(directory.path());
    let mut entries = 0;
    while used_segments(directory.path()).len() < 2 {
        append(&log, SHARD, vec![vec![b'x'; 3 * BLOCK - OVERHEAD].into()]).await;
        entries += 1;
    }
    drop(log);
    remove_spare(directory.path());
    let path = segment(directory.path(), 2);
    let used = last_blocks(&path, 4);
    assert_eq!(used.start, 0, "one batch of three blocks behind the header");
    let good = files(directory.path());
    for lost in 0..1 << 4 {
        restore(directory.path(), &good);
        for block in (0..4).filter(|block| lost >> block & 1 == 1) {
            overwrite(&path, block * BLOCK, &[0; BLOCK]);
        }
        let expected = entries - usize::from(lost != 0);
        for round in 0..2 {
            let log = open(directory.path());
            assert_eq!(read_all(&log, SHARD).await.len(), expected + round);
            assert_eq!(append_one(&log, SHARD, "after").await, Offset((expected + round) as u64));
        }
    }
}

#[tokio::test]
async fn garbage_behind_the_end_is_cut_off() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 40).await;
    let (path, good) = (segment(directory.path(), 1), files(directory.path()));
    let end = last_blocks(&path, 1).end;
    for (at, length) in
        [(0, 1), (1, 4095), (5000, 10_000), (BLOCK, 1), (0, fs::read(&path).expect("readable").len() - end)]
    {
        restore(directory.path(), &good);
        overwrite(&path, end + at, &vec![0xAB; length]);
        assert_opens_with(directory.path(), 1).await;
        let behind = &fs::read(&path).expect("readable")[end + 2 * BLOCK..];
        assert!(behind.iter().all(|byte| *byte == 0), "the two entries that were appended after are all there is");
    }
}

#[tokio::test]
async fn damage_before_the_last_batch_is_reported_with_its_place() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 40).await;
    let path = segment(directory.path(), 1);
    let last = last_blocks(&path, 1).start;
    for batch in 1..=SYNCED {
        let start = last - batch * BLOCK;
        for at in start..start + OVERHEAD + "synced 0".len() {
            flip(&path, at, 0x10);
            let error = refused(directory.path());
            let right = matches!(&error, LogError::Damaged { path: p, at, .. } if *p == path && *at == start as u64);
            assert!(right, "expected damage at {start}, got {error}");
            flip(&path, at, 0x10);
        }
    }
    assert_opens_with(directory.path(), 1).await;
}

#[tokio::test]
async fn a_lost_or_repeated_batch_is_damage() {
    let directory = quick_directory();
    log_with_last_entry(directory.path(), 40).await;
    let (path, good) = (segment(directory.path(), 1), files(directory.path()));
    let bytes = fs::read(&path).expect("readable");
    let last = last_blocks(&path, 1).start;
    let third = last - 3 * BLOCK;
    for replacement in [&[0; BLOCK][..], &bytes[third - BLOCK..third], &bytes[third + BLOCK..third + 2 * BLOCK]] {
        restore(directory.path(), &good);
        overwrite(&path, third, replacement);
        let error = refused(directory.path());
        assert!(matches!(&error, LogError::Damaged { at, .. } if *at == third as u64), "{error}");
    }
}

#[tokio::test]
async fn damage_at_the_end_of_a_full_segment_is_reported() {
    let directory = quick_directory();
    let log = open(directory.path());
    while used_segments(directory.path()).len() < 2 {
        append_one(&log, SHARD, vec![b'x'; 100]).await;
    }
    append_one(&log, SHARD, "in the second").await;
    drop(log);
    let path = segment(directory.path(), 1);
    let last = last_blocks(&path, 1).start;
    flip(&path, last + 50, 1);
    // The next segment may have lost its header in a crash, but not together with damage before it.
    for corrupt_header in [false, true] {
        if corrupt_header {
            remove_spare(directory.path());
            flip(&segment(directory.path(), 2), 40, 1);
        }
        let error = refused(directory.path());
        assert!(
            matches!(&error, LogError::Damaged { path: p, at, .. } if (p, *at) == (&path, last as u64)
            || corrupt_header && *p == segment(directory.path(), 2)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn damage_that_comes_later_is_found_by_the_read() {
    let directory = quick_directory();
    let log = open(directory.path());
    for number in 0..4 {
        append_one(&log, SHARD, format!("synced {number}")).await;
    }
    let path = segment(directory.path(), 1);
    let third = last_blocks(&path, 2).start;
    flip(&path, third + OVERHEAD + 3, 1);
    assert_eq!(log.read(SHARD, Offset(0), 60).await.expect("the first two are whole").len(), 2);
    let error = log.read(SHARD, Offset(2), 1).await.expect_err("the third is not");
    assert!(
        matches!(&error, LogError::Damaged { path: p, at, .. } if *p == path && *at == third as u64 + 40),
        "{error}"
    );
    assert_eq!(log.read(SHARD, Offset(3), 1).await.expect("the fourth is whole").len(), 1);
}
