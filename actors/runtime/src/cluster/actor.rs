//! The node's part in its cluster: feeds membership, failure detector and [`Steward`] what happens, and does what they want.
//!
//! One per node in a cluster, spawned by the node's root supervisor. It cannot be restarted: others know its start by its boot id, so its failure ends
//! the node, which then starts anew. It loses nothing that the logs do not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parlance_cluster_node::{
    detector::{Detector, Suspicion},
    identity::{Incarnation, NodeName},
    links::Links,
    membership::{Duty, Event, Input, Member, Membership, Output, Seen, TICK},
};
use parlance_cluster_protocol::{
    ShardId,
    peer::{MoveShard, Report, ServedModel, Wish},
};
use parlance_inference_engine::ModelKind;
use prost::Message as _;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    ClusterOptions, ShardNews, kind,
    steward::{Order, Steward},
    switchboard::Switchboard,
    view::ClusterView,
};
use crate::{
    metrics,
    node::Services,
    sessions::Sessions,
    shard::ShardMessage,
    shard_supervisor::ShardSupervisorMessage,
    shards::{Route, ShardTable},
};

/// Between two reports, where nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// What happens within this time is decided on at once.
const DECIDE_AFTER: Duration = Duration::from_millis(2);
/// Between two looks at where other nodes may be.
const SEEDS_EVERY: Duration = Duration::from_secs(5);
/// How long the look-up of a name may take.
const LOOKUP_WITHIN: Duration = Duration::from_secs(3);
/// Addresses of one seed that are dialled.
const MOST_ADDRESSES: usize = 256;
/// How long what is said at leaving may take to be sent.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long a datagram or a report waits for room on its link.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

pub(crate) enum ClusterMessage {
    /// A datagram of the membership came.
    Gossip {
        from: Incarnation,
        bytes: Bytes,
    },
    /// A node said what it owns and hears.
    Report {
        from: Incarnation,
        report: Report,
    },
    LinkUp(Incarnation),
    LinkDown(Incarnation),
    /// Something became of a shard's actor on this node.
    News {
        shard: ShardId,
        news: ShardNews,
    },
    /// An operator wants something of this node.
    Wish {
        wish: Wish,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Leave the cluster, and say so.
    Leave {
        reply: oneshot::Sender<()>,
    },
    Internal(Internal),
}

pub(crate) enum Internal {
    /// Time has passed.
    Tick,
    /// Everything that happened lately was told.
    DecideDue,
    /// Where other nodes may be.
    SeedsFound { addresses: BTreeSet<String> },
}

impl ractor::Message for ClusterMessage {}

#[derive(Clone)]
pub(crate) struct ClusterArguments {
    pub(crate) options: ClusterOptions,
    pub(crate) services: Arc<Services>,
    pub(crate) table: ShardTable,
}

#[derive(Clone, Copy)]
pub(crate) struct Cluster;

pub(crate) struct ClusterState {
    options: ClusterOptions,
    services: Arc<Services>,
    table: ShardTable,
    myself: ActorRef<ClusterMessage>,
    started: Instant,
    switchboard: Arc<Switchboard>,
    links: Arc<dyn Links>,
    membership: Membership,
    detector: Detector,
    steward: Steward,
    /// Whether something has changed since the last decision.
    is_dirty: bool,
    reported: Option<Instant>,
    /// What was reported last, its number aside.
    last_report: Report,
    seeds_sought: Option<Instant>,
    /// When this node began to hand shards over that have no new owner yet.
    releases: BTreeMap<ShardId, Instant>,
    /// The addresses of seeds that are dialled. Bound: [`MOST_ADDRESSES`] for each.
    dialled: BTreeSet<String>,
}

impl Actor for Cluster {
    type Msg = ClusterMessage;
    type State = ClusterState;
    type Arguments = ClusterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ClusterMessage>,
        arguments: ClusterArguments,
    ) -> Result<ClusterState, ActorProcessingErr> {
        let state = ClusterState::start(myself.clone(), arguments).await?;
        myself.send_interval(TICK, || ClusterMessage::Internal(Internal::Tick));
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ClusterMessage>,
        message: ClusterMessage,
        state: &mut ClusterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ClusterMessage::Gossip { from, bytes } => state.tell(Input::Datagram { from: &from, bytes: &bytes })?,
            ClusterMessage::Report { from, report } => state.on_report(&from, report),
            ClusterMessage::LinkUp(peer) => state.on_link_up(&peer)?,
            ClusterMessage::LinkDown(peer) => state.tell(Input::LinkDown(&peer))?,
            ClusterMessage::News { shard, news } => state.on_news(shard, news),
            ClusterMessage::Wish { wish, reply } => {
                // An operator who is gone needs no answer.
                let _gone = reply.send(state.on_wish(wish)?);
            }
            ClusterMessage::Leave { reply } => state.on_leave(reply)?,
            ClusterMessage::Internal(Internal::Tick) => state.on_tick()?,
            ClusterMessage::Internal(Internal::DecideDue) => state.decide(),
            ClusterMessage::Internal(Internal::SeedsFound { addresses }) => state.on_seeds_found(addresses),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ClusterMessage>,
        _event: SupervisionEvent,
        _state: &mut ClusterState,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        Ok(())
    }
}

