//! The directory of the local log: its lock, its `meta` file and its segment files, each made durable before it counts.
//!
//! A file gets its content under a `.tmp` name, is synced, gets its name, and the directory is synced. So a name promises whole
//! content, and whatever is called `.tmp` is left over from a crash.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use parlance_cluster_protocol::WireError;
use rustix::fs::FlockOperation;
use tracing::warn;

use super::format::{Flaw, META_BYTES, Meta, VERSION};
use crate::LogError;

const META: &str = "meta";
const META_TMP: &str = "meta.tmp";
const LOCK: &str = "lock";
const SEGMENT_SUFFIX: &str = ".seg";
const TMP_SUFFIX: &str = ".tmp";
/// Bytes written at once while a segment is filled with zeros.
const FILL_BYTES: usize = 256 * 1024;
/// The sequence number of a log's first segment.
pub(super) const FIRST_SEGMENT: u32 = 1;

/// The directory of a log.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

/// The right to change the directory, until the last who holds it drops it.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// A child process that is just being spawned may still hold a copy of the file, so that closing it would not do.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            warn!(%error, "cannot unlock the log");
        }
    }
}

/// A segment file that is open for writing.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) sequence: u32,
    pub(super) file: File,
    /// Its length: writing below it allocates nothing.
    pub(super) capacity: usize,
}

impl Directory {
    /// Creates the directory where there is none, refuses one that is something else's, and locks it.
    pub(super) fn open(path: &Path) -> Result<(Self, Lock), LogError> {
        create_durably(path).map_err(|e| unusable(path, e))?;
        if !path.join(META).exists() {
            refuse_foreign(path)?;
        }
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|e| unusable(&lock_path, e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok((Self { path: path.to_owned() }, Lock(lock))),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LogError::InUse { path: path.to_owned() }),
            Err(e) => Err(unusable(&lock_path, e.into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn segment_path(&self, sequence: u32) -> PathBuf {
        self.path.join(format!("{sequence:010}{SEGMENT_SUFFIX}"))
    }

    /// The log's identity; `None` where no log was made yet.
    pub(super) fn meta(&self) -> Result<Option<Meta>, LogError> {
        let path = self.path.join(META);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unusable(&path, e)),
        };
        let at = bytes.len().min(META_BYTES) as u64;
        match Meta::decode(&bytes) {
            Ok(meta) => Ok(Some(meta)),
            Err(Flaw::Newer(found)) => Err(newer(found)),
            Err(Flaw::Bad(reason)) => Err(LogError::Damaged { path, at, reason: reason.into() }),
        }
    }

    /// Makes a new log of one segment that begins with `header`. `meta` comes last: what a crash leaves without one, but
    /// with its `.tmp`, was never a log and is made anew.
    pub(super) fn create_log(&self, meta: &Meta, header: &[u8], segment_bytes: usize) -> Result<(), LogError> {
        self.clear_interrupted_creation()?;
        let meta_tmp = self.path.join(META_TMP);
        write_durably(&meta_tmp, &meta.encode()).map_err(|e| unusable(&meta_tmp, e))?;
        self.sync()?;
        self.create_segment(FIRST_SEGMENT, header, segment_bytes, false)?;
        let meta_path = self.path.join(META);
        fs::rename(&meta_tmp, &meta_path).map_err(|e| unusable(&meta_path, e))?;
        self.sync()
    }

    fn clear_interrupted_creation(&self) -> Result<(), LogError> {
        let segments = self.segments()?;
        if segments.is_empty() {
            return Ok(());
        }
        let path = self.path.join(META);
        if segments != [FIRST_SEGMENT] || !self.path.join(META_TMP).exists() {
            let reason = "it is missing, though segments of a log lie beside it".into();
            return Err(LogError::Damaged { path, at: 0, reason });
        }
        self.remove_segment(FIRST_SEGMENT)
    }

    /// Makes a segment of `bytes` bytes, zero but for `header`, and durable in content and name.
    /// `gently` leaves half of the disk's time to the writer.
    pub(super) fn create_segment(
        &self,
        sequence: u32,
        header: &[u8],
        bytes: usize,
        gently: bool,
    ) -> Result<SegmentFile, LogError> {
        let path = self.segment_path(sequence);
        let tmp = path.with_extension("seg.tmp");
        let file = fill_with_zeros(&tmp, header, bytes, gently).map_err(|e| {
            // What little was written must not take the last space; a failure to remove it is found again by the next open.
            let _ = fs::remove_file(&tmp);
            unusable(&tmp, e)
        })?;
        fs::rename(&tmp, &path).map_err(|e| unusable(&path, e))?;
        self.sync()?;
        Ok(SegmentFile { sequence, file, capacity: bytes })
    }

    /// The sequence numbers of all segments, ascending.
    pub(super) fn segments(&self) -> Result<Vec<u32>, LogError> {
        let mut sequences = Vec::new();
        for name in names(&self.path)? {
            let Some(stem) = name.strip_suffix(SEGMENT_SUFFIX) else { continue };
            match stem.parse() {
                Ok(sequence) if stem.len() == 10 => sequences.push(sequence),
                _ => return Err(foreign(&self.path, &name)),
            }
        }
        sequences.sort_unstable();
        Ok(sequences)
    }

    /// Opens a segment for writing.
    pub(super) fn open_segment(&self, sequence: u32) -> Result<SegmentFile, LogError> {
        let path = self.segment_path(sequence);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| unusable(&path, e))?;
        let capacity = file.metadata().map_err(|e| unusable(&path, e))?.len() as usize;
        Ok(SegmentFile { sequence, file, capacity })
    }

