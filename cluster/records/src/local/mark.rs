//! The number of the last checkpoint that was made durable, kept outside the rows.
//!
//! A crash may take rows that were never synced, and the store then opens as of an earlier moment. Whether what is
//! missing was ever durable only this file can tell: a store that comes back with an older checkpoint than this one
//! was damaged, not torn.
//!
//! ```text
//! slot 0 at byte 0, slot 1 at byte 512:   u64 number | u32 CRC-32C of the number      (little-endian)
//! ```
//!
//! The slots are written in turn, so that a torn write leaves the other one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::keys::damaged;
use crate::RecordsError;

const FILE: &str = "mark";
const SLOT_BYTES: u64 = 512;
const SLOTS: u64 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
}

impl Mark {
    /// Creates the mark of a new store, at 0. The caller syncs the directory.
    pub(super) fn create(dir: &Path) -> io::Result<()> {
        let file = File::create_new(dir.join(FILE))?;
        file.set_len(SLOTS * SLOT_BYTES)?;
        let mark = Self { file };
        (0..SLOTS).try_for_each(|slot| mark.write(slot, 0))?;
        mark.file.sync_all()
    }

    /// Opens the mark and reads its number.
    pub(super) fn open(dir: &Path) -> Result<(Self, u64), RecordsError> {
        let bad = |reason: String| damaged("mark", reason);
        let file = OpenOptions::new().read(true).write(true).open(dir.join(FILE)).map_err(|e| bad(e.to_string()))?;
        let mark = Self { file };
        let number = (0..SLOTS).filter_map(|slot| mark.read(slot)).max();
        number.map(|number| (mark, number)).ok_or_else(|| bad("neither of its slots is readable".into()))
    }

    /// Records, durably, that the checkpoint with this number is durable.
    pub(super) fn advance(&self, number: u64) -> io::Result<()> {
        self.write(number % SLOTS, number)?;
        self.file.sync_data()
    }

    fn write(&self, slot: u64, number: u64) -> io::Result<()> {
        let number = number.to_le_bytes();
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32c::crc32c(&number).to_le_bytes());
        self.file.write_all_at(&bytes, slot * SLOT_BYTES)
    }

    fn read(&self, slot: u64) -> Option<u64> {
        let mut bytes = [0; 12];
        self.file.read_exact_at(&mut bytes, slot * SLOT_BYTES).ok()?;
        let (number, crc) = bytes.split_first_chunk::<8>()?;
        (crc32c::crc32c(number).to_le_bytes() == crc).then_some(u64::from_le_bytes(*number))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_intact_slot_counts() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        Mark::create(dir.path())?;
        let (mark, number) = Mark::open(dir.path())?;
        assert_eq!(number, 0);
        for number in 1..=5 {
            mark.advance(number)?;
            assert_eq!(Mark::open(dir.path())?.1, number);
        }
        mark.file.write_all_at(&[0xff; 12], SLOT_BYTES)?;
        assert_eq!(Mark::open(dir.path())?.1, 4, "a torn write of 5 leaves 4");
        fs::write(dir.path().join(FILE), [0xff; 1_024])?;
        assert!(matches!(Mark::open(dir.path()), Err(RecordsError::Damaged { .. })));
        Ok(())
    }
}
