//! The simulated log behind the port, on tokio's clock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_cluster_protocol::{Offset, ShardId};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{Answer, AppendId, ClientId, FaultCounts, Faults, SimCore};
use crate::{AppendDone, AppendOutcome, Bounds, LogError, ShardLog, StoredEntry};

/// The log that all processes share. It lives as long as this or one of its [`SimLog`]s.
#[derive(Clone)]
pub struct SimCluster(Arc<Shared>);

/// The log as one process sees it.
pub struct SimLog {
    shared: Arc<Shared>,
    client: ClientId,
}

struct Shared {
    /// When the simulated clock stood at 0.
    zero: Instant,
    state: Mutex<State>,
    /// Wakes the pump when something new is due, or when nobody is left.
    wake: Arc<Notify>,
}

struct State {
    core: SimCore,
    waiting: HashMap<AppendId, AppendDone>,
    /// Answers that are due; only the pump tells them, so that no callback runs within a call of the port.
    due: Vec<(AppendDone, Vec<AppendOutcome>)>,
}

impl SimCluster {
    /// An empty log whose faults follow from `seed`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with a clock.
    pub fn new(seed: u64, shards: u16, faults: Faults) -> Self {
        let state = State { core: SimCore::new(seed, shards, faults), waiting: HashMap::new(), due: Vec::new() };
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Shared { zero: Instant::now(), state: Mutex::new(state), wake: wake.clone() });
        tokio::spawn(pump(Arc::downgrade(&shared), wake));
        Self(shared)
    }

    /// Opens the log for one more process.
    pub fn open(&self) -> SimLog {
        SimLog { shared: self.0.clone(), client: self.0.state().core.connect() }
    }

    /// What went wrong so far.
    pub fn counts(&self) -> FaultCounts {
        self.0.state().core.counts()
    }

    /// Draws faults at other rates from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.state().core.set_faults(faults);
    }

    /// Everything that the shard holds.
    pub fn entries(&self, shard: ShardId) -> Vec<StoredEntry> {
        self.0.state().core.entries(shard, Offset(0))
    }
}

impl SimLog {
    /// This process's connection stands still for a while: nothing that it sent lands, nothing reaches it.
    pub fn pause(&self, pause: Duration) {
        self.shared.with_clock(|state| state.core.pause(self.client, pause));
    }

    /// This process dies: half of what it had sent lands, its callbacks are never called, and it cannot use the log any more.
    pub fn crash(&self) {
        // Dropped outside the lock: what a callback holds may use the log.
        let dead: Vec<AppendDone> = self.shared.with_clock(|state| {
            state.core.crash(self.client);
            let core = &state.core;
            state.waiting.extract_if(|append, _| !core.is_unanswered(*append)).map(|(_, done)| done).collect()
        });
        drop(dead);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl ShardLog for SimLog {
    fn shards(&self) -> u16 {
        self.shared.state().core.shards()
    }

    fn append(&self, shard: ShardId, entries: Vec<Bytes>, done: AppendDone) {
        self.shared.with_clock(|state| {
            let append = state.core.append(self.client, shard, entries);
            if state.core.is_unanswered(append) {
                state.waiting.insert(append, done);
            }
        });
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredEntry>, LogError>> {
        Box::pin(async move { self.shared.with_clock(|state| state.core.read(self.client, shard, from, max_bytes)) })
    }

    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>> {
        Box::pin(async move { self.shared.with_clock(|state| state.core.bounds(self.client, shard)) })
    }

    fn trim(&self, shard: ShardId, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move { self.shared.with_clock(|state| state.core.trim(self.client, shard, before)) })
    }

    fn admission(&self) -> Result<(), LogError> {
        if self.shared.state().core.is_crashed(self.client) { Err(LogError::Closed) } else { Ok(()) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test leaves the log as it is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act` with the simulated clock at the present.
    fn with_clock<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        state.advance(self.zero.elapsed());
        let result = act(&mut state);
        drop(state);
        self.wake.notify_one();
        result
    }
}

impl State {
    fn advance(&mut self, now: Duration) {
        for Answer { append, outcomes, .. } in self.core.advance(now) {
            self.due.extend(self.waiting.remove(&append).map(|done| (done, outcomes)));
        }
    }
}

/// Tells the answers when they are due, until the last handle is gone and everything was answered.
async fn pump(shared: Weak<Shared>, wake: Arc<Notify>) {
    // Held while somebody waits for an answer: it comes though the log was dropped.
    let mut held = None;
    while let Some(shared) = held.take().or_else(|| shared.upgrade()) {
        let (due, next) = {
            let mut state = shared.state();
            state.advance(shared.zero.elapsed());
            (std::mem::take(&mut state.due), state.core.next_due())
        };
        for (done, outcomes) in due {
            done(outcomes);
        }
        let zero = shared.zero;
        let is_waited_for = !shared.state().waiting.is_empty();
        held = is_waited_for.then_some(shared);
        match next {
            Some(next) => {
                // Whichever comes first; the loop looks for itself.
                let _ = timeout_at(zero + next, wake.notified()).await;
            }
            None => wake.notified().await,
        }
    }
}
