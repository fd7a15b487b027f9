//! Counts of a replica's running and waiting requests, kept by guards so that no way out forgets to count down.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{ReplicaLoad, metrics::ReplicaMetrics};

/// One replica's counts, shared by its handle and whatever serves its requests.
pub(crate) struct Load {
    metrics: Arc<ReplicaMetrics>,
    running: AtomicUsize,
    waiting: AtomicUsize,
}

impl Load {
    pub(crate) fn new(metrics: Arc<ReplicaMetrics>) -> Arc<Self> {
        Arc::new(Self { metrics, running: AtomicUsize::new(0), waiting: AtomicUsize::new(0) })
    }

    pub(crate) fn now(&self) -> ReplicaLoad {
        ReplicaLoad { running: self.running.load(Ordering::Relaxed), waiting: self.waiting.load(Ordering::Relaxed) }
    }

    pub(crate) fn run(self: &Arc<Self>) -> RunningGuard {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.metrics.running.increment(1.0);
        RunningGuard(self.clone())
    }

    /// A place among the waiting requests, whose number somebody else bounds.
    pub(crate) fn wait_unbounded(self: &Arc<Self>) -> WaitingGuard {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.waiting.increment(1.0);
        WaitingGuard(self.clone())
    }

    /// A place among at most `bound` waiting requests.
    pub(crate) fn wait(self: &Arc<Self>, bound: usize) -> Option<WaitingGuard> {
        let more = |count| (count < bound).then_some(count + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.metrics.waiting.increment(1.0);
        Some(WaitingGuard(self.clone()))
    }
}

/// A request that holds a lane, for as long as this lives.
pub(crate) struct RunningGuard(Arc<Load>);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.running.decrement(1.0);
    }
}

/// A request that waits for a lane, for as long as this lives.
pub(crate) struct WaitingGuard(Arc<Load>);

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.decrement(1.0);
    }
}
