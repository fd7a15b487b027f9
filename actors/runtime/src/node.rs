//! One node: its services, its supervision tree, and the handle that the faces and the operator hold.

mod embeddings;
mod models;
mod root;
mod stateless;

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parlance_actors_dialogue as dialogue;
use parlance_actors_guard::Guards;
use parlance_cluster_cache::{Decision, Limiter};
use parlance_cluster_log::{EventPublisher, ShardLog};
use parlance_cluster_node::identity::Incarnation;
use parlance_cluster_protocol::{
    Dependency, ShardId, TurnId,
    peer::{MoveShard, Wish},
};
use parlance_cluster_records::RecordStore;
use parlance_inference_gateway::{GatewayError, ModelListing, ModelRegistry, ModelState};
use ractor::{Actor, ActorRef};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

pub use self::models::{ModelOrder, ModelSources};
use self::root::RootArguments;
pub(crate) use self::stateless::{finish_reason, token_counts};
pub use self::{
    embeddings::{EmbedRequest, Embedded},
    stateless::StatelessRequest,
};
use crate::{
    Limits, ModelMemory, ModelSpec, Refusal, Sessions, StartError,
    admission::Admission,
    clock::{Clock, as_millis},
    cluster::{ClusterOptions, ClusterRefusal, ClusterServices, ClusterView, Remote, ShardNews},
    dependencies::{self, Dependencies},
    metrics,
    model_manager::ModelManagerArguments,
    models::Models,
    shard_supervisor::ShardSupervisorMessage,
    shards::ShardTable,
    supervisor::{Supervisor, SupervisorMessage},
};

/// Projections at once: while one writes, the next reads and folds. The store has one writer anyway.
const PROJECTIONS: usize = 2;

/// The key of a tenant's bucket of turns.
const TURNS: &[u8] = b"turns";

/// How long the last writes into the record store may take.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// What a node is made of.
pub struct NodeOptions {
    /// Its name.
    pub node: String,
    /// The log that owns all session state.
    pub log: Arc<dyn ShardLog>,
    /// The view of it.
    pub records: Arc<dyn RecordStore>,
    /// The models that it serves. The first one also answers to `default`.
    pub models: Vec<ModelSpec>,
    /// What they may take together.
    pub memory: ModelMemory,
    /// What makes a model of an operator's words; without it only the models above can be loaded.
    pub sources: Option<ModelSources>,
    /// What reviews prompts and replies.
    pub guards: Guards,
    /// What counts how many turns tenants ask for: for this node alone, or for all of a cluster.
    pub limiter: Arc<dyn Limiter>,
    /// Its bounds.
    pub limits: Limits,
    /// How it takes part in a cluster; absent for a node that is alone with its log.
    pub cluster: Option<ClusterOptions>,
    /// How what happens to turns is published for others; absent where it is not. The same on all nodes of a cluster.
    pub events: Option<EventOptions>,
}

/// How a node publishes what happens to turns.
#[derive(Clone)]
pub struct EventOptions {
    /// The name of the cluster, or of the node that is alone: events' ids begin with it.
    pub cluster: String,
    /// Takes them. It has at least as many shards as the log.
    pub publisher: Arc<dyn EventPublisher>,
}

/// What every actor of a node works with.
pub(crate) struct Services {
    pub(crate) node: String,
    /// Under which name it claims shards: in a cluster, of which start of the node.
    pub(crate) claim_name: String,
    /// Absent for a node that is alone.
    pub(crate) cluster: Option<ClusterServices>,
    /// Absent where no events are published.
    pub(crate) events: Option<EventOptions>,
    /// The living incarnation of the shards' supervisor.
    shard_supervisor: RwLock<Option<ActorRef<ShardSupervisorMessage>>>,
    pub(crate) log: Arc<dyn ShardLog>,
    pub(crate) records: Arc<dyn RecordStore>,
    pub(crate) models: Models,
    pub(crate) sources: Option<ModelSources>,
    pub(crate) guards: Guards,
    pub(crate) limiter: Arc<dyn Limiter>,
    pub(crate) dependencies: Dependencies,
    pub(crate) limits: Limits,
    pub(crate) dialogue_limits: dialogue::Limits,
    pub(crate) clock: Clock,
    pub(crate) turns: Admission,
    /// Turns on their way to the nodes of their sessions, until those have answered.
    pub(crate) forwarded: Admission,
    pub(crate) stateless: Admission,
    pub(crate) census: Census,
    /// How many shards may be writing their records' views at once.
    pub(crate) projections: Semaphore,
}

