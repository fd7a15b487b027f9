//! The keeper thread: it has the next segment ready before the writer needs it, and watches the free space.
//!
//! Bound: one spare segment besides the active one. While none can be made, or free space is under the reserve, new turns
//! are refused, and what is left of the active segment (and the spare, where there is one) holds the replies to accepted turns.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use super::directory::{Directory, SegmentFile};
use crate::LogError;

/// How often free space is looked at; what one second of writing can take is far below the reserve.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

struct State {
    spare: Option<SegmentFile>,
    /// The sequence number that the next spare gets.
    next: u32,
    /// What the last look at the disk found.
    admission: Result<(), LogError>,
    closing: bool,
}

/// What writer, callers and keeper share.
pub(super) struct Keeper {
    directory: Directory,
    segment_bytes: usize,
    reserve_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Keeper {
    /// A keeper for the log whose active segment is `active`; [`run`](Self::run) is its thread.
    pub(super) fn new(
        directory: Directory,
        segment_bytes: usize,
        reserve_bytes: u64,
        active: u32,
        spare: Option<SegmentFile>,
    ) -> Self {
        let next = active + 1 + u32::from(spare.is_some());
        let state = State { spare, next, admission: Ok(()), closing: false };
        Self { directory, segment_bytes, reserve_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The next segment, once it is ready; `None` if none can be made now.
    pub(super) fn take_spare(&self) -> Option<SegmentFile> {
        let mut state = self.lock();
        while state.spare.is_none() && state.admission.is_ok() && !state.closing {
            state = self.wait(state, WATCH_INTERVAL);
        }
        let spare = state.spare.take();
        if spare.is_some() {
            self.changed.notify_all();
        }
        spare
    }

    /// Whether space allows new turns.
    pub(super) fn admission(&self) -> Result<(), LogError> {
        self.lock().admission.clone()
    }

    /// Looks at the disk now; segments were deleted.
    pub(super) fn look(&self) {
        self.changed.notify_all();
    }

    /// Lets the thread end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// The thread: looks at the disk each [`WATCH_INTERVAL`] and whenever the spare was taken.
    pub(super) fn run(&self) {
        loop {
            self.look_at_disk();
            let state = self.lock();
            if state.closing {
                return;
            }
            if state.spare.is_some() || state.admission.is_err() {
                drop(self.wait(state, WATCH_INTERVAL));
            }
        }
    }

    /// One look: makes the spare where it is missing and there is room for it beside the reserve.
    fn look_at_disk(&self) {
        let (missing, sequence) = {
            let state = self.lock();
            (state.spare.is_none() && !state.closing, state.next)
        };
        let spare_bytes = if missing { self.segment_bytes as u64 } else { 0 };
        let found = self.directory.free_bytes().and_then(|free| match free < self.reserve_bytes + spare_bytes {
            true => Err(self.full()),
            false if missing => self.make_spare(sequence).map(Some),
            false => Ok(None),
        });
        self.note(found);
    }

    fn make_spare(&self, sequence: u32) -> Result<SegmentFile, LogError> {
        self.directory.create_segment(sequence, &[], self.segment_bytes, true).map_err(|e| match &e {
            LogError::Unusable { source, .. } if is_full(source) => self.full(),
            _ => e,
        })
    }

    fn note(&self, found: Result<Option<SegmentFile>, LogError>) {
        let mut state = self.lock();
        match (&state.admission, &found) {
            (Ok(()), Err(error)) => warn!(%error, "new turns are refused"),
            (Err(_), Ok(_)) => info!("new turns are accepted again"),
            _ => {}
        }
        state.admission = found.map(|made| {
            if let Some(spare) = made {
                state.next = spare.sequence + 1;
                state.spare = Some(spare);
            }
        });
        self.changed.notify_all();
    }

    fn full(&self) -> LogError {
        LogError::Full { path: self.directory.path().to_owned() }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
