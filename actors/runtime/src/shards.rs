//! Where every shard is: the one table that requests are routed by.

use std::sync::{Arc, PoisonError, RwLock};

use parlance_cluster_node::identity::Incarnation;
use parlance_cluster_protocol::{SessionKey, ShardId, shard_of_slot};
use ractor::{ActorId, ActorRef};
use tokio::sync::watch;

use crate::shard::ShardMessage;

/// Where each shard's owner is. Written by the shard actors, and by the cluster's for shards that live elsewhere; read by everybody.
#[derive(Clone)]
pub(crate) struct ShardTable(Arc<Shared>);

struct Shared {
    places: RwLock<Vec<Place>>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

#[derive(Clone, Default)]
struct Place {
    /// The shard's actor on this node, be it owner or follower.
    actor: Option<ActorRef<ShardMessage>>,
    stage: Stage,
    /// Who owns it, as the cluster says, if that is another node.
    elsewhere: Option<Incarnation>,
}

/// What this node's actor is to its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// It reads along, or there is none.
    #[default]
    Following,
    /// It will own the shard if all goes well; what is asked of it meanwhile waits.
    Claiming,
    /// It has replayed to its own claim.
    Owning,
}

/// Who answers for a shard.
pub(crate) enum Route {
    /// This actor.
    Here(ActorRef<ShardMessage>),
    /// That node.
    There(Incarnation),
    /// Nobody who is known at the moment.
    Nowhere,
}

impl ShardTable {
    pub(crate) fn new(shards: u16) -> Self {
        let places = RwLock::new(vec![Place::default(); usize::from(shards)]);
        Self(Arc::new(Shared { places, changes: watch::Sender::new(0) }))
    }

    /// The shard of a session.
    pub(crate) fn shard_of(&self, session: &SessionKey) -> ShardId {
        shard_of_slot(session.slot(), self.read(|places| places.len() as u16))
    }

    /// A new incarnation of the shard's actor.
    pub(crate) fn set(&self, shard: ShardId, actor: ActorRef<ShardMessage>, stage: Stage) {
        self.change(shard, |place| (place.actor, place.stage) = (Some(actor), stage));
    }

    /// The incarnation that is entered has come so far.
    pub(crate) fn set_stage(&self, shard: ShardId, stage: Stage) {
        self.change(shard, |place| place.stage = stage);
    }

    /// Who owns the shard, if another node does.
    pub(crate) fn set_elsewhere(&self, shard: ShardId, owner: Option<Incarnation>) {
        if self.read(|places| places[usize::from(shard.0)].elsewhere != owner) {
            self.change(shard, |place| place.elsewhere = owner);
        }
    }

    /// The incarnation `actor` ended; a later one's entry stays.
    pub(crate) fn clear(&self, shard: ShardId, actor: ActorId) {
        self.change(shard, |place| {
            if place.actor.as_ref().is_some_and(|known| known.get_id() == actor) {
                (place.actor, place.stage) = (None, Stage::Following);
            }
        });
    }

    /// Who answers for the shard.
    pub(crate) fn route(&self, shard: ShardId) -> Route {
        self.read(|places| {
            let place = &places[usize::from(shard.0)];
            match (&place.actor, &place.elsewhere) {
                (Some(actor), _) if place.stage != Stage::Following => Route::Here(actor.clone()),
                (_, Some(owner)) => Route::There(owner.clone()),
                _ => Route::Nowhere,
            }
        })
    }

    /// Whether `actor` still answers for the shard.
    pub(crate) fn is_here(&self, shard: ShardId, actor: ActorId) -> bool {
        matches!(self.route(shard), Route::Here(known) if known.get_id() == actor)
    }

    /// The actors that own a shard or are about to, in shard order.
    pub(crate) fn owners(&self) -> Vec<ActorRef<ShardMessage>> {
        let owning = |place: &&Place| place.stage != Stage::Following;
        self.read(|places| places.iter().filter(owning).filter_map(|place| place.actor.clone()).collect())
    }

    /// All actors, in shard order.
    pub(crate) fn actors(&self) -> Vec<ActorRef<ShardMessage>> {
        self.read(|places| places.iter().filter_map(|place| place.actor.clone()).collect())
    }

    /// The other nodes that own shards.
    pub(crate) fn other_owners(&self) -> Vec<Incarnation> {
        let mut owners: Vec<_> =
            self.read(|places| places.iter().filter_map(|place| place.elsewhere.clone()).collect());
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// How many shards this node owns, how many have no owner that it knows, and how many there are.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        self.read(|places| {
            let owned = places.iter().filter(|place| place.stage == Stage::Owning).count();
            let elsewhere = places.iter().filter(|place| place.stage != Stage::Owning && place.elsewhere.is_some());
            (owned, places.len() - owned - elsewhere.count(), places.len())
        })
    }

    /// Hears of every change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn read<T>(&self, read: impl FnOnce(&[Place]) -> T) -> T {
        read(&self.0.places.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, shard: ShardId, change: impl FnOnce(&mut Place)) {
        change(&mut self.0.places.write().unwrap_or_else(PoisonError::into_inner)[usize::from(shard.0)]);
        self.0.changes.send_modify(|count| *count += 1);
    }
}
