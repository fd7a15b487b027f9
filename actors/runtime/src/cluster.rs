//! This node among others: who is there, who serves which shard, and the way to sessions that live elsewhere.
//!
//! ```text
//!             links ── gossip, heartbeats, reports ──▶ Cluster (actor) ── Steward: orders ──▶ ShardSupervisor
//!                                                        ▲    └── owners ──▶ ShardTable ──▶ Sessions
//!             ShardActor … ── ShardNews ─────────────────┘
//! Sessions ── Ask ──▶ links ══▶ Switchboard ──▶ Remote ──▶ Sessions
//! ```

mod actor;
mod peers;
mod remote;
mod steward;
mod switchboard;
#[cfg(test)]
mod tests;
mod view;
mod wire;
pub(crate) mod workers;

use std::{
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use parlance_cluster_node::{
    detector,
    identity::Incarnation,
    links::{CallError, Handler, Links, Observer},
    membership::{self, Duty, Versions},
    placement::{Weight, cost},
    zone::Zone,
};
use parlance_cluster_protocol::{
    ShardId,
    peer::{Command, ServedModel, Wish},
};
use prost::Message as _;
use ractor::ActorRef;
use tokio::{sync::oneshot, time::timeout};

use self::peers::Peers;
pub use self::view::{ClusterRefusal, ClusterView, NodeSeen, ShardSeen};
pub(crate) use self::{
    actor::{Cluster, ClusterArguments, ClusterMessage},
    remote::Remote,
    steward::{Reign, ShardNews},
    workers::Workers,
};

/// How long an operator's wish may take to be taken.
const WISH_WITHIN: Duration = Duration::from_secs(5);
/// Within which time claims of one shard count as one dispute.
pub(crate) const DISPUTE: Duration = Duration::from_secs(30);

/// Starts the links of a node: what arrives is answered by the handler, what becomes of links is told to the observer. The reason of a
/// failure is for the operator.
pub type Connect = Arc<
    dyn Fn(Arc<dyn Handler>, Arc<dyn Observer>) -> BoxFuture<'static, Result<Arc<dyn Links>, String>> + Send + Sync,
>;

/// How a node takes part in a cluster.
#[derive(Clone)]
pub struct ClusterOptions {
    /// The cluster's name, for people.
    pub id: String,
    /// This start of this node.
    pub me: Incarnation,
    /// Its zone.
    pub zone: Option<Zone>,
    /// Its part of the work.
    pub weight: Weight,
    /// Where other nodes reach it: host and port.
    pub address: String,
    /// Where other nodes may be: `host:port`, a name standing for all its addresses, or `file:PATH` with one of them a line.
    pub seeds: Vec<String>,
    /// The versions of the protocol between nodes that it speaks.
    pub versions: Versions,
    /// When a silent node is suspected.
    pub detector: detector::Options,
    /// When a suspected node is given up.
    pub membership: membership::Options,
    /// How many shards are on the move at once.
    pub moves_at_once: usize,
    /// Starts its links.
    pub connect: Connect,
}

/// A node that has models.
pub(super) struct WithModels {
    node: Incarnation,
    /// Whether it is in this node's zone.
    is_near: bool,
    models: Vec<ServedModel>,
}

/// What the rest of a node needs of its cluster.
pub(crate) struct ClusterServices {
    peers: Arc<Peers>,
    pub(crate) remote: Arc<Remote>,
    pub(crate) workers: Arc<Workers>,
    /// The other nodes with models, as they last said.
    with_models: RwLock<Arc<Vec<WithModels>>>,
    actor: OnceLock<ActorRef<ClusterMessage>>,
    view: RwLock<Arc<ClusterView>>,
    /// This start of this node, as it claims shards.
    pub(crate) me: String,
}

impl ClusterServices {
    pub(crate) fn new(options: &ClusterOptions) -> Self {
        let peers = Arc::new(Peers::default());
        Self {
            remote: Arc::new(Remote::new(peers.clone())),
            workers: Arc::new(Workers::new(peers.clone())),
            peers,
            with_models: RwLock::default(),
            actor: OnceLock::new(),
            view: RwLock::default(),
            me: options.me.to_string(),
        }
    }

    /// The node that should make a reply with that model, if another one has it: one where nothing waits, then one in this zone, then always
    /// the same for the same `affinity`, which is the session's: its KV cache is warm there.
    ///
    /// With `idle`, none where something waits.
    pub(crate) fn worker_for(&self, model: &str, affinity: u64, idle: bool) -> Option<Incarnation> {
        let nodes = self.with_models.read().unwrap_or_else(PoisonError::into_inner).clone();
        let fit = nodes.iter().filter_map(|node| {
            let served = node.models.iter().find(|served| served.names.iter().any(|name| name == model))?;
            let shard = (affinity ^ affinity >> 32) as u32;
            if idle && served.waiting > 0 {
                return None;
            }
            Some(((served.waiting > 0, !node.is_near, cost(&node.node.name, Weight::ONE, shard)), node.node.clone()))
        });
        fit.min_by_key(|(rank, _)| *rank).map(|(_, node)| node)
    }

    fn set_with_models(&self, nodes: Vec<WithModels>) {
        *self.with_models.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(nodes);
    }

    /// The cluster as this node sees it.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_view(&self, view: ClusterView) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Something became of a shard's actor.
    pub(crate) fn tell_of(&self, shard: ShardId, news: ShardNews) {
        if let Some(actor) = self.actor.get() {
            // Its end is the node's.
            let _ending = actor.cast(ClusterMessage::News { shard, news });
        }
    }

    /// Has this node give up its shards, or take some again.
    pub(crate) async fn drain_here(&self, drain: bool) -> Result<(), ClusterRefusal> {
        self.obey(Wish::Drain(drain)).await
    }

    /// Has a node fulfil a wish, be it this one or another.
    pub(crate) async fn wish(&self, node: &str, wish: Wish) -> Result<(), ClusterRefusal> {
        let view = self.view();
        let seen = view.node(node)?;
        if seen.is_self {
            return self.obey(wish).await;
        }
        let name = node.parse().map_err(|_| view.no_such_node(node))?;
        let payload = Command { wish: Some(wish) }.encode_to_vec().into();
        let told = match self.peers.links() {
            Some(links) => links.call(&name, kind::COMMAND, payload, WISH_WITHIN).await,
            None => Err(CallError::Unreachable),
        };
        told.map(drop).map_err(|error| match error {
            CallError::Failed(failure) => ClusterRefusal::NotNow(failure.reason),
            error => ClusterRefusal::NotNow(format!("cannot tell node {node}: {error}")),
        })
    }

    async fn obey(&self, wish: Wish) -> Result<(), ClusterRefusal> {
        let actor = self.actor.get().ok_or_else(|| ClusterRefusal::NotNow("the node is starting".into()))?;
        switchboard::obey(actor, wish).await.map_err(ClusterRefusal::NotNow)
    }

    /// Says good-bye to the others and closes the links.
    pub(crate) async fn leave(&self) {
        let Some(actor) = self.actor.get() else { return };
        let (reply, left) = oneshot::channel();
        if actor.cast(ClusterMessage::Leave { reply }).is_ok() {
            // Whoever stays finds out by itself.
            let _late = timeout(WISH_WITHIN, left).await;
        }
    }
}

/// What a message between nodes is. The numbers are for ever.
mod kind {
    /// A datagram of the membership; nobody answers.
    pub(super) const GOSSIP: u32 = 1;
    /// A [`Report`](parlance_cluster_protocol::peer::Report); nobody answers.
    pub(super) const REPORT: u32 = 2;
    /// An [`Ask`](parlance_cluster_protocol::peer::Ask), answered by an [`Answer`](parlance_cluster_protocol::peer::Answer).
    pub(super) const ASK: u32 = 3;
    /// A [`Chunk`](parlance_cluster_protocol::peer::Chunk); nobody answers.
    pub(super) const CHUNK: u32 = 4;
    /// An [`Unwatch`](parlance_cluster_protocol::peer::Unwatch); nobody answers.
    pub(super) const UNWATCH: u32 = 5;
    /// An operator's [`Command`](parlance_cluster_protocol::peer::Command), answered by nothing, or a failure with the reason.
    pub(super) const COMMAND: u32 = 6;
    /// A [`Generate`](parlance_cluster_protocol::peer::Generate), answered by an [`Answer`](parlance_cluster_protocol::peer::Answer).
    pub(super) const GENERATE: u32 = 7;
    /// A [`Generated`](parlance_cluster_protocol::peer::Generated); nobody answers.
    pub(super) const GENERATED: u32 = 8;
    /// An [`Unwatch`](parlance_cluster_protocol::peer::Unwatch) of a reply that is generated; nobody answers.
    pub(super) const UNWANTED: u32 = 9;
    /// A [`CheckTurn`](parlance_cluster_protocol::peer::CheckTurn), answered by an [`Answer`](parlance_cluster_protocol::peer::Answer).
    pub(super) const CHECK: u32 = 10;
}

/// A node's duty as operators name it.
pub(crate) fn duty_name(duty: Duty) -> &'static str {
    match duty {
        Duty::Serving => "serving",
        Duty::Draining => "draining",
        Duty::Leaving => "leaving",
    }
}
