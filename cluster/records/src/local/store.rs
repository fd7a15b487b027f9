//! The directory of the embedded store: creating, opening and checking it.
//!
//! ```text
//! DIR/lock            held by the one process that has the store open
//! DIR/store/schema    the version of the layout
//! DIR/store/mark      the number of the last durable checkpoint
//! DIR/store/closed    there while every row lies in a table and the journal is not needed
//! DIR/store/rows/     the embedded database
//! DIR/store.new/      a store being created; becomes `store` in one rename
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use fjall::{AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{
    LocalOptions, cell, files, journal,
    keys::{Kind, damaged},
    mark::Mark,
    schema::{self, SCHEMA_VERSION, Step},
};
use crate::RecordsError;

/// All rows lie in one keyspace. It has one memtable at a time and one journal, both in the order of the writes, so
/// that whatever a crash takes, what is left is what stood at one moment: never a checkpoint without its rows.
const KEYSPACE: &str = "rows";

/// How long a database that was closed in this process may yet be in use by a worker of its own.
const CLOSING: Duration = Duration::from_millis(100);

/// The name of the mark of a store that was closed in peace.
const CLOSED: &str = "closed";

/// How long closing may take for the last flush; after that the next open reads the journal.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Flushes and compactions. With more than one, the first does no compactions and spins while another does.
const WORKER_THREADS: usize = 1;

/// Enough for the tables of some 10 GB; the least-recently used are closed.
const OPEN_FILES: usize = 128;

/// Rows that are in no table yet are replayed at start from at most about this much journal.
const JOURNAL_BYTES: u64 = 64 << 20;

/// How an older layout becomes the newest: the first leads from version 1 to 2.
const MIGRATIONS: [Step<Rows>; SCHEMA_VERSION as usize - 1] = [];

/// The opened rows. All clones of the database must be dropped before it can be opened again.
pub(super) struct Rows {
    pub(super) db: Database,
    pub(super) keyspace: Keyspace,
}

/// What [`open`] found.
pub(super) struct Opened {
    pub(super) rows: Rows,
    pub(super) mark: Mark,
    /// The number of the newest checkpoint.
    pub(super) number: u64,
}

/// Makes sure that the directory exists and that nobody else uses it, for as long as the file lives.
pub(super) fn lock(dir: &Path) -> Result<File, RecordsError> {
    let unusable = |error: io::Error| unusable(dir, error.to_string());
    if fs::metadata(dir).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(self::unusable(dir, "it is not a directory: choose another --data directory"));
    }
    files::create_dir_all(dir).map_err(unusable)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RecordsError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// Opens the store in a locked directory, creating it if there is none.
pub(super) fn open(dir: &Path, options: LocalOptions) -> Result<Opened, RecordsError> {
    let store = dir.join("store");
    if !store.exists() {
        create(dir, &store, options).map_err(|error| unusable(dir, error))?;
    }
    let found = schema::read(&store, dir)?;
    let (mark, durable) = Mark::open(&store)?;
    let (rows, number) = open_rows(dir, &store, options, durable)?;
    schema::migrate(found, &MIGRATIONS, &rows, |version| {
        schema::write(&store, version).map_err(|error| unusable(dir, error.to_string()))
    })?;
    Ok(Opened { rows, mark, number })
}

/// Creates the store under another name, so that no crash leaves half of one.
fn create(dir: &Path, store: &Path, options: LocalOptions) -> Result<(), String> {
    let new = dir.join("store.new");
    let create = || -> Result<(), fjall::Error> {
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir(&new)?;
        drop(create_rows(&new.join("rows"), options)?);
        Mark::create(&new)?;
        schema::write(&new, SCHEMA_VERSION)?;
        files::sync_tree(&new)?;
        Ok(files::rename(&new, store)?)
    };
    create().map_err(|error| describe(&error))
}

fn create_rows(path: &Path, options: LocalOptions) -> fjall::Result<Rows> {
    let db = open_database(path, options)?;
    let memtable = options.memtable_bytes;
    let keyspace = db.keyspace(KEYSPACE, || KeyspaceCreateOptions::default().max_memtable_size(memtable))?;
    db.persist(PersistMode::SyncAll)?;
    Ok(Rows { db, keyspace })
}

/// Opens the rows and checks that they hold the last durable checkpoint.
fn open_rows(dir: &Path, store: &Path, options: LocalOptions, durable: u64) -> Result<(Rows, u64), RecordsError> {
    let path = store.join("rows");
    check_files(&path)?;
    forget_journal_if_closed(store, &path).map_err(|error| unusable(dir, error.to_string()))?;
    let cut = journal::mend(&path)?;
    let opened = checked(dir, &path, options, durable);
    let settled = match (&opened, cut) {
        (_, None) => Ok(()),
        (Ok(_), Some(cut)) => cut.accept(),
        (Err(_), Some(cut)) => cut.undo(),
    };
    let opened = opened?;
    settled.map_err(|error| unusable(dir, error.to_string()))?;
    Ok(opened)
}

/// What the database cannot do without. It does not complain where some of this is missing, but starts afresh there and
/// deletes the rest as left over.
fn check_files(rows: &Path) -> Result<(), RecordsError> {
    let keyspaces = rows.join("keyspaces");
    let entries = fs::read_dir(&keyspaces).map_err(|error| damaged("store", error.to_string()))?;
    let keyspaces: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let current = keyspaces.iter().map(|keyspace| keyspace.join("current"));
    let missing = [rows.join("version")].into_iter().chain(current).find(|file| !file.is_file());
    if let Some(file) = missing {
        return Err(damaged("store", format!("{} is missing", file.display())));
    }
    // One for the database's own data, one for the rows.
    if keyspaces.len() < 2 || !journal::exists(rows) {
        return Err(damaged("store", format!("files are missing in {}", rows.display())));
    }
    Ok(())
}

fn checked(dir: &Path, path: &Path, options: LocalOptions, durable: u64) -> Result<(Rows, u64), RecordsError> {
    let db = match open_behind_closing(path, options) {
        Ok(Ok(db)) => db,
        Ok(Err(error)) => return Err(open_error(dir, &error)),
        Err(_) => return Err(damaged("store", "its files are not as the database left them")),
    };
    if !db.keyspace_exists(KEYSPACE) {
        return Err(damaged("store", "it has no rows"));
    }
    let keyspace = db.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(|error| open_error(dir, &error))?;
    let number = newest_checkpoint(&keyspace)?;
    if number < durable {
        let reason = format!("its newest checkpoint is number {number}, but number {durable} was made durable");
        return Err(damaged("store", reason));
    }
    Ok((Rows { db, keyspace }, number))
}

/// Opens the database, also if it was closed in this process a moment ago: a worker of it may yet hold its lock and delete what it has
/// replaced. Nobody else can be in it, since the directory is locked.
fn open_behind_closing(path: &Path, options: LocalOptions) -> std::thread::Result<fjall::Result<Database>> {
    let deadline = Instant::now() + CLOSING;
    loop {
        // The database trusts its files' names and contents in places and panics on strange ones.
        let opened = catch_unwind(AssertUnwindSafe(|| open_database(path, options)));
        match &opened {
            Ok(Err(error)) if may_be_closing(error) && Instant::now() < deadline => sleep(Duration::from_millis(1)),
            _ => return opened,
        }
    }
}

fn may_be_closing(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Locked => true,
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            error.kind() == io::ErrorKind::NotFound
        }
        _ => false,
    }
}

