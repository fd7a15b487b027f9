//! The actors of a node: shards that own sessions, sessions that feed their pure machine, workers that own models, and the
//! supervisors above them.
//!
//! [`Node`] starts and ends the tree; [`Sessions`] is how its clients reach durable sessions. Nobody outside this crate sees an
//! actor's messages.

mod admission;
pub mod adoption;
mod checkpoint;
mod clock;
mod cluster;
mod dependencies;
mod error;
mod guarded;
mod limits;
pub mod metrics;
mod model_manager;
mod model_worker;
mod models;
mod node;
#[cfg(feature = "planted-bugs")]
mod planted;
mod request;
mod session;
mod sessions;
mod shard;
mod shard_supervisor;
mod shards;
mod supervisor;
mod turn;

pub use cluster::{ClusterOptions, ClusterRefusal, ClusterView, Connect, NodeSeen, ShardSeen};
pub(crate) use error::ShardError;
pub use error::{Refusal, StartError};
pub use limits::Limits;
pub use model_manager::{ModelMemory, ModelRefusal, ModelReport, ModelSpec, ModelsReport, NoRoom};
pub use model_worker::{LoadModel, LoadProgress};
pub use node::{
    EmbedRequest, Embedded, EventOptions, ModelOrder, ModelSources, Node, NodeOptions, NodeStatus, Readiness,
    StatelessRequest,
};
pub use parlance_actors_guard::Guards;
pub use parlance_cluster_cache::{Limit, Limiter, LocalLimiter};
pub use parlance_cluster_protocol::Dependency;
pub use sessions::{ItemQuery, RegenerateRequest, SessionInfo, SessionItem, Sessions};
pub use supervisor::RestartPolicy;
pub use turn::{AcceptedTurn, Idempotency, TurnEvent, TurnOutcome, TurnRequest, TurnStream};
