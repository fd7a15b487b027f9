//! A full disk, on a small file system of the test's own.

use std::{fs, path::Path, time::Duration};

use parlance_cluster_log::{
    AppendOutcome, LocalLog, LocalLogOptions, LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{Tmpfs, open, options, segment};

const SHARD: ShardId = ShardId(0);

/// Waits until the log has prepared its second segment.
async fn spare(directory: &Path) {
    while !segment(directory, 2).exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the log takes turns or refuses them; the log itself looks each second.
async fn admission(log: &LocalLog, wanted: bool) {
    for _ in 0..1000 {
        match log.admission() {
            Ok(()) if wanted => return,
            Err(LogError::Full { .. }) if !wanted => return,
            Ok(()) | Err(LogError::Full { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("admission did not become {wanted} in 10 s");
}

/// Takes all space but `left` bytes.
fn ballast(directory: &Path, left: u64) {
    let space = rustix::fs::statvfs(directory).expect("the space can be told");
    let bytes = space.f_bavail * space.f_frsize - left;
    fs::write(directory.join("ballast"), vec![1; bytes as usize]).expect("the ballast fits");
}

#[tokio::test]
async fn a_full_disk_refuses_turns_keeps_what_it_has_and_recovers() {
    let system = Tmpfs::mount("size=2m");
    let log = open(system.path());
    append_one(&log, SHARD, "before").await;
    spare(system.path()).await;
    ballast(system.path(), 50_000);
    let mut written = 1;
    while log.admission().is_ok() {
        append_one(&log, SHARD, vec![b'x'; 3000]).await;
        written += 1;
        // The keeper needs a moment after a segment was begun to find that it cannot make the next.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(log.admission(), Err(LogError::Full { .. })));
    for _ in 0..10 {
        append_one(&log, SHARD, "a reply to an accepted turn").await;
        written += 1;
    }
    let unknown = loop {
        match append(&log, SHARD, vec![vec![b'x'; 3000].into()]).await[..] {
            [AppendOutcome::At(_)] => written += 1,
            ref other => break other.to_vec(),
        }
    };
    assert_eq!(unknown, [AppendOutcome::Unknown]);
    assert_eq!(read_all(&log, SHARD).await.len(), written, "reads go on");
    fs::remove_file(system.path().join("ballast")).expect("it can be removed");
    admission(&log, true).await;
    assert_eq!(append_one(&log, SHARD, "after").await, Offset(written as u64));
    drop(log);
    assert_eq!(read_all(&open(system.path()), SHARD).await.len(), written + 1);
}

#[tokio::test]
async fn turns_are_refused_below_the_reserve_while_appends_still_work() {
    let system = Tmpfs::mount("size=4m");
    let log =
        LocalLog::open(LocalLogOptions { reserve_bytes: 1024 * 1024, ..options(system.path()) }).expect("it opens");
    spare(system.path()).await;
    ballast(system.path(), 800_000);
    admission(&log, false).await;
    append_one(&log, SHARD, "a reply").await;
    fs::remove_file(system.path().join("ballast")).expect("it can be removed");
    admission(&log, true).await;
}

#[tokio::test]
async fn trimming_makes_room_on_a_full_disk() {
    let system = Tmpfs::mount("size=2m");
    let log = open(system.path());
    while !matches!(log.admission(), Err(LogError::Full { .. })) {
        append(&log, SHARD, vec![vec![b'x'; 30_000].into()]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let end = log.bounds(SHARD).await.expect("bounds").end;
    log.trim(SHARD, end).await.expect("the end is within the bounds");
    admission(&log, true).await;
    assert_eq!(append_one(&log, SHARD, "after").await, end);
}

#[tokio::test]
async fn a_write_that_fails_closes_the_log_for_appends_alone() {
    let system = Tmpfs::mount("size=1m");
    let log = open(system.path());
    append_one(&log, SHARD, "before").await;
    spare(system.path()).await;
    // Larger than a segment, it makes the file grow, for which there is no room.
    assert_eq!(append(&log, SHARD, vec![vec![b'x'; 1024 * 1024].into()]).await, [AppendOutcome::Unknown]);
    assert!(matches!(log.admission(), Err(LogError::Closed)));
    assert_eq!(append(&log, SHARD, vec!["x".into(), "y".into()]).await, [AppendOutcome::Unknown; 2]);
    assert_eq!(read_all(&log, SHARD).await.len(), 1);
    drop(log);
    let log = open(system.path());
    assert_eq!(read_all(&log, SHARD).await.len(), 1);
    assert_eq!(append_one(&log, SHARD, "after").await, Offset(1));
}

#[test]
fn a_log_cannot_be_made_without_room() {
    let system = Tmpfs::mount("size=128k");
    let error = LocalLog::open(options(system.path())).expect_err("a segment does not fit");
    assert!(matches!(&error, LogError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("No space left"), "{error}");
}
