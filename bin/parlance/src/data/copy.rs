//! Copies files durably, and says what they hold.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::manifest::Entry;
use crate::failure::Failure;

const BUFFER_BYTES: usize = 1 << 20;

/// A copy that failed, with the path where it did.
pub(super) struct Failed {
    path: PathBuf,
    error: io::Error,
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        let Failed { path, error } = failed;
        Self::failed(format!("cannot copy {}: {error}", path.display()), "Check the disk and the permissions")
    }
}

/// Names the path at which something failed.
pub(super) fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Failed> {
    result.map_err(|error| Failed { path: path.to_owned(), error })
}

/// Copies a file into one that is not there yet, for its owner alone, and syncs it.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<Entry, Failed> {
    let mut source = at(from, File::open(from))?;
    let mut target = at(to, OpenOptions::new().create_new(true).write(true).mode(0o600).open(to))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return at(from, Err(error)),
        };
        hasher.update(&buffer[..count]);
        at(to, target.write_all(&buffer[..count]))?;
        bytes += count as u64;
    }
    at(to, target.sync_all())?;
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Entry { bytes, sha256 })
}

/// Makes a directory and those above it, for its owner alone.
pub(super) fn make_dir(path: &Path) -> Result<(), Failed> {
    at(path, DirBuilder::new().recursive(true).mode(0o700).create(path))
}

/// Makes the names in a directory and all below it durable.
pub(super) fn sync_names(dir: &Path) -> Result<(), Failed> {
    for entry in at(dir, fs::read_dir(dir))? {
        let path = at(dir, entry)?.path();
        if path.is_dir() {
            sync_names(&path)?;
        }
    }
    at(dir, File::open(dir).and_then(|dir| dir.sync_all()))
}

/// Gives what was copied its name, durably. Only a directory that is empty may bear it already.
pub(super) fn give_name(part: &Path, whole: &Path) -> Result<(), Failed> {
    sync_names(part)?;
    at(whole, fs::rename(part, whole))?;
    let parent = whole.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    at(parent, File::open(parent).and_then(|dir| dir.sync_all()))
}

/// Where a directory is written until it is whole; one that an earlier run left is removed.
pub(super) fn part_of(whole: &Path) -> Result<PathBuf, Failed> {
    let mut name = whole.file_name().map(std::ffi::OsStr::to_owned).unwrap_or_default();
    name.push(".part");
    let part = whole.with_file_name(name);
    match fs::remove_dir_all(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => at(&part, Err(error)),
        _ => make_dir(&part).map(|()| part),
    }
}

/// Refuses a target that holds something.
///
/// # Errors
///
/// Exit code 2.
pub(super) fn check_free(target: &Path, option: &str) -> Result<(), Failure> {
    let refused = |problem: String| Err(Failure::usage(problem, format!("Name a new directory with {option}")));
    if target.file_name().is_none() {
        return refused(format!("{} has no name of its own", target.display()));
    }
    match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => refused(format!("{} is not empty", target.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => refused(format!("cannot use {}: {error}", target.display())),
    }
}
