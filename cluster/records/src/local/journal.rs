//! The torn tail of the embedded store's journal.
//!
//! What was appended since the last sync may come back from a power loss in any shape: cut, as zeros, or with holes,
//! since the kernel writes pages in any order. The embedded store (fjall 3.1) copes with a cut and with zeros; a batch
//! with a hole in it makes it refuse to open. And behind bytes that are no entry at all it drops the rest in silence,
//! whether torn or damaged. So each journal is read before the store sees it, and a torn tail is cut at the last whole
//! batch. The cut part is kept until the caller has seen that nothing durable was in it.
//!
//! ```text
//! batch   1 | u32 items | u64 seqno          then that many entries, then the end
//! item    2 | u8 type | u8 compression | u64 keyspace | u16 key | u32 value | u32 stored value | key bytes | value bytes
//! clear   4 | u64 keyspace
//! end     3 | u64 XXH3 of the entries | "FJL" 3                                      (all little-endian)
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use super::{files, keys::damaged, writer::MAX_VALUE_BYTES};
use crate::RecordsError;

const TRAILER: [u8; 4] = *b"FJL\x03";
const READ_BUFFER_BYTES: usize = 256 << 10;
/// What a journal's copy is called until the cut is accepted.
const COPY: &str = "torn";

/// A journal whose torn tail was cut.
#[derive(Debug)]
pub(super) struct Cut {
    journal: PathBuf,
    copy: PathBuf,
}

impl Cut {
    /// Nothing durable was lost: forgets the tail.
    pub(super) fn accept(self) -> io::Result<()> {
        files::remove(&self.copy)
    }

    /// Something durable was lost: puts the journal back as it was found.
    pub(super) fn undo(self) -> io::Result<()> {
        files::rename(&self.copy, &self.journal)
    }
}

/// Whether there is any journal in `dir`, be it a copy.
pub(super) fn exists(dir: &Path) -> bool {
    let is_one = |path: PathBuf| path.extension().is_some_and(|extension| extension == "jnl" || extension == COPY);
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| is_one(entry.path())))
}

/// Makes the journals in `dir` readable again after a crash.
pub(super) fn mend(dir: &Path) -> Result<Option<Cut>, RecordsError> {
    let failed = |error: io::Error| damaged("journal", error.to_string());
    undo_unaccepted(dir).map_err(failed)?;
    let mut journals = list(dir).map_err(failed)?;
    let active = journals.pop();
    for sealed in journals {
        // A journal is synced before the next one is created.
        if let Tail::Torn { valid } = scan(&sealed).map_err(failed)? {
            return Err(damaged("journal", format!("{} is wrong from byte {valid} on", sealed.display())));
        }
    }
    let Some(journal) = active else { return Ok(None) };
    match scan(&journal).map_err(failed)? {
        Tail::Clean => Ok(None),
        Tail::Torn { valid } => cut(journal, valid).map(Some).map_err(failed),
    }
}

/// Empties the journals in `dir`, all of whose rows lie in tables. The last one stays, since a database without any
/// does not learn where its sequence numbers stand.
pub(super) fn discard(dir: &Path) -> io::Result<()> {
    let mut journals = list(dir)?;
    if let Some(active) = journals.pop() {
        shorten(&active, 0)?;
    }
    journals.iter().try_for_each(|sealed| files::remove(sealed))
}

fn shorten(journal: &Path, length: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(journal)?;
    file.set_len(length)?;
    file.sync_all()
}

fn cut(journal: PathBuf, valid: u64) -> io::Result<Cut> {
    tracing::warn!(journal = %journal.display(), valid, "cutting the torn tail of the records' journal");
    let copy = journal.with_extension(COPY);
    let unfinished = journal.with_extension("tmp");
    fs::copy(&journal, &unfinished)?;
    File::open(&unfinished)?.sync_all()?;
    files::rename(&unfinished, &copy)?;
    shorten(&journal, valid)?;
    Ok(Cut { journal, copy })
}

/// A crash between a cut and its acceptance: back to before the cut. Nothing was written since.
fn undo_unaccepted(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let copy = entry?.path();
        if copy.extension().is_some_and(|extension| extension == COPY) {
            files::rename(&copy, &copy.with_extension("jnl"))?;
        }
    }
    Ok(())
}

/// The journals, oldest first.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "jnl")) {
            journals.push((number, path));
        }
    }
    journals.sort();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Tail {
    /// Whole batches, then nothing or zeros.
    Clean,
    /// Whole batches up to `valid`, then something else.
    Torn { valid: u64 },
}

fn scan(path: &Path) -> io::Result<Tail> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a file", path.display())));
    }
    let mut journal = Journal { reader: BufReader::with_capacity(READ_BUFFER_BYTES, file), entry: Vec::new() };
    let mut valid = 0;
    while let Some(length) = journal.batch()? {
        valid += length;
    }
    journal.reader.seek(SeekFrom::Start(valid))?;
    Ok(if only_zeros(&mut journal.reader)? { Tail::Clean } else { Tail::Torn { valid } })
}

fn only_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        let length = bytes.len();
        reader.consume(length);
    }
}

struct Journal {
    reader: BufReader<File>,
    /// The entry that was read last.
    entry: Vec<u8>,
}

impl Journal {
    /// Reads one batch and returns its length; `None` where no whole batch stands.
    fn batch(&mut self) -> io::Result<Option<u64>> {
        self.entry.clear();
        if !self.extend(13)? || self.entry[0] != 1 {
            return Ok(None);
        }
        let mut length = 13;
        let mut checksum = Xxh3::new();
        for _ in 0..u32_at(&self.entry, 1) {
            if !self.entry()? {
                return Ok(None);
            }
            checksum.update(&self.entry);
            length += self.entry.len() as u64;
        }
        self.entry.clear();
        let whole = self.extend(13)?
            && self.entry[0] == 3
            && self.entry[1..9] == checksum.digest().to_le_bytes()
            && self.entry[9..] == TRAILER;
        Ok(whole.then_some(length + 13))
    }

    /// Reads one entry of a batch; `false` where none stands.
    fn entry(&mut self) -> io::Result<bool> {
        self.entry.clear();
        if !self.extend(1)? {
            return Ok(false);
        }
        match self.entry[0] {
            2 => {
                if !self.extend(20)? {
                    return Ok(false);
                }
                let key = usize::from(u16::from_le_bytes([self.entry[11], self.entry[12]]));
                let value = u32_at(&self.entry, 17) as usize;
                // The value is bounded by what is ever written, with room for its header.
                Ok(value <= 2 * MAX_VALUE_BYTES && self.extend(key + value)?)
            }
            4 => self.extend(8),
            _ => Ok(false),
        }
    }

    /// Appends `count` bytes to the entry; `false` if the file ends before.
    fn extend(&mut self, count: usize) -> io::Result<bool> {
        Ok(self.reader.by_ref().take(count as u64).read_to_end(&mut self.entry)? == count)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
