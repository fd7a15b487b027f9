//! What lies in the segments when a log is opened, and the repair of a torn end.
//!
//! A batch is written only once the one before it is synced, and a segment is begun only once its predecessor is. So a crash can tear the
//! last batch alone, which nobody was told about: it is cut off. A flaw with anything valid behind it is damage, and
//! nothing is changed then.

use std::{io, ops::Range, path::PathBuf};

use std::os::unix::fs::FileExt;

use parlance_cluster_protocol::ShardId;
use tracing::warn;

use super::{
    directory::{Directory, SegmentFile, newer, unusable},
    format::{BLOCK, Batch, Flaw, Meta, SegmentHeader, round_up},
    index::{Index, Place},
};
use crate::LogError;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A log as found, repaired and ready to be written to.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) next_batch: u64,
    pub(super) active: SegmentFile,
    /// Where the next batch goes in `active`.
    pub(super) at: usize,
    /// The segment after `active`, all zeros.
    pub(super) spare: Option<SegmentFile>,
}

/// Reads all segments and repairs a torn end.
///
/// # Errors
///
/// [`LogError::Damaged`] and format errors, before anything was changed; [`LogError::Unusable`].
pub(super) fn recover(directory: &Directory, meta: &Meta) -> Result<Recovered, LogError> {
    let sequences = directory.segments()?;
    let Some((&first, &last)) = sequences.first().zip(sequences.last()) else {
        return Err(damaged(directory.segment_path(1), 0, "all segments are missing"));
    };
    if let Some(missing) = (first..=last).zip(&sequences).find_map(|(want, have)| (want != *have).then_some(want)) {
        return Err(damaged(directory.segment_path(missing), 0, "it is missing"));
    }
    let mut scan = Scan { directory, meta, index: None, next_batch: 0, tail: None, spare: None };
    let mut bytes = Vec::new();
    for sequence in first..=last {
        read_segment(directory, sequence, &mut bytes)?;
        scan.segment(sequence, &bytes, sequence == last)?;
    }
    scan.repair()
}

/// The end of the last segment that has a header.
#[derive(Debug)]
struct Tail {
    sequence: u32,
    /// The last batch, or the header where there is none: written, but perhaps never synced.
    last: Range<usize>,
    /// Why nothing more could be read at `last.end`.
    reason: &'static str,
    /// What is not zero behind it.
    garbage: Range<usize>,
}

#[derive(Debug)]
struct Spare {
    sequence: u32,
    garbage: Range<usize>,
}

struct Scan<'a> {
    directory: &'a Directory,
    meta: &'a Meta,
    /// From the first header on.
    index: Option<Index>,
    next_batch: u64,
    tail: Option<Tail>,
    spare: Option<Spare>,
}

