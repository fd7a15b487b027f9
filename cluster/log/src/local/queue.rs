//! Appends on their way to the writer.
//!
//! Bound: [`MAX_QUEUED_BYTES`] of entries, queued or being written. An append past it is refused: its entries are dropped and
//! its outcome is [`Unknown`](crate::AppendOutcome::Unknown); of it only its callback waits, and callers bound those.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use parlance_cluster_protocol::{Offset, ShardId};

use super::format::{FRAME_HEADER_BYTES, MAX_BODY_BYTES};
use crate::{AppendDone, MAX_ENTRY_BYTES};

/// More than callers within their limits ever have in flight: 64 of the largest entries, or some 100,000 usual ones.
pub(super) const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// One append that waits for its outcome.
pub(super) struct Pending {
    pub(super) shard: ShardId,
    /// Empty if the append was refused.
    pub(super) entries: Vec<Bytes>,
    /// How many outcomes `done` takes.
    pub(super) count: usize,
    /// Where the first entry lies, once it is written.
    pub(super) first: Offset,
    pub(super) done: AppendDone,
    pub(super) since: Instant,
    /// What it takes in a batch; 0 if it was refused.
    pub(super) bytes: usize,
}

#[derive(Default)]
struct State {
    pending: Vec<Pending>,
    /// Invariant: the sum of `bytes` of all that is pending or taken and not yet given back.
    bytes: usize,
    idle: bool,
    closing: bool,
}

/// The queue between the callers and the writer.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

impl Queue {
    /// Adds an append. False if it was too large or the queue full, or `known`, that the log has the shard, is false: then only its
    /// callback is kept.
    pub(super) fn push(&self, shard: ShardId, known: bool, entries: Vec<Bytes>, done: AppendDone) -> bool {
        let bytes = entries.iter().map(|entry| entry.len() + FRAME_HEADER_BYTES).sum();
        let fits = bytes <= MAX_BODY_BYTES && entries.iter().all(|entry| entry.len() <= MAX_ENTRY_BYTES);
        let (count, since) = (entries.len(), Instant::now());
        let mut pending = Pending { shard, entries, count, first: Offset(0), done, since, bytes };
        let mut state = self.lock();
        let accepted = known && fits && state.bytes + bytes <= MAX_QUEUED_BYTES;
        if !accepted {
            (pending.entries, pending.bytes) = (Vec::new(), 0);
        }
        state.bytes += pending.bytes;
        state.pending.push(pending);
        if mem::take(&mut state.idle) {
            drop(state);
            self.filled.notify_one();
        }
        accepted
    }

    /// Swaps all that is pending into the empty `taken`, waiting for some, and gives back `written` bytes of what was taken before.
    /// False once the queue is closed and drained.
    pub(super) fn take(&self, taken: &mut Vec<Pending>, written: usize) -> bool {
        debug_assert!(taken.is_empty());
        let mut state = self.lock();
        state.bytes -= written;
        while state.pending.is_empty() && !state.closing {
            state.idle = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut state.pending, taken);
        !taken.is_empty()
    }

    /// Lets the writer end once it has drained the queue.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
