//! Links between nodes of one process, for tests: on tokio's clock, which may be paused, and by a seed.
//!
//! One task carries everything. It takes what is due in the order of time and calls handlers and observers itself, so that the same seed and the
//! same calls give the same order wherever the nodes' own tasks are scheduled alike, as on one thread. (tokio's timers step by milliseconds: what is
//! drawn below that decides the order and not the time.)
//!
//! A link has two ends, and each notices for itself that it is over: as between processes, by silence, or because the other end says so. While a cut
//! lasts, what is sent is under way, as with TCP: it arrives in order if the cut ends before the link, and is lost with the link.

mod endpoint;
mod link;
mod state;
#[cfg(test)]
mod tests;

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use self::{
    endpoint::{Endpoint, hand_over},
    link::Local,
    state::State,
};
use super::{Handler, Links, Observer};
use crate::identity::{Incarnation, NodeName};

/// A network. A clone is the same one. It lives in the runtime in which the first node joined.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something may be due earlier than it was.
    changed: Arc<Notify>,
}

impl Network {
    /// A network in which nothing is cut and messages take 100 µs to 1 ms.
    pub fn new(seed: u64) -> Self {
        let shared = Shared { state: Mutex::new(State::new(seed)), changed: Arc::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Lets a node join; others reach it at `address`, any text. A node of the same name that joined before is [killed](Self::kill), and an address
    /// that another node has becomes this one's.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn join(
        &self,
        me: Incarnation,
        address: &str,
        handler: Arc<dyn Handler>,
        observer: Arc<dyn Observer>,
    ) -> Arc<dyn Links> {
        self.kill(&me.name);
        let local = Arc::new(Local::new(me, handler, observer));
        let (node, first) = self.with(|state, now| state.join(local.clone(), address, now));
        if first {
            tokio::spawn(carry(Arc::downgrade(&self.shared), self.shared.changed.clone()));
        }
        Arc::new(Endpoint { network: self.clone(), node, local })
    }

    /// From now on nothing comes through between the two, in either direction. Their link ends when its silence is noticed.
    pub fn cut(&self, a: &NodeName, b: &NodeName) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// From now on nothing that `from` sends comes through to `to`.
    pub fn cut_one_way(&self, from: &NodeName, to: &NodeName) {
        self.with(|state, _| state.cut_one_way(from.clone(), to.clone()));
    }

    /// Ends every cut.
    pub fn heal(&self) {
        self.with(State::heal);
    }

    /// The node is gone as by SIGKILL: its links end at once at the others, unless they are cut; it hears nothing more, its handler's calls are dropped, and
    /// calls that its tasks make never return. Its tasks are the caller's to end.
    pub fn kill(&self, name: &NodeName) {
        // Dropped outside the lock: it may hold links itself.
        let _gone = self.with(|state, now| {
            let (node, local) = state.named(name)?;
            local.killed.store(true, Ordering::Release);
            state.leave(node, now);
            Some(local)
        });
    }

    /// From now on each message takes so long, by lot; those on one link in one direction never overtake each other.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    pub fn set_delay(&self, delay: RangeInclusive<Duration>) {
        assert!(!delay.is_empty(), "a range with nothing in it");
        self.with(|state, _| state.delay = delay);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State, Instant) -> T) -> T {
        let done = act(&mut self.shared.state(), Instant::now());
        self.shared.changed.notify_one();
        done
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Lets the task end.
        self.changed.notify_one();
    }
}

/// Hands over what is due, until the network is no more.
async fn carry(network: Weak<Shared>, changed: Arc<Notify>) {
    while let Some(shared) = network.upgrade() {
        let network = Network { shared };
        let due = loop {
            // Nobody is called under the lock.
            let step = network.shared.state().step(Instant::now());
            match step {
                Ok((local, notice)) => hand_over(&network, &local, notice),
                Err(due) => break due,
            }
        };
        drop(network);
        match due {
            Some(due) => drop(timeout_at(due, changed.notified()).await),
            None => changed.notified().await,
        }
    }
}
