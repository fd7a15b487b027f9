//! The shape of the supervision tree:
//!
//! ```text
//! node (one for one)
//! ├── Cluster            in a cluster; its end is the node's
//! ├── ShardSupervisor
//! │   └── Shard …        one per shard that the node owns or follows
//! │       └── Session …  one per live session
//! └── ModelManager
//!     └── loading (one for one) …  one per loading of a model
//!         └── ModelWorker …        one per replica
//! ```

use std::sync::Arc;

use super::Services;
use crate::{
    cluster::{Cluster, ClusterArguments, ClusterOptions},
    model_manager::{ModelManager, ModelManagerArguments},
    shard_supervisor::{Assignment, ShardSupervisor, ShardSupervisorArguments},
    shards::ShardTable,
    supervisor::{SupervisorArguments, child, one_for_one, vital_child},
};

pub(super) struct RootArguments {
    pub(super) services: Arc<Services>,
    pub(super) shards: ShardTable,
    pub(super) models: ModelManagerArguments,
    pub(super) cluster: Option<ClusterOptions>,
}

pub(super) fn supervisor(arguments: RootArguments) -> SupervisorArguments {
    let RootArguments { services, shards, models, cluster } = arguments;
    let at_start = if cluster.is_some() { Assignment::Away } else { Assignment::Own };
    let shard_supervisor = ShardSupervisorArguments { services: services.clone(), table: shards.clone(), at_start };
    let cluster = cluster.map(|options| {
        let arguments = ClusterArguments { options, services, table: shards };
        vital_child("cluster", Cluster, arguments)
    });
    let mut children = vec![
        child("shard_supervisor", ShardSupervisor, shard_supervisor),
        child("model_manager", ModelManager, models),
    ];
    children.extend(cluster);
    one_for_one(children)
}