    /// Deletes a segment for good: the next one is only deleted after this one cannot come back.
    pub(super) fn remove_segment(&self, sequence: u32) -> Result<(), LogError> {
        let path = self.segment_path(sequence);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unusable(&path, e)),
            _ => self.sync(),
        }
    }

    /// Deletes what a crash left half made.
    pub(super) fn remove_leftovers(&self) -> Result<(), LogError> {
        for name in names(&self.path)?.iter().filter(|name| name.ends_with(TMP_SUFFIX)) {
            let path = self.path.join(name);
            fs::remove_file(&path).map_err(|e| unusable(&path, e))?;
        }
        Ok(())
    }

    /// Bytes that are free for us on the file system.
    pub(super) fn free_bytes(&self) -> Result<u64, LogError> {
        let stat = rustix::fs::statvfs(&self.path).map_err(|e| unusable(&self.path, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn sync(&self) -> Result<(), LogError> {
        sync_directory(&self.path).map_err(|e| unusable(&self.path, e))
    }
}

pub(super) fn unusable(path: &Path, source: io::Error) -> LogError {
    LogError::Unusable { path: path.to_owned(), source: Arc::new(source) }
}

pub(super) fn newer(found: u32) -> LogError {
    WireError::Newer { what: "local log", found, supported: VERSION }.into()
}

fn foreign(path: &Path, name: &str) -> LogError {
    let message = format!("it holds {name:?}, which is no part of a log: choose another --data directory");
    unusable(path, io::Error::new(io::ErrorKind::AlreadyExists, message))
}

/// A directory without `meta` may hold what an interrupted creation leaves, and nothing else.
fn refuse_foreign(path: &Path) -> Result<(), LogError> {
    let ours = |name: &str| name == LOCK || name.ends_with(SEGMENT_SUFFIX) || name.ends_with(TMP_SUFFIX);
    match names(path)?.into_iter().find(|name| !ours(name)) {
        Some(name) => Err(foreign(path, &name)),
        None => Ok(()),
    }
}

fn names(path: &Path) -> Result<Vec<String>, LogError> {
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| unusable(path, e))?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_durably(parent)?;
    fs::create_dir(path)?;
    sync_directory(parent)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    OpenOptions::new().write(true).open(path)?.sync_all()
}

fn fill_with_zeros(path: &Path, header: &[u8], bytes: usize, gently: bool) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    let zeros = vec![0; FILL_BYTES.min(bytes)];
    for at in (0..bytes).step_by(FILL_BYTES) {
        let begun = Instant::now();
        file.write_all_at(&zeros[..FILL_BYTES.min(bytes - at)], at as u64)?;
        if gently {
            // Not `sync_data`: that call is the writer's alone, so that a trace can count it.
            file.sync_all()?;
            thread::sleep(begun.elapsed());
        }
    }
    file.write_all_at(header, 0)?;
    file.sync_all()?;
    Ok(file)
}
