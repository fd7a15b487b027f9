//! The mark of a data directory whose sessions went elsewhere: no node serves it any more.

use std::{fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, one_line},
    files,
};

/// The file's name below the data directory.
const FILE: &str = "sealed";
const FORMAT: u32 = 1;

/// What the mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    format: u32,
    /// Who adopts the sessions, for people, and to be recognised.
    pub(super) into: String,
    /// When it was made.
    at: String,
    /// By which version.
    parlance: String,
}

impl Seal {
    pub(super) fn now(into: &str) -> Self {
        let at = httpdate::fmt_http_date(SystemTime::now());
        Self { format: FORMAT, into: into.to_owned(), at, parlance: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Makes the mark, durably. The caller holds the directory's lock.
    pub(super) fn write(&self, data: &Path) -> Result<(), Failure> {
        let path = data.join(FILE);
        let text = serde_json::to_vec(self).expect("its keys are strings");
        files::write_whole(&path, &text).map_err(|error| unusable(&path, &error.to_string()))
    }
}

/// The mark in `data`, if there is one.
///
/// # Errors
///
/// Exit code 1 if there is one that cannot be read: then the directory counts as sealed too.
pub(super) fn read(data: &Path) -> Result<Option<Seal>, Failure> {
    let path = data.join(FILE);
    match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(seal) => Ok(Some(seal)),
            Err(error) => Err(unusable(&path, &error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(&path, &error.to_string())),
    }
}

/// Refuses to serve a directory that is sealed.
///
/// # Errors
///
/// Exit code 1 with what was sealed when, for whom, and the remedy.
pub(crate) fn refuse(data: &Path) -> Result<(), Failure> {
    let Some(seal) = read(data)? else { return Ok(()) };
    let shown = data.display();
    Err(Failure::failed(
        format!("the data directory {shown} was sealed on {}: its sessions went to {}", seal.at, seal.into),
        format!(
            "Talk to a node there, or start a new node with another --data; `parlance data adopt --from {shown}` ends an interrupted move"
        ),
    ))
}

fn unusable(path: &Path, reason: &str) -> Failure {
    Failure::failed(
        one_line(&format!("cannot use {}, which seals the directory: {reason}", path.display())),
        "Check the file and its permissions, or restore it from a copy of the data directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_directory_is_refused_even_if_its_mark_is_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(refuse(dir.path()).is_ok() && read(dir.path()).is_ok_and(|seal| seal.is_none()));
        let seal = Seal::now("cluster chat");
        seal.write(dir.path()).expect("written");
        assert_eq!(read(dir.path()).expect("read"), Some(seal.clone()));
        let told = refuse(dir.path()).expect_err("sealed").lines.remove(0);
        for part in ["cluster chat", &seal.at, "--data", "data adopt --from"] {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
        fs::write(dir.path().join(FILE), "{").expect("damaged");
        assert!(refuse(dir.path()).is_err());
    }
}
