//! Published events in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::{EventMessage, EventPublisher, LogError};

/// An [`EventPublisher`] in memory that fails when it is told to. Clones share what was published.
#[derive(Debug, Clone)]
pub struct SimEvents(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    published: Vec<Vec<EventMessage>>,
    fails: bool,
    failures: usize,
}

impl SimEvents {
    /// Of a log with so many shards; nothing was published.
    pub fn new(shards: u16) -> Self {
        let published = (0..shards).map(|_| Vec::new()).collect();
        Self(Arc::new(Mutex::new(State { published, fails: false, failures: 0 })))
    }

    /// From now on every call fails after half of its events, or none does.
    pub fn set_failing(&self, fails: bool) {
        self.state().fails = fails;
    }

    /// How many calls failed.
    pub fn failures(&self) -> usize {
        self.state().failures
    }

    /// What was published of `shard`, in order; nothing of a shard that there is not.
    pub fn published(&self, shard: ShardId) -> Vec<EventMessage> {
        self.state().published.get(usize::from(shard.0)).cloned().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test leaves what was published as it is.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn publish(&mut self, shard: ShardId, mut events: Vec<EventMessage>) -> Result<(), LogError> {
        let unknown = LogError::OutOfRange { shard, offset: Offset(0) };
        let published = self.published.get_mut(usize::from(shard.0)).ok_or(unknown)?;
        if self.fails {
            events.truncate(events.len() / 2);
        }
        published.append(&mut events);
        if self.fails {
            self.failures += 1;
            return Err(LogError::Unreachable { brokers: "nobody".into(), reason: "told to fail".into() });
        }
        Ok(())
    }
}

impl EventPublisher for SimEvents {
    fn publish(&self, shard: ShardId, events: Vec<EventMessage>) -> BoxFuture<'_, Result<(), LogError>> {
        async move { self.state().publish(shard, events) }.boxed()
    }
}
