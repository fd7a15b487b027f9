//! The writer thread: it takes all that is pending, writes it as one batch, syncs once, and tells every caller.
//!
//! ```text
//! callers ── append ──► queue ── all that is pending ──► batch ── one pwrite, one fdatasync ──► index ──► callers
//! ```
//!
//! While one batch is synced the next one gathers, so batches grow with the number of callers and nobody waits for a timer.
//! After a failed write or sync nobody knows what the disk holds, and a second sync would lie (the kernel drops the
//! pages that it could not write): every outcome from then on is unknown, until the process opens the log again.

use std::{
    io,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use parlance_cluster_protocol::{Offset, ShardId};
use tracing::error;

use super::{
    Shared,
    directory::{Lock, SegmentFile},
    format::{self, BATCH_HEADER_BYTES, BATCH_TARGET_BYTES, FRAME_HEADER_BYTES, SegmentHeader, round_up},
    index::Place,
    keeper::Keeper,
    queue::Pending,
};
use crate::AppendOutcome;

/// The buffer keeps this much between batches; a larger append gives back what it took.
const BUFFER_KEPT_BYTES: usize = 2 * BATCH_TARGET_BYTES;

/// A batch was not written.
enum Unwritten {
    /// There is no room, and nothing was tried.
    NoRoom,
    /// It may be on disk or not.
    Failed(io::Error),
}

/// State of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    active: SegmentFile,
    /// Where the next batch goes in `active`.
    at: usize,
    next_batch: u64,
    /// Per shard, the offset of the next entry.
    next: Vec<Offset>,
    batch: Vec<Pending>,
    /// What the frames of `batch` take.
    batch_bytes: usize,
    buffer: Vec<u8>,
    places: Vec<(ShardId, Place)>,
    /// Set if callers are to be told before their batch is synced; true inside while one is not.
    #[cfg(feature = "planted-bugs")]
    sync_late: Option<bool>,
    /// Dropped last: the directory is ours until the last batch is written.
    _lock: Arc<Lock>,
}

impl Writer {
    /// A writer that goes on where `active` ends.
    pub(super) fn new(
        shared: Arc<Shared>,
        keeper: Arc<Keeper>,
        lock: Arc<Lock>,
        (active, at, next_batch): (SegmentFile, usize, u64),
    ) -> Self {
        let next = shared.index().marks().iter().map(|mark| mark.next).collect();
        Self {
            shared,
            keeper,
            active,
            at,
            next_batch,
            next,
            batch: Vec::new(),
            batch_bytes: 0,
            buffer: Vec::new(),
            places: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            sync_late: std::env::var("PARLANCE_PLANTED_BUG")
                .is_ok_and(|bug| bug == "ack-before-fsync")
                .then_some(false),
            _lock: lock,
        }
    }

    /// The thread: writes until the queue is closed and drained.
    pub(super) fn run(mut self) {
        let mut taken = Vec::new();
        let mut written = 0;
        while self.shared.queue.take(&mut taken, written) {
            written = taken.iter().map(|pending| pending.bytes).sum();
            self.shared.metrics.queue_bytes(written);
            for pending in taken.drain(..) {
                self.add(pending);
            }
            self.flush();
            self.shared.metrics.queue_bytes(0);
        }
        self.keeper.close();
    }

    fn add(&mut self, pending: Pending) {
        if self.batch_bytes > 0 && self.batch_bytes + pending.bytes > BATCH_TARGET_BYTES {
            self.flush();
        }
        self.batch_bytes += pending.bytes;
        self.batch.push(pending);
    }

    /// Writes the gathered batch and tells its callers.
    fn flush(&mut self) {
        let written = match self.write() {
            Ok(()) => true,
            Err(Unwritten::NoRoom) => false,
            Err(Unwritten::Failed(error)) => {
                self.fail(&error);
                false
            }
        };
        let now = Instant::now();
        for pending in self.batch.drain(..) {
            self.shared.metrics.append_done(now - pending.since);
            tell(pending, written);
        }
        self.batch_bytes = 0;
    }

