//! What the tests do with directories of the embedded store.

use std::{fs, io, path::Path};

/// Copies a directory as it stands.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() { copy(&entry, &to)? } else { fs::copy(&entry, &to).map(drop)? }
    }
    Ok(())
}
