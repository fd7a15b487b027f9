use std::sync::{Arc, PoisonError, RwLock};

use parlance_cluster_protocol::{SessionKey, ShardId, shard_of_slot};
use ractor::{ActorId, ActorRef};

use crate::shard::ShardMessage;

/// Where each shard's owner is on this node. Written by the shard actors, read by everybody.
#[derive(Clone)]
pub(crate) struct ShardTable(Arc<RwLock<Vec<Place>>>);

#[derive(Clone, Default)]
struct Place {
    actor: Option<ActorRef<ShardMessage>>,
    /// Whether it has replayed to its own claim.
    owned: bool,
}

impl ShardTable {
    pub(crate) fn new(shards: u16) -> Self {
        Self(Arc::new(RwLock::new(vec![Place::default(); usize::from(shards)])))
    }

    /// A new incarnation of the shard's actor, which does not own it yet.
    pub(crate) fn set(&self, shard: ShardId, actor: ActorRef<ShardMessage>) {
        self.change(shard, |place| *place = Place { actor: Some(actor), owned: false });
    }

    pub(crate) fn set_owned(&self, shard: ShardId) {
        self.change(shard, |place| place.owned = true);
    }

    /// The incarnation `actor` ended; a later one's entry stays.
    pub(crate) fn clear(&self, shard: ShardId, actor: ActorId) {
        self.change(shard, |place| {
            if place.actor.as_ref().is_some_and(|known| known.get_id() == actor) {
                *place = Place::default();
            }
        });
    }

    /// The actor of the shard that the session lives in.
    pub(crate) fn of(&self, session: &SessionKey) -> Option<ActorRef<ShardMessage>> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let shard = shard_of_slot(session.slot(), places.len() as u16);
        places[usize::from(shard.0)].actor.clone()
    }

    /// All actors, in shard order.
    pub(crate) fn actors(&self) -> Vec<ActorRef<ShardMessage>> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places.iter().filter_map(|place| place.actor.clone()).collect()
    }

    /// How many shards are owned, and how many there are.
    pub(crate) fn owned(&self) -> (usize, usize) {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (places.iter().filter(|place| place.owned).count(), places.len())
    }

    fn change(&self, shard: ShardId, change: impl FnOnce(&mut Place)) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut places[usize::from(shard.0)]);
    }
}
