//! The secret under which the names of users are hashed. Made once per data directory: with another one, stored hashes say nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use crate::{failure::Failure, files};

/// A secret of 256 bits.
pub(crate) type Secret = [u8; 32];

/// Reads the secret at `path`, or makes one. The caller holds the data directory's lock.
///
/// # Errors
///
/// Exit code 1 if it cannot be read or written, or is damaged.
pub(crate) fn load(path: &Path) -> Result<Secret, Failure> {
    let read = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(error) => Err(error),
        Ok(mut file) => read_whole(&mut file),
    };
    read.map_err(|error| {
        Failure::failed(
            format!("cannot use {}: {error}", path.display()),
            "Restore the file from a copy of the data directory",
        )
    })
}

fn read_whole(file: &mut File) -> io::Result<Secret> {
    let mut secret = Secret::default();
    file.read_exact(&mut secret)?;
    match file.read(&mut [0])? {
        0 => Ok(secret),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 32 bytes")),
    }
}

fn make(path: &Path) -> io::Result<Secret> {
    let secret: Secret = rand::random();
    files::write_whole(path, &secret)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_a_damaged_one_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("user-secret");
        let first = load(&path).expect("made");
        assert_eq!(load(&path).expect("read"), first);
        assert_ne!(first, Secret::default());
        for damaged in [&[1_u8; 31][..], &[1; 33], &[]] {
            std::fs::write(&path, damaged).expect("written");
            let refused = load(&path).expect_err("damaged").lines.remove(0);
            assert!(refused.contains("Restore the file"), "{refused}");
            assert_eq!(std::fs::read(&path).expect("still there"), damaged);
        }
    }
}