impl Services {
    pub(crate) fn is_clustered(&self) -> bool {
        self.cluster.is_some()
    }

    /// Counts a turn that comes in here against its tenant's rate.
    ///
    /// # Errors
    ///
    /// [`Refusal::RateLimited`] past it.
    pub(crate) async fn admit_by_rate(&self, tenant: &str) -> Result<(), Refusal> {
        let Some(limit) = self.limits.turn_rate else { return Ok(()) };
        let retry_after = match self.limiter.take(tenant, TURNS, 1, limit).await {
            Decision::Allowed => return Ok(()),
            Decision::RetryAfter(wait) => wait,
            // Not of a limit with a burst of one at least.
            Decision::Never => limit.per,
        };
        let message =
            format!("the tenant has asked for more than its {} turns in {} s", limit.tokens, limit.per.as_secs());
        Err(Refusal::RateLimited { message, retry_after })
    }

    /// The way to sessions of other nodes.
    pub(crate) fn remote(&self) -> Option<&Arc<Remote>> {
        self.cluster.as_ref().map(|cluster| &cluster.remote)
    }

    /// Another node that should make a reply with that model; with `idle`, one where nothing waits.
    pub(crate) fn worker_elsewhere(&self, model: &str, affinity: u64, idle: bool) -> Option<Incarnation> {
        let model = if model.is_empty() { parlance_inference_gateway::DEFAULT_MODEL } else { model };
        self.cluster.as_ref()?.worker_for(model, affinity, idle)
    }

    /// Tells the cluster's actor, if there is one, what became of a shard's actor.
    pub(crate) fn tell_of(&self, shard: ShardId, news: ShardNews) {
        if let Some(cluster) = &self.cluster {
            cluster.tell_of(shard, news);
        }
    }

    pub(crate) fn set_shard_supervisor(&self, supervisor: ActorRef<ShardSupervisorMessage>) {
        *self.shard_supervisor.write().unwrap_or_else(PoisonError::into_inner) = Some(supervisor);
    }

    pub(crate) fn shard_supervisor(&self) -> Option<ActorRef<ShardSupervisorMessage>> {
        self.shard_supervisor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many sessions there are in memory, over all shards.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) live: AtomicUsize,
    pub(crate) parked: AtomicUsize,
}

impl Census {
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn session_started(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
        metrics::session_started();
    }

    /// `false`: there are as many as `most` already.
    pub(crate) fn session_starts_below(&self, most: usize) -> bool {
        let one_more = |live| (live < most).then_some(live + 1);
        let started = self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if started {
            metrics::session_started();
        }
        started
    }

    pub(crate) fn session_ended(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        metrics::session_ended();
    }

    pub(crate) fn session_parked(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        metrics::session_parked();
    }
}

/// A running node. Cheap to clone; [`drain`](Self::drain) ends it.
#[derive(Clone)]
pub struct Node {
    services: Arc<Services>,
    shards: ShardTable,
    sessions: Sessions,
    root: ActorRef<SupervisorMessage>,
    /// Whether the tree has ended.
    ended: watch::Receiver<bool>,
    boot: String,
    /// Whether it gives up its shards in order to end.
    leaving: Arc<AtomicBool>,
}

/// Whether the node takes traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether it does.
    pub ready: bool,
    /// Why it does not, one line each.
    pub reasons: Vec<String>,
}

/// What an operator wants to know of a node.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// Fresh at every start.
    pub boot: String,
    /// See [`Readiness`].
    pub readiness: Readiness,
    /// Shards that it owns.
    pub shards_owned: usize,
    /// Shards that there are.
    pub shards: usize,
    /// Sessions in memory.
    pub live_sessions: usize,
    /// Sessions that were set aside because they failed repeatedly.
    pub parked_sessions: usize,
    /// Accepted turns without an answer, and those waiting to be accepted.
    pub open_turns: usize,
    /// Generations outside any session.
    pub stateless: usize,
    /// Its models.
    pub models: Vec<ModelListing>,
    /// Why the log takes no new turns, if so.
    pub log: Option<String>,
    /// The components that it depends on, as they were seen last.
    pub dependencies: Vec<Dependency>,
}

