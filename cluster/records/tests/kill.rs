//! What a kill leaves of the embedded store.

mod common;

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use common::{SMALL, checkpoint, held, number, record};
use parlance_cluster_records::{LocalRecords, RecordStore};

const KILLS: u64 = 12;
const CHILD_DIR: &str = "PARLANCE_TEST_RECORDS_DIR";

/// Not a test of its own: the process that `nothing_is_lost_in_a_kill` kills. Writes without end and tells, line by
/// line, which position it has made durable.
#[tokio::test(flavor = "multi_thread")]
async fn child_writes_until_killed() -> Result<(), Box<dyn Error>> {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return Ok(()) };
    let store = LocalRecords::open_with(&dir, SMALL)?;
    for position in held(&store).await?.0.. {
        store.write(record(position)).await?;
        if position % 7 == 0 {
            checkpoint(&store, position).await?;
            writeln!(std::io::stderr(), "durable {position}")?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_in_a_kill() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut reached = None;
    for kill in 0..KILLS {
        let durable = run_and_kill(dir.path(), 1 + kill * 9)?;
        let store = LocalRecords::open_with(dir.path(), SMALL)?;
        let (count, checkpoint) = held(&store).await?;
        assert!(count > durable && checkpoint >= Some(durable), "{count} records and {checkpoint:?} after {durable}");
        assert!(Some(durable) > reached, "the child made progress");
        reached = Some(durable);
    }
    Ok(())
}

/// Runs the child until it has reported `reports` durable positions, kills it, and returns the last of them.
fn run_and_kill(dir: &Path, reports: u64) -> Result<u64, Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "child_writes_until_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stderr.take().ok_or("no pipe")?).lines();
    let mut durable = None;
    for line in lines.map_while(Result::ok).filter(|line| line.starts_with("durable ")).take(reports as usize) {
        durable = Some(number(&line.as_bytes()["durable ".len()..]));
    }
    child.kill()?;
    child.wait()?;
    Ok(durable.ok_or("the child made nothing durable")?)
}
