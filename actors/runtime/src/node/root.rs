//! The shape of the supervision tree:
//!
//! ```text
//! node (one for one)
//! ├── shards (one for one)
//! │   └── Shard …        one per shard
//! │       └── Session …  one per live session
//! └── models (one for one)
//!     └── ModelWorker …  one per replica
//! ```

use std::sync::Arc;

use parlance_cluster_protocol::ShardId;
use ractor::{Actor, ActorRuntime};

use super::Services;
use crate::{
    ModelSpec,
    model_worker::{ModelWorker, ModelWorkerArguments},
    shard::{Shard, ShardArguments},
    shards::ShardTable,
    supervisor::{ChildSpec, RestartPolicy, StartChild, Strategy, Supervisor, SupervisorArguments},
};

pub(super) struct RootArguments {
    pub(super) services: Arc<Services>,
    pub(super) shards: ShardTable,
    pub(super) models: Vec<ModelSpec>,
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
    let model_children = models
        .into_iter()
        .map(|spec| child("model_worker", ModelWorker, ModelWorkerArguments { spec, models: services.models.clone() }))
        .collect();
    one_for_one(vec![
        child("shard_supervisor", Supervisor, one_for_one(shard_children)),
        child("model_supervisor", Supervisor, one_for_one(model_children)),
    ])
}

fn one_for_one(children: Vec<ChildSpec>) -> SupervisorArguments {
    SupervisorArguments { strategy: Strategy::OneForOne, policy: RestartPolicy::default(), children }
}

/// A child that is made from the same arguments each time.
fn child<A>(kind: &'static str, actor: A, arguments: A::Arguments) -> ChildSpec
where
    A: Actor + Copy,
    A::Arguments: Clone + Sync,
{
    let start: StartChild = Arc::new(move |supervisor| {
        let arguments = arguments.clone();
        Box::pin(async move {
            let (actor, _running) = ActorRuntime::spawn_linked(None, actor, arguments, supervisor).await?;
            Ok(actor.get_cell())
        })
    });
    ChildSpec { kind, start }
}
