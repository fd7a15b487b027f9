//! Directories and files that are not what the embedded store left there.

mod common;
mod directory;

use std::{
    error::Error,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use common::{SMALL, checkpoint, held, record};
use directory::copy;
use parlance_cluster_records::{LocalRecords, RecordStore, RecordsError};

const RECORDS: u64 = 600;
/// How often a live store is copied until the copy is of one moment.
const COPIES: usize = 20;

/// A store as a kill leaves it, with rows in tables and in the journal.
async fn killed_store(dir: &Path) -> Result<(), Box<dyn Error>> {
    let live = tempfile::tempdir()?;
    let store = LocalRecords::open_with(live.path(), SMALL)?;
    for position in 0..RECORDS {
        store.write(record(position)).await?;
    }
    checkpoint(&store, RECORDS - 1).await?;
    // A kill takes all files at one moment; a copy does not, and the store's own threads may put new ones in place of old ones meanwhile.
    for _ in 0..COPIES {
        let trial = tempfile::tempdir()?;
        let copied = copy(live.path(), dir).and_then(|()| copy(dir, trial.path()));
        if copied.is_ok() && all_is_there(trial.path()).await.is_ok() {
            return Ok(());
        }
        fs::remove_dir_all(dir)?;
    }
    Err("the store never rests".into())
}

fn files_below(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

/// Opens and reads everything; the error if the damage is noticed.
async fn all_is_there(dir: &Path) -> Result<(), RecordsError> {
    let found = held(&LocalRecords::open_with(dir, SMALL)?).await?;
    assert_eq!(found, (RECORDS, Some(RECORDS - 1)), "an opened store holds everything");
    Ok(())
}

/// Whatever is done to one file: the store says so and changes nothing, since with the file put back all is there; or
/// it does without it.
/// What becomes of a file's bytes; `None`: the file goes.
type Damage = fn(&[u8]) -> Option<Vec<u8>>;

#[tokio::test(flavor = "multi_thread")]
async fn no_damaged_file_goes_unnoticed() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let intact = dir.path().join("intact");
    killed_store(&intact).await?;
    let files = files_below(&intact.join("store"))?;
    assert!(files.iter().any(|file| file.to_string_lossy().contains("/tables/")), "{files:?}");
    let damages: [(&str, Damage); 5] = [
        ("removed", |_| None),
        ("emptied", |_| Some(Vec::new())),
        ("cut in half", |bytes| Some(bytes[..content(bytes) / 2].to_vec())),
        ("overwritten", |bytes| Some(vec![0xa5; bytes.len()])),
        ("changed in the middle", |bytes| {
            let mut bytes = bytes.to_vec();
            let middle = content(bytes.as_slice()) / 2;
            bytes.get_mut(middle..middle + 4)?.fill(0xa5);
            Some(bytes)
        }),
    ];
    let mut noticed = 0;
    for file in &files {
        for (what, damage) in damages {
            let case = format!("{} {what}", file.display());
            let trial = tempfile::tempdir()?;
            copy(&intact, trial.path())?;
            let target = trial.path().join(file.strip_prefix(&intact)?);
            let original = fs::read(&target)?;
            match damage(&original) {
                Some(damaged) => fs::write(&target, damaged)?,
                None => fs::remove_file(&target)?,
            }
            if let Err(error) = all_is_there(trial.path()).await {
                noticed += 1;
                let is_named = matches!(error, RecordsError::Damaged { .. } | RecordsError::Unusable { .. });
                assert!(is_named, "{case}: {error}");
                fs::write(&target, original)?;
                all_is_there(trial.path()).await.map_err(|error| format!("{case}, then put back: {error}"))?;
            }
        }
    }
    assert!(noticed > files.len(), "{noticed} damages noticed in {} files", files.len());
    Ok(())
}

/// Without the zeros that a journal ends with.
fn content(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_is_told_and_disturbs_nothing() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = LocalRecords::open(dir.path())?;
    store.write(record(0)).await?;
    let error = LocalRecords::open(dir.path()).err().ok_or("a store has one opener")?;
    assert!(matches!(error, RecordsError::InUse { .. }));
    assert!(error.to_string().contains("stop that one"), "{error}");
    store.write(record(1)).await?;
    drop(store);
    assert_eq!(held(&LocalRecords::open(dir.path())?).await?.0, 2);
    Ok(())
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    for path in [dir.path().join("file"), dir.path().join("store")] {
        fs::write(&path, "precious")?;
    }
    let error = LocalRecords::open(dir.path().join("file")).err().ok_or("it is a file")?;
    assert!(matches!(&error, RecordsError::Unusable { reason, .. } if reason.contains("not a directory")), "{error}");
    assert!(LocalRecords::open(dir.path().join("file/below")).is_err());
    assert!(LocalRecords::open(dir.path()).is_err(), "its store is a file");
    assert_eq!(fs::read(dir.path().join("file"))?, b"precious");
    assert_eq!(fs::read(dir.path().join("store"))?, b"precious");
    Ok(())
}

/// The superuser may write anywhere; where the test runs as one, a place that nobody can write to stands in.
#[test]
fn a_directory_that_cannot_be_written_is_refused() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500))?;
    let is_superuser = fs::write(dir.path().join("probe"), "").is_ok();
    let place = if is_superuser { PathBuf::from("/proc/records") } else { dir.path().join("records") };
    let error = LocalRecords::open(&place).err().ok_or("nothing can be created there")?;
    assert!(matches!(&error, RecordsError::Unusable { path, .. } if *path == place), "{error}");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_release_is_refused_and_kept() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = LocalRecords::open(dir.path())?;
    store.write(record(0)).await?;
    drop(store);
    let schema = dir.path().join("store/schema");
    let original = fs::read_to_string(&schema)?;
    fs::write(&schema, original.replace('1', "7"))?;
    let error = LocalRecords::open(dir.path()).err().ok_or("version 7 is newer")?;
    assert!(matches!(error, RecordsError::Newer { found: 7, .. }), "{error}");
    fs::write(&schema, original)?;
    assert_eq!(held(&LocalRecords::open(dir.path())?).await?.0, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_whole() -> Result<(), Box<dyn Error>> {
    use parlance_cluster_records::{Change, ChangeKind, MAX_ID_BYTES, Row};

    let dir = tempfile::tempdir()?;
    let store = LocalRecords::open(dir.path())?;
    let mut session = common::session();
    let kind = ChangeKind::ForgetDedupe { session: session.clone(), event_id: "x".repeat(MAX_ID_BYTES + 1) };
    let mut batch = record(0);
    batch.push(Change { kind, ..batch[0].clone() });
    assert!(matches!(store.write(batch).await, Err(RecordsError::TooLarge { what: "event id", .. })));
    session.chat = "x".repeat(600);
    let kind = ChangeKind::Put(Row::Session { session: session.clone(), state: "s".into() });
    let change = Change { kind, ..record(0).remove(0) };
    assert!(matches!(store.write(vec![change]).await, Err(RecordsError::TooLarge { .. })));
    assert!(matches!(store.session(&session).await, Err(RecordsError::TooLarge { .. })));
    assert_eq!(held(&store).await?, (0, None), "nothing of the refused batches was written");
    Ok(())
}
