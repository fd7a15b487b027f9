//! What a power loss, a full disk and an interrupted creation leave of the embedded store. No process is started here: one that has not yet
//! begun its program would hold the locks of the stores that are open beside it.

mod common;
mod directory;

use std::{error::Error, fs, path::Path};

use common::{SMALL, checkpoint, held, record};
use directory::copy;
use parlance_cluster_records::{LocalOptions, LocalRecords, RecordStore, RecordsError};

const PAGE: usize = 4_096;

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