impl Node {
    /// Starts the supervision tree. Returns once every actor runs; shards and models become ready in the background, see
    /// [`readiness`](Self::readiness).
    ///
    /// # Errors
    ///
    /// What kept an actor from starting.
    pub async fn start(options: NodeOptions) -> Result<Self, StartError> {
        let registry = ModelRegistry::new();
        if let Some(first) = options.models.first() {
            registry.set_alias(parlance_inference_gateway::DEFAULT_MODEL, &first.name);
        }
        // Known before any turn is taken up again: an open turn waits for a model that loads, and fails of one that is unknown.
        for model in &options.models {
            registry.set_state(&model.name, ModelState::Loading { percent: 0 });
        }
        let limits = options.limits;
        let boot = match &options.cluster {
            Some(cluster) => cluster.me.boot.to_string(),
            None => TurnId(rand::random()).to_string(),
        };
        let cluster = options.cluster.as_ref().map(ClusterServices::new);
        let services = Arc::new(Services {
            claim_name: cluster.as_ref().map_or_else(|| options.node.clone(), |cluster| cluster.me.clone()),
            node: options.node,
            cluster,
            events: options.events,
            shard_supervisor: RwLock::default(),
            log: options.log,
            records: options.records,
            models: Models::new(registry, limits.model_wait),
            sources: options.sources,
            guards: options.guards,
            limiter: options.limiter,
            dependencies: Dependencies::default(),
            dialogue_limits: dialogue_limits(&limits),
            clock: Clock::start(),
            turns: Admission::new("open turns", limits.open_turns, limits.open_turns_per_tenant),
            forwarded: Admission::new("turns for other nodes", limits.open_turns, limits.open_turns_per_tenant),
            stateless: Admission::new("stateless generations", limits.stateless, limits.stateless),
            census: Census::default(),
            projections: Semaphore::new(PROJECTIONS),
            limits,
        });
        let shards = ShardTable::new(services.log.shards());
        let models = ModelManagerArguments {
            specs: options.models,
            memory: options.memory,
            drain: services.limits.model_drain,
            models: services.models.clone(),
        };
        let cluster = options.cluster;
        let arguments = RootArguments { services: services.clone(), shards: shards.clone(), models, cluster };
        let (root, running) = Supervisor::spawn(None, Supervisor, root::supervisor(arguments)).await?;
        let (end, ended) = watch::channel(false);
        tokio::spawn(async move {
            // However the root ended: nothing supervises the node any more.
            let _how = running.await;
            end.send_replace(true);
        });
        dependencies::watch(&services);
        let sessions = Sessions::new(services.clone(), shards.clone());
        Ok(Self { services, shards, sessions, root, ended, boot, leaving: Arc::default() })
    }

    /// The durable sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The models.
    pub fn models(&self) -> &ModelRegistry {
        self.services.models.registry()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.services.node
    }

    /// Fresh at every start: tells two lives of one name apart.
    pub fn boot(&self) -> String {
        self.boot.clone()
    }