impl Scan<'_> {
    fn segment(&mut self, sequence: u32, bytes: &[u8], last: bool) -> Result<(), LogError> {
        let path = || self.directory.segment_path(sequence);
        let room = SegmentHeader::room(self.meta.shards);
        if bytes.len() < room {
            return Err(damaged(path(), bytes.len(), "it ends within its header"));
        }
        match SegmentHeader::decode(bytes) {
            Ok(header) => {
                self.header(sequence, &header)?;
                self.batches(sequence, bytes, room)
            }
            Err(Flaw::Newer(found)) => Err(newer(found)),
            Err(Flaw::Bad(_)) if last && self.tail.is_some() => self.unused(sequence, bytes, room),
            Err(Flaw::Bad(reason)) => Err(damaged(path(), 0, reason)),
        }
    }

    fn header(&mut self, sequence: u32, header: &SegmentHeader) -> Result<(), LogError> {
        let path = self.directory.segment_path(sequence);
        if header.log_id != self.meta.log_id || header.marks.len() != usize::from(self.meta.shards) {
            return Err(damaged(path, 0, "it belongs to another log"));
        }
        if header.sequence != sequence {
            return Err(damaged(path, 0, "it was another segment of this log"));
        }
        if let Some(before) = self.tail.as_ref().filter(|_| header.first_batch != self.next_batch) {
            return Err(damaged(self.directory.segment_path(before.sequence), before.last.end, before.reason));
        }
        let index = self.index.get_or_insert_with(|| Index::new(&header.marks));
        self.next_batch = header.first_batch;
        for ((shard, mark), expected) in (0..).zip(&header.marks).zip(index.marks()) {
            if mark.next != expected.next {
                return Err(damaged(path, 0, "its offsets do not follow those before it"));
            }
            index.restore_trim(ShardId(shard), mark.trimmed);
        }
        index.begin_segment(sequence);
        Ok(())
    }

    fn batches(&mut self, sequence: u32, bytes: &[u8], room: usize) -> Result<(), LogError> {
        let mut last = 0..room;
        let reason = loop {
            match Batch::decode(bytes, last.end, self.meta.log_id) {
                Ok(batch) if batch.number == self.next_batch => {
                    self.batch(sequence, last.end, &batch)?;
                    self.next_batch += 1;
                    last = last.end..last.end + batch.room;
                }
                Ok(_) => {
                    return Err(damaged(self.directory.segment_path(sequence), last.end, "a batch is out of order"));
                }
                Err(reason) => break reason,
            }
        };
        if has_batch(bytes, last.end + BLOCK, self.meta.log_id) {
            return Err(damaged(self.directory.segment_path(sequence), last.end, reason));
        }
        let garbage = garbage(bytes, last.end);
        self.tail = Some(Tail { sequence, last, reason, garbage });
        Ok(())
    }

    fn batch(&mut self, segment: u32, at: usize, batch: &Batch<'_>) -> Result<(), LogError> {
        let bad = |reason| damaged(self.directory.segment_path(segment), at, reason);
        let index = self.index.as_mut().expect("the header came before");
        for (distance, frame) in batch.frames().map_err(bad)? {
            if index.end(frame.shard) != Some(frame.offset) {
                return Err(bad("an entry is out of order"));
            }
            let length = frame.bytes();
            index.push(frame.shard, Place { segment, at: position(at + distance), length: position(length) });
        }
        Ok(())
    }

    /// A last segment without a header was prepared, and perhaps its first write was torn.
    fn unused(&mut self, sequence: u32, bytes: &[u8], room: usize) -> Result<(), LogError> {
        let before = self.tail.as_ref().expect("checked by the caller");
        let garbage = garbage(bytes, 0);
        if has_batch(bytes, room + BLOCK, self.meta.log_id) {
            return Err(damaged(self.directory.segment_path(sequence), 0, "its header is corrupt"));
        }
        if !garbage.is_empty() && !before.garbage.is_empty() {
            return Err(damaged(self.directory.segment_path(before.sequence), before.last.end, before.reason));
        }
        self.spare = Some(Spare { sequence, garbage });
        Ok(())
    }

    fn repair(self) -> Result<Recovered, LogError> {
        let directory = self.directory;
        directory.remove_leftovers()?;
        let tail = self.tail.expect("a log has a segment, and its first has a header");
        let active = directory.open_segment(tail.sequence)?;
        cut_off(directory, &active, tail.garbage)?;
        // Where the last sync failed, the kernel may hold this batch as clean though the disk lacks it: written again, it is dirty again.
        sync_again(&active, tail.last.clone()).map_err(|e| unusable(&directory.segment_path(active.sequence), e))?;
        let spare = match self.spare {
            None => None,
            Some(spare) => {
                let file = directory.open_segment(spare.sequence)?;
                cut_off(directory, &file, spare.garbage)?;
                Some(file)
            }
        };
        let index = self.index.expect("a log has a segment");
        Ok(Recovered { index, next_batch: self.next_batch, active, at: tail.last.end, spare })
    }
}

fn read_segment(directory: &Directory, sequence: u32, bytes: &mut Vec<u8>) -> Result<(), LogError> {
    let path = directory.segment_path(sequence);
    let segment = directory.open_segment(sequence)?;
    if u32::try_from(segment.capacity).is_err() {
        return Err(damaged(path, 0, "it is larger than a segment can be"));
    }
    bytes.resize(segment.capacity, 0);
    segment.file.read_exact_at(bytes, 0).map_err(|e| unusable(&path, e))
}

/// Whether any whole batch begins at a block from `from` on.
fn has_batch(bytes: &[u8], from: usize, log_id: u128) -> bool {
    (from..bytes.len()).step_by(BLOCK).any(|at| Batch::decode(bytes, at, log_id).is_ok())
}

/// From `from` to the last byte that is not zero.
fn garbage(bytes: &[u8], from: usize) -> Range<usize> {
    let behind = bytes.get(from..).unwrap_or_default();
    let zeros = behind.rchunks(BLOCK).take_while(|block| **block == ZEROS[..block.len()]).map(<[u8]>::len);
    let end = from + behind.len() - zeros.sum::<usize>();
    from..end.max(from)
}

fn cut_off(directory: &Directory, segment: &SegmentFile, garbage: Range<usize>) -> Result<(), LogError> {
    if garbage.is_empty() {
        return Ok(());
    }
    let path = directory.segment_path(segment.sequence);
    warn!(path = %path.display(), at = garbage.start, bytes = garbage.len(), "cut off a torn batch, which nobody was told about");
    let zeros = vec![0; round_up(garbage.len()).min(segment.capacity - garbage.start)];
    let cut = segment.file.write_all_at(&zeros, garbage.start as u64).and_then(|()| segment.file.sync_data());
    cut.map_err(|e| unusable(&path, e))
}

fn sync_again(segment: &SegmentFile, range: Range<usize>) -> io::Result<()> {
    let mut bytes = vec![0; range.end.min(segment.capacity) - range.start];
    segment.file.read_exact_at(&mut bytes, range.start as u64)?;
    segment.file.write_all_at(&bytes, range.start as u64)?;
    segment.file.sync_data()
}

fn damaged(path: PathBuf, at: usize, reason: &str) -> LogError {
    LogError::Damaged { path, at: at as u64, reason: reason.into() }
}

fn position(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a segment's length fits")
}