impl ClusterState {
    async fn start(myself: ActorRef<ClusterMessage>, arguments: ClusterArguments) -> Result<Self, ActorProcessingErr> {
        let ClusterArguments { options, services, table } = arguments;
        let cluster = services.cluster.as_ref().ok_or("a node that is in no cluster has no part in one")?;
        let (remote, workers) = (cluster.remote.clone(), cluster.workers.clone());
        let switchboard = Arc::new(Switchboard {
            cluster: myself.clone(),
            sessions: Sessions::new(services.clone(), table.clone()),
            remote: remote.clone(),
            workers: workers.clone(),
            services: services.clone(),
            heard: std::sync::Mutex::default(),
        });
        let links = (options.connect)(switchboard.clone(), switchboard.clone()).await?;
        cluster.peers.set(links.clone());
        // There is one start.
        let _ = cluster.actor.set(myself.clone());
        let me = Member {
            node: options.me.clone(),
            revision: 0,
            duty: Duty::Serving,
            address: options.address.clone(),
            zone: options.zone.clone(),
            weight: options.weight,
            versions: options.versions,
        };
        let shards = services.log.shards();
        let has_seeds = !options.seeds.is_empty();
        Ok(Self {
            started: Instant::now(),
            membership: Membership::new(me, options.membership.clone(), rand::random()),
            detector: Detector::new(options.detector.clone()),
            steward: Steward::new(options.me.clone(), shards, options.moves_at_once, has_seeds),
            is_dirty: true,
            reported: None,
            last_report: Report::default(),
            seeds_sought: None,
            releases: BTreeMap::new(),
            dialled: BTreeSet::new(),
            options,
            services,
            table,
            myself,
            switchboard,
            links,
        })
    }

    fn up(&self) -> Duration {
        self.started.elapsed()
    }

    fn members(&self) -> Vec<Seen> {
        self.membership.members().cloned().collect()
    }

    /// Something has changed that decisions depend on.
    fn dirty(&mut self) {
        if !std::mem::replace(&mut self.is_dirty, true) {
            self.myself.send_after(DECIDE_AFTER, || ClusterMessage::Internal(Internal::DecideDue));
        }
    }

