//! The last entries of a shard, kept so that all who follow it read them once from Kafka.

use std::collections::VecDeque;

use parlance_cluster_protocol::Offset;

use crate::StoredEntry;

/// Bytes kept per shard at most; with 64 shards, 16 MiB.
const MAX_BYTES: usize = 256 * 1024;
/// Entries kept per shard at most.
const MAX_ENTRIES: usize = 1024;

/// Invariant: the entries are those that the log holds from the first on, none left out.
#[derive(Default)]
pub(super) struct Recent {
    entries: VecDeque<StoredEntry>,
    bytes: usize,
}

impl Recent {
    /// Keeps `entry`, which came from the log right behind the entry that ends at `after`; what lies before is forgotten if that is not
    /// the last one here.
    pub(super) fn push(&mut self, after: u64, entry: StoredEntry) {
        if self.end() != Some(after) {
            self.clear();
        }
        self.bytes += entry.bytes.len();
        self.entries.push_back(entry);
        while self.bytes > MAX_BYTES || self.entries.len() > MAX_ENTRIES {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
        }
    }

    /// The entries from `from` on, about `max_bytes` of them; none if that one is not here.
    pub(super) fn from(&self, from: u64, max_bytes: usize) -> Vec<StoredEntry> {
        let (Some(first), Some(end)) = (self.entries.front(), self.end()) else { return Vec::new() };
        if from < first.offset.0 || from >= end {
            return Vec::new();
        }
        let mut bytes = 0;
        let at = self.entries.partition_point(|entry| entry.offset.0 < from);
        let fits = |entry: &&StoredEntry| {
            let fits = bytes == 0 || bytes < max_bytes;
            bytes += entry.bytes.len().max(1);
            fits
        };
        self.entries.range(at..).take_while(fits).cloned().collect()
    }

    /// Forgets the entries before `start`.
    pub(super) fn trim(&mut self, start: u64) {
        while self.entries.front().is_some_and(|entry| entry.offset < Offset(start)) {
            self.bytes -= self.entries.pop_front().map_or(0, |entry| entry.bytes.len());
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    fn end(&self) -> Option<u64> {
        self.entries.back().map(|entry| entry.offset.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(offset: u64, bytes: usize) -> StoredEntry {
        StoredEntry { offset: Offset(offset), bytes: Bytes::from(vec![0; bytes]) }
    }

    fn offsets(entries: &[StoredEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.offset.0).collect()
    }

    #[test]
    fn gives_what_it_has_by_size() {
        let mut recent = Recent::default();
        (5..9).for_each(|offset| recent.push(offset, entry(offset, 10)));
        assert_eq!(offsets(&recent.from(5, 1000)), [5, 6, 7, 8]);
        assert_eq!(offsets(&recent.from(6, 0)), [6]);
        assert_eq!(offsets(&recent.from(6, 15)), [6, 7]);
        assert!(recent.from(4, 1000).is_empty() && recent.from(9, 1000).is_empty());
        recent.trim(7);
        assert!(recent.from(6, 1000).is_empty());
        assert_eq!(offsets(&recent.from(7, 1000)), [7, 8]);
    }

    #[test]
    fn forgets_the_oldest_and_what_does_not_join() {
        let mut recent = Recent::default();
        (0..3).for_each(|offset| recent.push(offset, entry(offset, MAX_BYTES / 2)));
        assert_eq!(offsets(&recent.from(1, usize::MAX)), [1, 2]);
        assert!(recent.from(0, 1).is_empty());
        recent.push(7, entry(7, 1));
        assert!(recent.from(2, 1).is_empty(), "a hole is never passed over");
        // A hole that the log itself has is no hole here.
        recent.push(8, entry(9, 1));
        assert_eq!(offsets(&recent.from(7, 10)), [7, 9]);
        recent.push(10, entry(10, MAX_BYTES + 1));
        assert!(recent.from(10, 1).is_empty(), "one that is too large is not kept");
    }
}
