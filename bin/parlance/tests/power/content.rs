//! The content of a file: as it is now, and how the blocks were that changed since it was last synced.

use std::collections::BTreeMap;

const BLOCK_BYTES: usize = 4096;
/// A disk writes so much whole or not at all.
const SECTOR_BYTES: usize = 512;

type Block = Box<[u8; BLOCK_BYTES]>;

fn zeros() -> Block {
    Box::new([0; BLOCK_BYTES])
}

/// What of the writes since the last sync is still there after the power is lost.
pub(crate) trait Remains {
    /// Whether the disk had this sector, or this length of the file, already.
    fn kept(&mut self) -> bool;
}

/// Nothing remains.
pub(crate) struct Nothing;

impl Remains for Nothing {
    fn kept(&mut self) -> bool {
        false
    }
}

/// Anything may remain, in any order: a disk owes none before the sync.
pub(crate) struct Anything;

impl Remains for Anything {
    fn kept(&mut self) -> bool {
        rand::random()
    }
}

/// A file's content. Blocks that are absent are zero.
#[derive(Default)]
pub(super) struct Content {
    blocks: BTreeMap<u64, Block>,
    size: u64,
    durable_size: u64,
    /// The blocks that changed since the last sync, as they were then.
    before: BTreeMap<u64, Option<Block>>,
    /// Written since the last sync.
    unsynced_bytes: u64,
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let end = self.size.min(at.saturating_add(length as u64));
        let mut bytes = Vec::with_capacity(length);
        let mut at = at;
        while at < end {
            let (block, from, count) = piece(at, end);
            match self.blocks.get(&block) {
                Some(block) => bytes.extend_from_slice(&block[from..from + count]),
                None => bytes.resize(bytes.len() + count, 0),
            }
            at += count as u64;
        }
        bytes
    }

    pub(super) fn write(&mut self, at: u64, mut data: &[u8]) {
        let end = at + data.len() as u64;
        self.unsynced_bytes += data.len() as u64;
        let mut at = at;
        while at < end {
            let (block, from, count) = piece(at, end);
            self.change(block)[from..from + count].copy_from_slice(&data[..count]);
            data = &data[count..];
            at += count as u64;
        }
        self.size = self.size.max(end);
    }

    /// Cuts the file, or lengthens it with zeros.
    pub(super) fn resize(&mut self, size: u64) {
        if size < self.size {
            let (block, from, _) = piece(size, u64::MAX);
            if from > 0 && self.blocks.contains_key(&block) {
                self.change(block)[from..].fill(0);
            }
            for (number, block) in self.blocks.split_off(&size.div_ceil(BLOCK_BYTES as u64)) {
                self.before.entry(number).or_insert(Some(block));
            }
        }
        self.size = size;
    }

    /// Makes everything durable that was written.
    pub(super) fn sync(&mut self) {
        self.before.clear();
        self.durable_size = self.size;
        self.unsynced_bytes = 0;
    }

    /// Goes back to the last sync, but for what of the later writes remains. How many bytes were written and not synced.
    pub(super) fn lose(&mut self, remains: &mut dyn Remains) -> u64 {
        let size = if remains.kept() { self.size } else { self.durable_size };
        for (number, before) in std::mem::take(&mut self.before) {
            let before = before.unwrap_or_else(zeros);
            let now = self.blocks.entry(number).or_insert_with(zeros);
            for from in (0..BLOCK_BYTES).step_by(SECTOR_BYTES).filter(|_| !remains.kept()) {
                now[from..from + SECTOR_BYTES].copy_from_slice(&before[from..from + SECTOR_BYTES]);
            }
        }
        let lost = self.unsynced_bytes;
        self.size = u64::MAX;
        self.resize(size);
        self.sync();
        lost
    }

    /// A block to be changed, after noting how it was.
    fn change(&mut self, number: u64) -> &mut Block {
        let now = self.blocks.get(&number);
        self.before.entry(number).or_insert_with(|| now.cloned());
        self.blocks.entry(number).or_insert_with(zeros)
    }
}

/// The block at a place, the offset in it, and how much of it lies before `end`.
fn piece(at: u64, end: u64) -> (u64, usize, usize) {
    let from = at % BLOCK_BYTES as u64;
    let count = (BLOCK_BYTES as u64 - from).min(end - at);
    (at / BLOCK_BYTES as u64, from as usize, count as usize)
}
