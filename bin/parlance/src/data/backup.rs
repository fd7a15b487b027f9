//! Copies a data directory as it lies, with a manifest of what it holds.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
    time::SystemTime,
};

use serde::Serialize;

use super::{
    LOG, RECORDS, check_is_data,
    copy::{at, check_free, copy_file, give_name, make_dir, part_of},
    manifest::{FILE, FILES, FORMAT, Manifest},
};
use crate::{failure::Failure, files};

/// The files that a process locks while it has the directory open; they hold nothing.
const LOCK: &str = "lock";

/// What was copied.
#[derive(Debug, Serialize)]
pub(crate) struct BackedUp {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// Copies the data directory `data` into the new directory `to`.
///
/// # Errors
///
/// Exit code 2 for paths that cannot be used, 1 if a node runs on the directory, or for what keeps it from being copied; then there is no
/// backup under that name.
pub(crate) fn back_up(data: &Path, to: &Path) -> Result<BackedUp, Failure> {
    check_is_data(data)?;
    check_free(to, "--to")?;
    let _locks = [lock(data, LOG)?, lock(data, RECORDS)?];
    let part = part_of(to)?;
    let at_now = httpdate::fmt_http_date(SystemTime::now());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut manifest =
        Manifest { format: FORMAT, parlance: version, at: at_now, files: Default::default(), directories: vec![] };
    let copied = part.join(FILES);
    make_dir(&copied)?;
    copy_below(data, &copied, String::new(), &mut manifest)?;
    let text = serde_json::to_vec_pretty(&manifest).expect("its keys are strings");
    at(&part, files::write_whole(&part.join(FILE), &text))?;
    give_name(&part, to)?;
    Ok(BackedUp { files: manifest.files.len(), bytes: manifest.files.values().map(|entry| entry.bytes).sum() })
}

/// Keeps nodes from the directory for as long as the file lives.
fn lock(data: &Path, below: &str) -> Result<Option<File>, Failure> {
    let path = data.join(below).join(LOCK);
    let file = match OpenOptions::new().write(true).open(&path) {
        Ok(file) => file,
        // Never opened by anybody.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Ok(at(&path, Err(error))?),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Failure::failed(
            format!("a process uses the data directory {}", data.display()),
            "End the node first: `kill -TERM` lets it finish its turns",
        )),
        Err(TryLockError::Error(error)) => Ok(at(&path, Err(error))?),
    }
}

fn copy_below(from: &Path, to: &Path, prefix: String, manifest: &mut Manifest) -> Result<(), Failure> {
    let mut empty = true;
    for entry in at(from, fs::read_dir(from))? {
        let entry = at(from, entry)?;
        empty = false;
        let name = entry.file_name().into_string().map_err(|name| {
            Failure::failed(format!("the name {name:?} is not UTF-8"), "No node made it: move it elsewhere")
        })?;
        let (source, target) = (entry.path(), to.join(&name));
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = at(&source, entry.file_type())?;
        if kind.is_dir() {
            make_dir(&target)?;
            copy_below(&source, &target, path, manifest)?;
        } else if kind.is_file() {
            manifest.files.insert(path, copy_file(&source, &target)?);
        } else {
            let problem = format!("{} is neither a file nor a directory", source.display());
            return Err(Failure::failed(problem, "No node made it: move it elsewhere"));
        }
    }
    if empty && !prefix.is_empty() {
        manifest.directories.push(prefix);
    }
    Ok(())
}
