//! The end of a replica: told to whoever waits for it, and brought about where it takes too long.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

/// Watches one replica, and ends it. Does not keep it alive: a replica that nobody holds any more finishes what it has taken on and
/// ends by itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifeline {
    cut: Arc<watch::Sender<bool>>,
    closed: Arc<AtomicBool>,
    ended: watch::Receiver<()>,
}

/// The replica's end of its [`Lifeline`]. Dropping it says that the replica has ended, so it is dropped last.
#[derive(Debug)]
pub(crate) struct Life {
    cut: watch::Receiver<bool>,
    closed: Arc<AtomicBool>,
    _alive: watch::Sender<()>,
}

impl Lifeline {
    /// A fresh life and the line to it.
    pub(crate) fn new() -> (Self, Life) {
        let (cut, is_cut) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        let closed = Arc::<AtomicBool>::default();
        (Self { cut: Arc::new(cut), closed: closed.clone(), ended }, Life { cut: is_cut, closed, _alive: alive })
    }

    /// Ends the replica within one step, if it is at work; every request that it has is told [`EngineError::Stopped`](crate::EngineError::Stopped).
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Whether the replica takes nothing more: it has ended, or is about to, and tells its requests so.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.is_ended()
    }

    /// Whether the replica has ended. It never starts again.
    pub fn is_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }

    /// Waits until the replica has ended: its model's memory is free, and all its requests have heard their end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future and waiting anew loses nothing.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Life {
    /// Says that the replica takes nothing more. Before any request hears of the end, so that none comes back.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the replica is told to end at once.
    pub(crate) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }

    /// Ends once [`is_cut`](Self::is_cut); never where nobody is left who could say so.
    pub(crate) async fn cut(&self) {
        let mut cut = self.cut.clone();
        if cut.wait_for(|cut| *cut).await.is_err() {
            std::future::pending().await
        }
    }
}