    fn on_tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = self.up();
        for peer in self.switchboard.take_heard() {
            if let Some(suspicion) = self.detector.heard(&peer, now) {
                self.on_suspicion(&suspicion)?;
            }
        }
        for suspicion in self.detector.tick(now) {
            self.on_suspicion(&suspicion)?;
        }
        self.tell(Input::Tick)?;
        self.seek_seeds();
        metrics::suspicions(self.detector.counts());
        // Time itself may make something due.
        self.decide();
        Ok(())
    }

    fn on_suspicion(&mut self, suspicion: &Suspicion) -> Result<(), ActorProcessingErr> {
        match suspicion {
            Suspicion::Began(node) => {
                tracing::warn!(%node, "a node has fallen silent");
                self.steward.on_silence(node, true);
            }
            Suspicion::Ended(node) => {
                tracing::info!(%node, "a node is heard again");
                self.steward.on_silence(node, false);
            }
        }
        self.dirty();
        self.tell(Input::Suspicion(suspicion))
    }

    fn on_report(&mut self, from: &Incarnation, report: Report) {
        self.steward.on_report(from, report);
        self.dirty();
    }

    fn on_link_up(&mut self, peer: &Incarnation) -> Result<(), ActorProcessingErr> {
        self.tell(Input::LinkUp(peer))?;
        self.send(&peer.name, kind::REPORT, self.last_report.encode_to_vec().into());
        Ok(())
    }

    fn on_news(&mut self, shard: ShardId, news: ShardNews) {
        if matches!(news, ShardNews::Owned { .. }) {
            // A hand-over that did not happen.
            self.releases.remove(&shard);
        }
        self.steward.on_news(shard, news);
        self.dirty();
    }

    fn on_wish(&mut self, wish: Wish) -> Result<Result<(), String>, ActorProcessingErr> {
        match wish {
            Wish::Drain(drain) => {
                let duty = if drain { Duty::Draining } else { Duty::Serving };
                self.tell(Input::Update { duty, weight: self.options.weight })?;
                self.dirty();
                Ok(Ok(()))
            }
            Wish::Move(MoveShard { shard, to }) => {
                let (Ok(number), Ok(to)) = (u16::try_from(shard), to.parse::<NodeName>()) else {
                    return Ok(Err(format!("shard {shard} or node {to} cannot be")));
                };
                let taken = self.steward.on_wish(ShardId(number), to);
                self.dirty();
                Ok(if taken { Ok(()) } else { Err(format!("shard {shard} is not this node's any more; try again")) })
            }
        }
    }

    fn on_leave(&mut self, reply: oneshot::Sender<()>) -> Result<(), ActorProcessingErr> {
        self.tell(Input::Leave)?;
        let links = self.links.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            links.stop().await;
            // Whoever wanted it may have given up waiting.
            let _gone = reply.send(());
        });
        Ok(())
    }

    /// Tells the membership, and does what it wants.
    fn tell(&mut self, input: Input<'_>) -> Result<(), ActorProcessingErr> {
        for output in self.membership.handle(input, self.started.elapsed()) {
            match output {
                Output::Send { to, bytes } => self.send(&to.name, kind::GOSSIP, bytes),
                Output::Event(event) => self.on_event(event)?,
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), ActorProcessingErr> {
        let now = self.up();
        match event {
            Event::Joined(member) | Event::Recovered(member) => {
                tracing::info!(node = %member.node, address = member.address, "a node is there");
                self.meet(&member, now);
            }
            Event::Restarted { was, now: member } => {
                tracing::info!(node = %member.node, %was, "a node was started anew");
                self.steward.on_gone(&was);
                self.detector.forget(&was.name);
                self.meet(&member, now);
            }
            Event::Changed(member) => self.meet(&member, now),
            Event::Suspected(_) => {}
            Event::Left(node) => {
                tracing::info!(%node, "a node has left");
                self.lose(&node);
                self.forget_address(&node);
            }
            // It is dialled on: it may be cut off, and come back as it is.
            Event::Down(node) => {
                tracing::warn!(%node, "a node is down");
                self.lose(&node);
            }
            Event::Superseded { by } => {
                tracing::error!(%by, "a later start of this node runs: this one ends");
                return Err("a later start of this node runs".into());
            }
        }
        self.dirty();
        Ok(())
    }

    fn meet(&mut self, member: &Member, now: Duration) {
        self.detector.watch(&member.node, now);
        if !member.address.is_empty() {
            self.links.dial(&member.address);
        }
    }

    fn lose(&mut self, node: &Incarnation) {
        self.detector.forget(&node.name);
        self.steward.on_gone(node);
    }

    fn forget_address(&self, node: &Incarnation) {
        let address = self.membership.members().find(|seen| seen.member.node == *node).map(|seen| &seen.member.address);
        if let Some(address) = address.filter(|address| !self.dialled.contains(*address)) {
            self.links.forget(address);
        }
    }

    /// Decides what this node should be to every shard, has it done, and tells the others.
    fn decide(&mut self) {
        self.is_dirty = false;
        let (members, me) = (self.members(), self.membership.me().clone());
        for order in self.steward.decide(self.up(), &me, &members) {
            self.carry_out(order);
        }
        let elsewhere = self.steward.elsewhere(&members);
        for (shard, owner) in (0..).map(ShardId).zip(elsewhere) {
            if owner.is_some()
                && let Some(began) = self.releases.remove(&shard)
            {
                metrics::shard_handed_over(began.elapsed());
            }
            self.table.set_elsewhere(shard, owner);
        }
        self.report();
        let linked: Vec<NodeName> = self.links.links().into_iter().map(|link| link.peer.name).collect();
        if let Some(cluster) = &self.services.cluster {
            cluster.set_with_models(self.steward.with_models(&me, &members));
            cluster.set_view(ClusterView::of(&self.options.id, &me, &members, &linked, &self.steward));
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Assign(shard, assignment) => {
                if let Some(supervisor) = self.services.shard_supervisor() {
                    // One that is restarting ends all terms, and says so.
                    let _restarting = supervisor.cast(ShardSupervisorMessage::Assign { shard, assignment });
                }
            }
            Order::Release(shard, to) => {
                self.releases.insert(shard, Instant::now());
                if let Route::Here(actor) = self.table.route(shard) {
                    // One that is stopping says so.
                    let _stopping = actor.cast(ShardMessage::Release { to: to.to_string() });
                }
            }
        }
    }

    /// Tells everybody what this node owns and hears: at once where that changed, and now and then.
    fn report(&mut self) {
        let report = Report { models: self.models(), ..self.steward.report() };
        let is_news = told(&report) != told(&self.last_report);
        let is_due = self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY);
        if !is_news && !is_due {
            return;
        }
        self.reported = Some(Instant::now());
        let payload = Bytes::from(report.encode_to_vec());
        self.last_report = report;
        for link in self.links.links() {
            self.send(&link.peer.name, kind::REPORT, payload.clone());
        }
    }

    /// The models that answer turns on this node now.
    fn models(&self) -> Vec<ServedModel> {
        let listings = self.services.models.registry().list();
        let answering =
            listings.into_iter().filter(|listing| listing.kind == Some(ModelKind::Chat) && listing.replicas > 0);
        let served = answering.map(|listing| ServedModel {
            names: [listing.name].into_iter().chain(listing.aliases).collect(),
            running: listing.load.running as u32,
            waiting: listing.load.waiting as u32,
        });
        served.collect()
    }

    /// Sends what may get lost.
    fn send(&self, to: &NodeName, kind: u32, payload: Bytes) {
        tokio::spawn(self.links.cast(to, kind, payload, ROOM_WITHIN));
    }

    fn seek_seeds(&mut self) {
        let is_due = self.seeds_sought.is_none_or(|sought| sought.elapsed() >= SEEDS_EVERY);
        if !is_due || self.options.seeds.is_empty() {
            return;
        }
        self.seeds_sought = Some(Instant::now());
        let (seeds, myself) = (self.options.seeds.clone(), self.myself.clone());
        tokio::spawn(async move {
            let mut addresses = BTreeSet::new();
            for seed in seeds {
                addresses.extend(found(&seed).await);
            }
            let _stopping = myself.cast(ClusterMessage::Internal(Internal::SeedsFound { addresses }));
        });
    }

    fn on_seeds_found(&mut self, addresses: BTreeSet<String>) {
        let members: BTreeSet<String> = self.membership.members().map(|seen| seen.member.address.clone()).collect();
        for gone in self.dialled.difference(&addresses).filter(|gone| !members.contains(*gone)) {
            self.links.forget(gone);
        }
        for address in &addresses {
            self.links.dial(address);
        }
        self.dialled = addresses;
    }
}

/// What of a report is worth telling at once.
fn told(report: &Report) -> Report {
    let idle = |served: &ServedModel| ServedModel { running: 0, waiting: 0, ..served.clone() };
    Report { number: 0, models: report.models.iter().map(idle).collect(), ..report.clone() }
}

/// Where the nodes of a seed are: every address of its name, or the lines of a file. What cannot be looked up now is at another time.
async fn found(seed: &str) -> Vec<String> {
    if let Some(path) = seed.strip_prefix("file:") {
        let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        return lines.take(MOST_ADDRESSES).map(str::to_owned).collect();
    }
    match timeout(LOOKUP_WITHIN, tokio::net::lookup_host(seed)).await {
        Ok(Ok(addresses)) => addresses.take(MOST_ADDRESSES).map(|address| address.to_string()).collect(),
        Ok(Err(error)) => {
            tracing::debug!(seed, %error, "a seed has no address now");
            Vec::new()
        }
        Err(_late) => Vec::new(),
    }
}
