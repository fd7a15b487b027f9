//! The cluster as operators see it.

use parlance_cluster_node::{
    identity::NodeName,
    membership::{Member, Seen, Standing},
};
use thiserror::Error;

use super::{duty_name, steward::Steward};

/// The cluster as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The cluster's name.
    pub id: String,
    /// Its nodes, in the order of their names, this one included.
    pub nodes: Vec<NodeSeen>,
    /// Its shards, in order.
    pub shards: Vec<ShardSeen>,
}

/// A node as another sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Which start of it.
    pub boot: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its part of the work.
    pub weight: u32,
    /// `serving`, `draining` or `leaving`.
    pub duty: &'static str,
    /// `alive`, `suspected`, `down` or `left`.
    pub standing: &'static str,
    /// Where other nodes reach it.
    pub address: String,
    /// How many shards it owns.
    pub shards: usize,
    /// Whether it is the node that says this.
    pub is_self: bool,
    /// Whether there is a link with it.
    pub linked: bool,
}

/// A shard as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSeen {
    /// Its number.
    pub shard: u16,
    /// Who owns it.
    pub owner: Option<String>,
    /// Who should take over if the owner dies.
    pub standby: Option<String>,
    /// Whether the standby could do so at once.
    pub warm: bool,
    /// `owned`, `moving` or `unowned`.
    pub state: &'static str,
}

/// Why an operator's wish about the cluster was not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClusterRefusal {
    /// There is no such node.
    #[error("there is no node {name}; there are: {known}")]
    NoSuchNode {
        /// The name.
        name: String,
        /// Those that there are, comma-separated.
        known: String,
    },
    /// There is no such shard.
    #[error("there is no shard {shard}; they are numbered from 0 to {last}")]
    NoSuchShard {
        /// The number.
        shard: u32,
        /// The last one's number.
        last: u16,
    },
    /// It cannot be done now.
    #[error("{0}")]
    NotNow(String),
    /// The node is in no cluster.
    #[error("this node runs alone: it has no [cluster] in its configuration")]
    Alone,
}

impl ClusterView {
    /// Looks at everything anew.
    pub(super) fn of(id: &str, me: &Member, members: &[Seen], linked: &[NodeName], steward: &Steward) -> Self {
        let own = Seen { member: me.clone(), standing: Standing::Alive };
        let mut nodes: Vec<NodeSeen> =
            members.iter().chain([&own]).map(|seen| node(seen, me, linked, steward)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let shards = steward.shards_seen(members, me).into_iter().zip(0..).map(|(seen, shard)| {
            let state = match (&seen.owner, seen.moving) {
                (None, _) => "unowned",
                (Some(_), true) => "moving",
                (Some(_), false) => "owned",
            };
            let name = |node: parlance_cluster_node::identity::Incarnation| node.name.to_string();
            ShardSeen { shard, owner: seen.owner.map(name), standby: seen.standby.map(name), warm: seen.warm, state }
        });
        Self { id: id.to_owned(), nodes, shards: shards.collect() }
    }

    /// A node by its name.
    ///
    /// # Errors
    ///
    /// [`ClusterRefusal::NoSuchNode`], with those that there are.
    pub(crate) fn node(&self, name: &str) -> Result<&NodeSeen, ClusterRefusal> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| self.no_such_node(name))
    }

    pub(super) fn no_such_node(&self, name: &str) -> ClusterRefusal {
        let known: Vec<&str> = self.nodes.iter().map(|node| &*node.name).collect();
        ClusterRefusal::NoSuchNode { name: name.to_owned(), known: known.join(", ") }
    }

    /// How many nodes stand so.
    pub fn count(&self, standing: &str) -> usize {
        self.nodes.iter().filter(|node| node.standing == standing).count()
    }
}

fn node(seen: &Seen, me: &Member, linked: &[NodeName], steward: &Steward) -> NodeSeen {
    let Seen { member, standing } = seen;
    let standing = match standing {
        Standing::Alive if steward.is_silent(&member.node) => "suspected",
        Standing::Alive => "alive",
        Standing::Suspected => "suspected",
        Standing::Down => "down",
        Standing::Left => "left",
    };
    NodeSeen {
        name: member.node.name.to_string(),
        boot: member.node.boot.to_string(),
        zone: member.zone.as_ref().map(ToString::to_string),
        weight: member.weight.get(),
        duty: duty_name(member.duty),
        standing,
        address: member.address.clone(),
        shards: steward.owned_by(&member.node),
        is_self: member.node == me.node,
        linked: linked.contains(&member.node.name),
    }
}