    /// Whether it takes traffic, and why not.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("the node is draining".to_owned());
        }
        let (_, unowned, all) = self.shards.counts();
        if unowned > 0 {
            reasons.push(format!("{unowned} of {all} shards have no owner yet"));
        }
        reasons.extend(self.services.log.admission().err().map(|error| error.to_string()));
        let missing = self.models().missing();
        reasons.extend(missing.iter().filter(|missing| !self.has_elsewhere(missing)).map(ToString::to_string));
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// Whether a model that this node is not meant to have is served by another one.
    fn has_elsewhere(&self, missing: &GatewayError) -> bool {
        match missing {
            GatewayError::ModelNotFound { name, .. } => self.services.worker_elsewhere(name, 0, false).is_some(),
            _ => false,
        }
    }

    /// For the operator.
    pub fn status(&self) -> NodeStatus {
        let (shards_owned, _, shards) = self.shards.counts();
        NodeStatus {
            node: self.services.node.clone(),
            boot: self.boot(),
            readiness: self.readiness(),
            shards_owned,
            shards,
            live_sessions: self.services.census.live(),
            parked_sessions: self.services.census.parked.load(Ordering::Relaxed),
            open_turns: self.services.turns.open(),
            stateless: self.services.stateless.open(),
            models: self.models().list(),
            log: self.services.log.admission().err().map(|error| error.to_string()),
            dependencies: self.services.dependencies.list(),
        }
    }

    /// Waits until the supervision tree has ended: behind a [`drain`](Self::drain), or because its actors failed again and again. The
    /// reasons are in the log then, and only a new start helps.
    pub async fn ended(&self) {
        // An error means that the sender is gone, which it is only behind the end.
        drop(self.ended.clone().wait_for(|ended| *ended).await);
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// The cluster as this node sees it; `None` for a node that is alone.
    pub fn cluster(&self) -> Option<Arc<ClusterView>> {
        self.services.cluster.as_ref().map(ClusterServices::view)
    }

    /// Has a node of the cluster give up its shards, or take some again. Happens in the background.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub async fn drain_node(&self, name: &str, drain: bool) -> Result<(), ClusterRefusal> {
        let cluster = self.services.cluster.as_ref().ok_or(ClusterRefusal::Alone)?;
        cluster.wish(name, Wish::Drain(drain)).await
    }

    /// Has a shard handed over to a node. Happens in the background; what unbalances the cluster does not last.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub async fn move_shard(&self, shard: u32, to: &str) -> Result<(), ClusterRefusal> {
        let cluster = self.services.cluster.as_ref().ok_or(ClusterRefusal::Alone)?;
        let view = cluster.view();
        let last = self.services.log.shards() - 1;
        let seen = view.shards.get(shard as usize).ok_or(ClusterRefusal::NoSuchShard { shard, last })?;
        view.node(to)?;
        let owner = seen.owner.as_ref().ok_or_else(|| ClusterRefusal::NotNow(format!("shard {shard} has no owner")))?;
        if owner == to {
            return Ok(());
        }
        cluster.wish(owner, Wish::Move(MoveShard { shard, to: to.to_owned() })).await
    }

    /// Ends the node: [quiesces](Self::quiesce) and [stops](Self::stop).
    pub async fn drain(&self, deadline: Duration) {
        self.quiesce(deadline).await;
        self.stop().await;
    }

    /// Prepares the node's end. In a cluster it hands its shards over first, and goes on serving meanwhile. Then it refuses new turns and lets
    /// running ones finish. Who watches turns that live on other nodes can go on until the node [stops](Self::stop).
    pub async fn quiesce(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(cluster) = &self.services.cluster {
            self.hand_shards_over(cluster, until).await;
        }
        self.services.turns.start_draining();
        self.services.stateless.start_draining();
        while Instant::now() < until && self.services.turns.open() + self.services.stateless.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes everything into the record store, leaves the cluster, and stops. What is still running is cut; durable turns go on at the next
    /// start, or on other nodes.
    pub async fn stop(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        for shard in self.shards.actors() {
            let _stopped = shard.cast(crate::shard::ShardMessage::Drain);
        }
        // Writing views is quick, and without it the next start replays.
        let until = Instant::now() + STOPS_WITHIN;
        while Instant::now() < until && !self.shards.actors().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(cluster) = &self.services.cluster {
            cluster.leave().await;
        }
        self.root.stop(Some("drained".into()));
    }

    async fn hand_shards_over(&self, cluster: &ClusterServices, until: Instant) {
        if cluster.drain_here(true).await.is_err() {
            return;
        }
        let others = || {
            let view = cluster.view();
            view.nodes.iter().any(|node| !node.is_self && node.standing == "alive" && node.duty == "serving")
        };
        while Instant::now() < until && others() && !self.shards.owners().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The bounds of a session's machine.
pub(crate) fn dialogue_limits(limits: &Limits) -> dialogue::Limits {
    dialogue::Limits {
        queue: limits.queued_turns_per_session,
        history_bytes: limits.history_bytes as u64,
        ..dialogue::Limits::default()
    }
}

/// A deadline from now.
pub(crate) fn deadline(services: &Services) -> parlance_cluster_protocol::TimestampMs {
    parlance_cluster_protocol::TimestampMs(services.clock.now().0 + as_millis(services.limits.turn_deadline))
}
