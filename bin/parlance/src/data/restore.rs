//! Writes a backup's files into a new data directory, if all of them are what the manifest says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    BackedUp,
    copy::{at, check_free, copy_file, give_name, make_dir, part_of},
    manifest::{FILES, Manifest, damaged},
};
use crate::failure::Failure;

/// Restores the backup in `from` as the data directory `data`. It has its name only once every file was found to be what it was.
///
/// # Errors
///
/// Exit code 2 for paths that cannot be used, 1 for a backup that is damaged, cut or newer than this build, and for what keeps it from
/// being written; then there is no directory under that name, or an empty one as before.
pub(crate) fn restore(from: &Path, data: &Path) -> Result<BackedUp, Failure> {
    check_free(data, "--data")?;
    let manifest = Manifest::read(from)?;
    let copied = from.join(FILES);
    check_complete(&copied, &manifest)?;
    if let Some(parent) = data.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent)?;
    }
    let part = part_of(data)?;
    let restored = copy_all(&copied, &part, &manifest).and_then(|done| {
        give_name(&part, data)?;
        Ok(done)
    });
    if restored.is_err() {
        // What is left of it bears another name and is removed by the next run.
        let _left = fs::remove_dir_all(&part);
    }
    restored
}

fn copy_all(copied: &Path, part: &Path, manifest: &Manifest) -> Result<BackedUp, Failure> {
    let mut done = BackedUp { files: 0, bytes: 0 };
    for path in &manifest.directories {
        make_dir(&part.join(path))?;
    }
    for (path, expected) in &manifest.files {
        let target = part.join(path);
        target.parent().map_or(Ok(()), make_dir)?;
        let found = copy_file(&copied.join(path), &target)?;
        if found.bytes != expected.bytes {
            let reason = format!("it has {} bytes and should have {}", found.bytes, expected.bytes);
            return Err(damaged(path, &reason));
        }
        if found.sha256 != expected.sha256 {
            return Err(damaged(path, "its SHA-256 is another"));
        }
        done.files += 1;
        done.bytes += found.bytes;
    }
    Ok(done)
}

/// Every file of the manifest is there, and no other.
fn check_complete(copied: &Path, manifest: &Manifest) -> Result<(), Failure> {
    if let Some(path) = manifest.files.keys().find(|path| !copied.join(path).is_file()) {
        return Err(damaged(path, "it is missing"));
    }
    let mut found = Vec::new();
    list(copied, copied, &mut found)?;
    match found.iter().find(|path| !manifest.files.contains_key(*path)) {
        Some(path) => Err(damaged(path, "the manifest does not know it")),
        None => Ok(()),
    }
}

fn list(root: &Path, dir: &Path, found: &mut Vec<String>) -> Result<(), Failure> {
    let mut below: Vec<PathBuf> = Vec::new();
    for entry in at(dir, fs::read_dir(dir))? {
        below.push(at(dir, entry)?.path());
    }
    for path in below {
        if path.is_dir() {
            list(root, &path, found)?;
        } else {
            found.push(path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned());
        }
    }
    Ok(())
}
