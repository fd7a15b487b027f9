//! Where every retained entry lies. In memory only: the scan at open rebuilds it.
//!
//! Bound: 12 bytes for an entry, twice that while a shard's list grows; a stored entry takes at least 20 bytes on disk and some 400
//! in practice, so the index stays near a thirtieth of the log.

use std::collections::VecDeque;

use parlance_cluster_protocol::{Offset, ShardId};

use super::format::ShardMark;
use crate::{Bounds, LogError};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) at: u32,
    /// Its length with its header.
    pub(super) length: u32,
}

#[derive(Debug, Default)]
struct ShardIndex {
    /// The offset of the first of `places`. Never goes back, over restarts neither: it moves only once a file is gone for good.
    first: Offset,
    places: VecDeque<Place>,
    /// Entries below are not needed any more.
    trimmed: Offset,
}

impl ShardIndex {
    fn end(&self) -> Offset {
        Offset(self.first.0 + self.places.len() as u64)
    }
}

#[derive(Debug)]
struct SegmentStart {
    sequence: u32,
    /// Per shard, the first offset that can lie in the segment.
    next: Vec<Offset>,
}

/// The places of all retained entries and the segments that they lie in.
#[derive(Debug)]
pub(super) struct Index {
    shards: Vec<ShardIndex>,
    /// Oldest first; the last is the active one.
    segments: VecDeque<SegmentStart>,
}

impl Index {
    /// An index whose oldest segment begins with `marks`.
    pub(super) fn new(marks: &[ShardMark]) -> Self {
        let shard = |mark: &ShardMark| ShardIndex { first: mark.next, ..ShardIndex::default() };
        Self { shards: marks.iter().map(shard).collect(), segments: VecDeque::new() }
    }

    /// Takes note that the entries from here on lie in segment `sequence`.
    pub(super) fn begin_segment(&mut self, sequence: u32) {
        debug_assert!(self.segments.back().is_none_or(|last| last.sequence < sequence));
        self.segments.push_back(SegmentStart { sequence, next: self.shards.iter().map(ShardIndex::end).collect() });
    }

    /// Takes note of the shard's next entry.
    pub(super) fn push(&mut self, shard: ShardId, place: Place) {
        self.shards[usize::from(shard.0)].places.push_back(place);
    }

    pub(super) fn end(&self, shard: ShardId) -> Option<Offset> {
        self.shards.get(usize::from(shard.0)).map(ShardIndex::end)
    }

    pub(super) fn bounds(&self, shard: ShardId) -> Result<Bounds, LogError> {
        let index = self.shard(shard, Offset(0))?;
        Ok(Bounds { start: index.first, end: index.end() })
    }

    /// What a segment that begins here records.
    pub(super) fn marks(&self) -> Vec<ShardMark> {
        self.shards.iter().map(|shard| ShardMark { next: shard.end(), trimmed: shard.trimmed }).collect()
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The places from `from` on: at least one if there is one, at most `max_bytes` of frames.
    pub(super) fn plan(&self, shard: ShardId, from: Offset, max_bytes: usize) -> Result<Vec<Place>, LogError> {
        let index = self.shard(shard, from)?;
        if from < index.first || from > index.end() {
            return Err(LogError::OutOfRange { shard, offset: from });
        }
        let skipped = (from.0 - index.first.0) as usize;
        let mut bytes = 0;
        let fits = |place: &&Place| {
            let first = bytes == 0;
            bytes += place.length as usize;
            first || bytes <= max_bytes
        };
        Ok(index.places.range(skipped..).take_while(fits).copied().collect())
    }

    /// Whether the entry at `offset` may be gone, or be about to go.
    pub(super) fn is_trimmed(&self, shard: ShardId, offset: Offset) -> bool {
        self.shard(shard, offset).is_ok_and(|index| offset < index.trimmed)
    }

    /// Takes note that entries below `before` are not needed any more.
    pub(super) fn trim(&mut self, shard: ShardId, before: Offset) -> Result<(), LogError> {
        if before > self.shard(shard, before)?.end() {
            return Err(LogError::OutOfRange { shard, offset: before });
        }
        self.restore_trim(shard, before);
        Ok(())
    }

    /// Takes over a trim point from a segment's header.
    pub(super) fn restore_trim(&mut self, shard: ShardId, before: Offset) {
        let index = &mut self.shards[usize::from(shard.0)];
        index.trimmed = index.trimmed.max(before);
    }

    /// The oldest segment, if no shard needs it and it is not the active one.
    pub(super) fn deletable(&self) -> Option<u32> {
        let (oldest, following) = (self.segments.front()?, self.segments.get(1)?);
        let needless = self.shards.iter().zip(oldest.next.iter().zip(&following.next));
        let needless = needless.into_iter().all(|(shard, (start, end))| *end <= shard.trimmed.max(*start));
        needless.then_some(oldest.sequence)
    }

    /// Forgets the oldest segment, whose file is gone for good.
    pub(super) fn forget_segment(&mut self, sequence: u32) {
        debug_assert_eq!(self.segments.front().map(|oldest| oldest.sequence), Some(sequence));
        self.segments.pop_front();
        for shard in &mut self.shards {
            let gone = shard.places.partition_point(|place| place.segment <= sequence);
            shard.places.drain(..gone);
            shard.first.0 += gone as u64;
            if shard.places.capacity() > 1024 + 4 * shard.places.len() {
                shard.places.shrink_to(2 * shard.places.len());
            }
        }
    }

    fn shard(&self, shard: ShardId, offset: Offset) -> Result<&ShardIndex, LogError> {
        self.shards.get(usize::from(shard.0)).ok_or(LogError::OutOfRange { shard, offset })
    }
}
