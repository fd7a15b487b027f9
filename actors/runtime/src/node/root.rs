//! The shape of the supervision tree:
//!
//! ```text
//! node (one for one)
//! ├── shards (one for one)
//! │   └── Shard …        one per shard
//! │       └── Session …  one per live session
//! └── ModelManager
//!     └── loading (one for one) …  one per loading of a model
//!         └── ModelWorker …        one per replica
//! ```

use std::sync::Arc;

use parlance_cluster_protocol::ShardId;

use super::Services;
use crate::{
    model_manager::{ModelManager, ModelManagerArguments},
    shard::{Shard, ShardArguments},
    shards::ShardTable,
    supervisor::{Supervisor, SupervisorArguments, child, one_for_one},
};

pub(super) struct RootArguments {
    pub(super) services: Arc<Services>,
    pub(super) shards: ShardTable,
    pub(super) models: ModelManagerArguments,
}

pub(super) fn supervisor(arguments: RootArguments) -> SupervisorArguments {
    let RootArguments { services, shards, models } = arguments;
    let shard_children = (0..services.log.shards())
        .map(|shard| {
            child(
                "shard",
                Shard,
                ShardArguments { shard: ShardId(shard), services: services.clone(), table: shards.clone() },
            )
        })
        .collect();
    one_for_one(vec![
        child("shard_supervisor", Supervisor, one_for_one(shard_children)),
        child("model_manager", ModelManager, models),
    ])
}
