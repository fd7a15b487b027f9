//! What a kill and a power loss leave of the embedded store.

mod common;

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use common::{SMALL, checkpoint, copy, held, number, record};
use parlance_cluster_records::{LocalOptions, LocalRecords, RecordStore, RecordsError};

const KILLS: u64 = 12;
const CHILD_DIR: &str = "PARLANCE_TEST_RECORDS_DIR";
const PAGE: usize = 4_096;

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

/// Pages of the journal that were not synced come back or not, one by one, as they may after a power loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_takes_nothing_from_before_the_checkpoint() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (live, synced, after) = (dir.path().join("live"), dir.path().join("synced"), dir.path().join("after"));
    let store = LocalRecords::open(&live)?;
    for position in 0..20 {
        store.write(record(position)).await?;
    }
    checkpoint(&store, 19).await?;
    copy(&live, &synced)?;
    for position in 20..160 {
        store.write(record(position)).await?;
    }
    copy(&live, &after)?;

    let mut kept = Vec::new();
    for seed in 0..24 {
        let lost = dir.path().join(format!("lost {seed}"));
        copy(&after, &lost)?;
        lose_pages(&synced, &lost, seed)?;
        let store = LocalRecords::open(&lost)?;
        let (count, checkpoint) = held(&store).await?;
        assert!(count >= 20 && checkpoint == Some(19), "{count} records and {checkpoint:?}");
        store.write(record(count)).await?;
        drop(store);
        assert_eq!(held(&LocalRecords::open(&lost)?).await?.0, count + 1, "it goes on from there");
        kept.push(count);
    }
    kept.sort();
    assert!(kept[0] < kept[kept.len() - 1], "the seeds tear at different places: {kept:?}");
    Ok(())
}

/// Gives back each journal page that differs from the synced state with a chance of one half to one in 32.
fn lose_pages(synced: &Path, lost: &Path, seed: u64) -> std::io::Result<()> {
    let journal = Path::new("store/rows/0.jnl");
    let (old, mut new) = (fs::read(synced.join(journal))?, fs::read(lost.join(journal))?);
    for (number, page) in new.chunks_mut(PAGE).enumerate() {
        let start = number * PAGE;
        let mut synced = old[start.min(old.len())..old.len().min(start + page.len())].to_vec();
        synced.resize(page.len(), 0);
        let chance = 2 << (seed % 5);
        let is_lost = crc32c::crc32c(&[seed, number as u64].map(u64::to_be_bytes).concat()).is_multiple_of(chance);
        if page != synced && is_lost {
            page.copy_from_slice(&synced);
        }
    }
    fs::write(lost.join(journal), new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_creation_was_interrupted_is_created() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("store.new/rows"))?;
    fs::write(dir.path().join("store.new/rows/0.jnl"), "half")?;
    let store = LocalRecords::open(dir.path())?;
    assert_eq!(held(&store).await?, (0, None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_writes_and_not_reads() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = LocalRecords::open(dir.path())?;
    store.write(record(0)).await?;
    drop(store);
    let store = LocalRecords::open_with(dir.path(), LocalOptions { reserve_bytes: u64::MAX, ..SMALL })?;
    assert!(matches!(store.write(record(1)).await, Err(RecordsError::Full { .. })));
    assert!(matches!(checkpoint(&store, 0).await, Err(RecordsError::Full { .. })));
    assert_eq!(held(&store).await?, (1, None));
    Ok(())
}
