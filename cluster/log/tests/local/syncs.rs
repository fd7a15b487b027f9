//! What the kernel sees: syncs counted, and made to fail, by `strace` on this test program itself.

use std::{env, path::Path, process::Command};

use parlance_cluster_log::{
    AppendOutcome, LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::ShardId;
use tempfile::tempdir;

use crate::support::open;

/// What the traced child is to do: `sequential:N`, `concurrent:N` or `failing`, and where.
const WORK: &str = "PARLANCE_TEST_LOG_WORK";
const DIRECTORY: &str = "PARLANCE_TEST_LOG_DIRECTORY";
const CALLERS: usize = 64;

#[test]
fn one_caller_gets_one_sync_per_append() {
    assert_eq!(fdatasyncs("sequential:300") - fdatasyncs("sequential:0"), 300);
}

#[test]
#[expect(clippy::print_stdout, reason = "the figure is of interest; the test harness shows it with --nocapture")]
fn many_callers_share_syncs() {
    let appends = 64 * 100;
    let syncs = fdatasyncs(&format!("concurrent:{appends}")) - fdatasyncs("concurrent:0");
    println!("{appends} appends by {CALLERS} callers took {syncs} syncs");
    // Each caller waits for its sync, so that one sync can serve each of them once at most.
    assert!(syncs >= appends / CALLERS, "{syncs} syncs cannot have served {appends} appends");
    assert!(syncs <= appends / 8, "{syncs} syncs for {appends} appends are no group commit");
}

#[test]
fn after_a_failed_sync_nothing_is_promised_until_the_next_open() {
    let directory = tempdir().expect("a temporary directory");
    // Counted for each thread by itself, so the writer's fourth.
    strace(&["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4"], "failing", directory.path());
}

#[cfg(feature = "planted-bugs")]
#[test]
fn the_planted_bug_acknowledges_before_the_sync() {
    let directory = tempdir().expect("a temporary directory");
    let bug = ["-E", "PARLANCE_PLANTED_BUG=ack-before-fsync"];
    let (without, with) =
        (fdatasyncs("sequential-then-exit:3"), count(&bug, "sequential-then-exit:3", directory.path()));
    assert_eq!(without - with, 1, "the last append was acknowledged without its sync");
}

/// Not a test of its own: what the tests above run under `strace`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let (Ok(work), Ok(directory)) = (env::var(WORK), env::var(DIRECTORY)) else { return };
    let (kind, appends) = work.split_once(':').unwrap_or((&work, "0"));
    let appends = appends.parse().expect("a number of appends");
    match kind {
        "sequential" => sequential(Path::new(&directory), appends).await,
        "concurrent" => concurrent(Path::new(&directory), appends).await,
        "failing" => failing(Path::new(&directory)).await,
        "sequential-then-exit" => {
            let log = open(Path::new(&directory));
            for number in 0..appends {
                append_one(&log, ShardId(0), format!("entry {number}")).await;
            }
            std::process::exit(0);
        }
        other => panic!("no such work: {other}"),
    }
}

async fn sequential(directory: &Path, appends: usize) {
    let log = open(directory);
    for number in 0..appends {
        append_one(&log, ShardId((number % 4) as u16), format!("entry {number}")).await;
    }
}

async fn concurrent(directory: &Path, appends: usize) {
    let log = std::sync::Arc::new(open(directory));
    let callers = (0..CALLERS).map(|caller| {
        let log = log.clone();
        tokio::spawn(async move {
            for number in 0..appends / CALLERS {
                append_one(&*log, ShardId((caller % 4) as u16), format!("entry {number}")).await;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no caller panics");
    }
}

/// The sync of the fourth append fails.
async fn failing(directory: &Path) {
    let log = open(directory);
    for number in 0..3 {
        append_one(&log, ShardId(0), format!("synced {number}")).await;
    }
    assert_eq!(append(&log, ShardId(0), vec!["fails".into()]).await, [AppendOutcome::Unknown]);
    assert_eq!(append(&log, ShardId(1), vec!["later".into()]).await, [AppendOutcome::Unknown]);
    assert!(matches!(log.admission(), Err(LogError::Closed)));
    assert_eq!(read_all(&log, ShardId(0)).await.len(), 3, "what was not synced is not read");
    drop(log);
    let log = open(directory);
    let found = read_all(&log, ShardId(0)).await.len();
    assert!(found == 3 || found == 4, "what was synced is there; what was not may be");
    append_one(&log, ShardId(1), "goes on").await;
}

fn fdatasyncs(work: &str) -> usize {
    let directory = tempdir().expect("a temporary directory");
    count(&[], work, directory.path())
}

/// Runs [`child`] and returns how often it called `fdatasync`.
fn count(options: &[&str], work: &str, directory: &Path) -> usize {
    let summary = directory.join("summary");
    let path = summary.to_str().expect("temporary paths are UTF-8").to_owned();
    let options = [options, &["-c", "-e", "trace=fdatasync,fsync", "-o", &path]].concat();
    strace(&options, work, directory);
    let summary = std::fs::read_to_string(summary).expect("strace writes its summary");
    let row = summary.lines().find(|line| line.ends_with(" fdatasync"));
    let calls = row.map_or(Some(0), |row| row.split_whitespace().nth(3)?.parse().ok());
    calls.unwrap_or_else(|| panic!("cannot read the summary of strace:\n{summary}"))
}

fn strace(options: &[&str], work: &str, directory: &Path) {
    let program = env::current_exe().expect("this program has a path");
    let run = Command::new("strace")
        .args(["-f", "-q"])
        .args(options)
        .arg(program)
        .args(["--exact", "syncs::child", "--nocapture"])
        .envs([(WORK, work.as_ref()), (DIRECTORY, directory.as_os_str())])
        .output()
        .expect("this test needs the program strace (Debian package strace)");
    let output = [&run.stdout[..], &run.stderr[..]].concat();
    assert!(run.status.success(), "strace or its child failed:\n{}", String::from_utf8_lossy(&output));
}
