//! What a backup says of itself: which files it has, how long they are and what their SHA-256 is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, one_line};

/// The manifest's name. Written last: a backup without one is cut.
pub(super) const FILE: &str = "manifest.json";
/// Where the copied files are, beside the manifest.
pub(super) const FILES: &str = "data";
/// The newest format of backups that this build writes and reads.
pub(super) const FORMAT: u32 = 1;
/// The longest manifest that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// See the module.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The version that made the backup.
    pub(super) parlance: String,
    /// When.
    pub(super) at: String,
    /// By path below the data directory, with slashes.
    pub(super) files: BTreeMap<String, Entry>,
    /// Directories that hold no file, as paths.
    pub(super) directories: Vec<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    /// In hexadecimal.
    pub(super) sha256: String,
}

impl Manifest {
    /// Reads the manifest of the backup in `from`.
    ///
    /// # Errors
    ///
    /// Exit code 2 if it is no backup, 1 if it is damaged or newer than this build.
    pub(super) fn read(from: &Path) -> Result<Self, Failure> {
        let path = from.join(FILE);
        let length = fs::metadata(&path).map_err(|error| {
            let problem = format!("{} is no whole backup: cannot read {FILE}: {error}", from.display());
            Failure::usage(problem, "Name a directory that `parlance data backup` wrote to its end")
        })?;
        if length.len() > MAX_BYTES {
            return Err(damaged(FILE, "it is too long"));
        }
        let text = fs::read(&path).map_err(|error| damaged(FILE, &error.to_string()))?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| damaged(FILE, &error.to_string()))?;
        if manifest.format > FORMAT {
            let (found, version) = (manifest.format, &manifest.parlance);
            return Err(Failure::failed(
                format!("the backup has format {found}, and this build reads up to {FORMAT}"),
                format!("Restore it with parlance {version} or later"),
            ));
        }
        match manifest.files.keys().chain(&manifest.directories).find(|path| !is_below(path)) {
            Some(path) => Err(damaged(FILE, &format!("{path:?} is no path below a data directory"))),
            None => Ok(manifest),
        }
    }
}

/// Whether a path leads to below wherever it is put.
fn is_below(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The backup is not what it was.
pub(super) fn damaged(what: &str, reason: &str) -> Failure {
    let problem = one_line(&format!("the backup is damaged: {what}: {reason}"));
    Failure::failed(problem, "Nothing was restored; use another copy of the backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_damage() {
        for (path, below) in [("log/meta", true), ("sealed", true), ("../x", false), ("/x", false), ("", false)] {
            assert_eq!(is_below(path), below, "{path:?}");
        }
    }
}