fn open_database(path: &Path, options: LocalOptions) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(options.block_cache_bytes)
        .worker_threads(WORKER_THREADS)
        .max_cached_files(Some(OPEN_FILES))
        .max_journaling_size(JOURNAL_BYTES)
        .journal_compression(CompressionType::None)
        .open()
}

/// Checkpoints are numbered over all shards, and the number stands where a row has its position.
fn newest_checkpoint(keyspace: &Keyspace) -> Result<u64, RecordsError> {
    let mut newest = 0;
    for row in keyspace.prefix([Kind::Checkpoint as u8]) {
        let row = row.value().map_err(|error| read_error(&error))?;
        newest = newest.max(cell::decode("checkpoint", &row)?.0.0);
    }
    Ok(newest)
}

/// Closes the store in `dir`. If all goes well, the next open has no journal to read, which is most of its work.
pub(super) fn close(dir: &Path, rows: Rows) {
    let is_flushed = flush(&rows).unwrap_or(false);
    drop(rows);
    if is_flushed && let Err(error) = files::replace(&dir.join("store").join(CLOSED), b"") {
        tracing::warn!(%error, "the next start reads the records' journal");
    }
}

/// Brings all rows into tables; `false` if that takes too long. Nobody may be writing.
fn flush(rows: &Rows) -> fjall::Result<bool> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    rows.keyspace.rotate_memtable()?;
    while rows.keyspace.sealed_memtable_count() > 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        // Fails once the database has given up on flushing.
        rows.db.persist(PersistMode::Buffer)?;
        sleep(Duration::from_millis(1));
    }
    Ok(rows.keyspace.tree.active_memtable().is_empty())
}

fn forget_journal_if_closed(store: &Path, rows: &Path) -> io::Result<()> {
    let closed = store.join(CLOSED);
    if closed.exists() {
        journal::discard(rows)?;
        files::remove(&closed)?;
    }
    Ok(())
}

fn unusable(dir: &Path, reason: impl Into<String>) -> RecordsError {
    RecordsError::Unusable { path: PathBuf::from(dir), reason: reason.into() }
}

fn open_error(dir: &Path, error: &fjall::Error) -> RecordsError {
    match error {
        fjall::Error::Locked => RecordsError::InUse { path: dir.to_owned() },
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) => unusable(dir, describe(error)),
        _ => damaged("store", describe(error)),
    }
}

/// What a failed read means to the caller.
pub(super) fn read_error(error: &fjall::Error) -> RecordsError {
    match error {
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) => {
            RecordsError::Unavailable(describe(error))
        }
        _ => damaged("table of rows", describe(error)),
    }
}

/// The database's error without its own name in front.
pub(super) fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Storage(error) => format!("{error:?}"),
        error => format!("{error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_older_version_has_its_migration() {
        assert_eq!(MIGRATIONS.len() as u32 + 1, SCHEMA_VERSION);
    }
}
