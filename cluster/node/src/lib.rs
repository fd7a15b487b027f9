//! What makes nodes a cluster: who is there, who should own which shard, and the links between them.
//!
//! Everything here is a hint. Who owns a shard is decided in its log alone (`parlance_cluster_log::ownership`); a wrong view of the cluster
//! costs time, never an answer.
//!
//! | module | what it holds |
//! |---|---|
//! | [`detector`] | which peers have gone silent |
//! | [`identity`] | names of nodes and clusters, and which start of a node is meant |
//! | [`links`] | links with other nodes: the port, and a network of nodes in one process for tests |
//! | [`lived`] | time as this process lived it |
//! | [`membership`] | who is in the cluster |
//! | [`placement`] | which node should own which shard, and which should be its hot standby |
//! | `transport` | links between processes, with the feature of that name |
//! | [`zone`] | zones: what fails together |

pub mod detector;
pub mod identity;
pub mod links;
pub mod lived;
pub mod membership;
pub mod placement;
#[cfg(feature = "transport")]
pub mod transport;
pub mod zone;