    fn write(&mut self) -> Result<(), Unwritten> {
        if self.batch_bytes == 0 {
            return Ok(());
        }
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(Unwritten::NoRoom);
        }
        let rolled = self.make_room()?;
        self.encode(rolled);
        let synced = self.write_and_sync().map_err(Unwritten::Failed)?;
        self.publish(rolled);
        let (entries, bytes) = (self.places.len() as u64, self.buffer.len() as u64);
        self.shared.metrics.batch_written(entries, bytes, synced);
        self.at += self.buffer.len();
        self.next_batch += 1;
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Goes on to the spare segment if the batch does not fit into the active one. True if it did.
    fn make_room(&mut self) -> Result<bool, Unwritten> {
        let room = round_up(BATCH_HEADER_BYTES + self.batch_bytes);
        let unused = SegmentHeader::room(self.shared.meta.shards);
        if self.at + room <= self.active.capacity || self.at == unused {
            return Ok(false);
        }
        self.active = self.keeper.take_spare().ok_or(Unwritten::NoRoom)?;
        self.at = 0;
        Ok(true)
    }

    /// Encodes the batch into the buffer, behind the segment's header if it is the segment's first.
    fn encode(&mut self, rolled: bool) {
        let Self { buffer, places, batch, next, .. } = self;
        buffer.clear();
        places.clear();
        if rolled {
            let marks = self.shared.index().marks();
            let (log_id, sequence, first_batch) = (self.shared.meta.log_id, self.active.sequence, self.next_batch);
            SegmentHeader { log_id, sequence, first_batch, marks }.encode_into(self.shared.meta.shards, buffer);
        }
        let start = format::begin_batch(self.shared.meta.log_id, self.next_batch, buffer);
        for pending in batch.iter_mut().filter(|pending| !pending.entries.is_empty()) {
            let next = &mut next[usize::from(pending.shard.0)];
            pending.first = *next;
            for entry in &pending.entries {
                let at = self.at + buffer.len();
                let length = FRAME_HEADER_BYTES + entry.len();
                places.push((
                    pending.shard,
                    Place { segment: self.active.sequence, at: at as u32, length: length as u32 },
                ));
                format::push_frame(pending.shard, *next, entry, buffer);
                *next = next.next();
            }
        }
        format::finish_batch(start, places.len() as u32, buffer);
    }

    fn write_and_sync(&mut self) -> io::Result<Duration> {
        #[cfg(feature = "planted-bugs")]
        if let Some(unsynced) = &mut self.sync_late {
            if std::mem::replace(unsynced, true) {
                self.active.file.sync_data()?;
            }
            self.active.file.write_all_at(&self.buffer, self.at as u64)?;
            return Ok(Duration::ZERO);
        }
        self.active.file.write_all_at(&self.buffer, self.at as u64)?;
        let begun = Instant::now();
        self.active.file.sync_data()?;
        Ok(begun.elapsed())
    }

    /// Lets readers see the batch.
    fn publish(&mut self, rolled: bool) {
        let mut index = self.shared.index();
        if rolled {
            index.begin_segment(self.active.sequence);
            self.shared.metrics.segments(index.segments());
        }
        for (shard, place) in &self.places {
            index.push(*shard, *place);
        }
    }

    fn fail(&self, cause: &io::Error) {
        self.shared.failed.store(true, Ordering::Relaxed);
        let path = self.shared.directory.segment_path(self.active.sequence);
        error!(
            path = %path.display(),
            %cause,
            "the log could not be written: no turn is accepted any more; see to the disk, then restart this node"
        );
    }
}

fn tell(pending: Pending, written: bool) {
    let Pending { shard, entries, count, first, done, .. } = pending;
    let outcomes = match written && entries.len() == count {
        true => (first.0..).take(count).map(|offset| AppendOutcome::At(Offset(offset))).collect(),
        false => vec![AppendOutcome::Unknown; count],
    };
    // The other callers of the batch, and all later ones, must hear theirs.
    if catch_unwind(AssertUnwindSafe(|| done(outcomes))).is_err() {
        error!(%shard, "the callback of an append panicked");
    }
}
