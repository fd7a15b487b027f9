//! The owner of one shard: claims it, replays it, appends for its sessions, keeps the record store up to date.
//!
//! At most one per shard and node, spawned by the node's shard supervisor; its children are the shard's live sessions. It serves one term:
//! follows the log or claims at once, owns, and ends when the shard was handed over or taken over. A restart loses what is
//! in memory and nothing else: the new incarnation claims the shard again, replays from the checkpoint and goes on with every
//! turn that has no final answer.
//!
//! ```text
//! Sessions ──Command──▶ ShardActor ──Command──▶ SessionActor          (started or brought back when needed)
//!                       ShardActor ◀──Append─── SessionActor
//!            ShardLog ◀── batch ──┤
//!                     ── outcome ▶┤──Committed─▶ SessionActor
//!         RecordStore ◀─ project ─┤               (later, many records at once)
//!            Publisher ◀─ upto ───┘               (where events are published; reads the log by itself)
//! ```

mod event;
mod on_events;
mod on_log;
mod on_projection;
mod on_session;
mod on_term;
mod projection;
mod publisher;
mod tail;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parlance_actors_dialogue::ViewChange;
use parlance_cluster_log::{
    AppendOutcome, LogError, StoredEntry,
    ownership::{self, AppendTag, LogPoint, Ownership, SlotTable, Ticket},
};
use parlance_cluster_protocol::{Offset, Position, SessionKey, SessionRecord, ShardId};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::{sync::oneshot, time::Instant};

use self::{on_term::Term, publisher::Publishing, tail::Tail};
pub(crate) use self::{
    projection::project_into,
    tail::{Committed, RecordsBySession, projection_of},
};
use crate::{
    Refusal, ShardError,
    checkpoint::{Checkpoint, OpenTurns},
    metrics,
    node::Services,
    request::SessionCommand,
    session::SessionMessage,
    shards::ShardTable,
    supervisor::RestartLedger,
};

/// How often deadlines, idle sessions and the checkpoint are looked at. Deadlines are seconds, so a tenth of one is exact enough.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

pub(crate) enum ShardMessage {
    /// Hand a command to a session; it is started, or brought back into memory, if it is not there.
    Command {
        session: Arc<SessionKey>,
        command: SessionCommand,
    },
    /// A session asks to record something.
    Append {
        from: ActorId,
        session: Arc<SessionKey>,
        record: Arc<SessionRecord>,
        tag: u64,
    },
    /// A session has handled a command; what it proposed meanwhile came before this.
    Handled {
        from: ActorId,
        session: Arc<SessionKey>,
    },
    /// View changes that a session made and the records do not tell; they are written with the next projection.
    Views {
        session: Arc<SessionKey>,
        position: Position,
        views: Vec<ViewChange>,
    },
    /// Write everything committed so far into the record store.
    Settle {
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Take the shard over: its owner is gone.
    Claim,
    /// Hand the shard over to the node that claims under this name.
    Release {
        to: String,
    },
    /// Write everything into the record store, checkpoint, and stop.
    Drain,
    Internal(Internal),
}

pub(crate) enum Internal {
    /// The log answered a read from `from`.
    LogRead { from: Offset, result: Result<Vec<StoredEntry>, LogError> },
    /// Read from `from` now, after a pause.
    ReadDue { from: Offset },
    /// The log may have grown.
    Arrived,
    /// What the owner has written into the record store by now.
    OwnerProjected { result: Result<Option<Checkpoint>, ShardError> },
    /// The log told the outcomes of one append.
    Appended { tag: AppendTag, outcomes: Vec<AppendOutcome> },
    /// Everything that was proposed since is to be handed to the log.
    FlushDue,
    /// A back-off before a claim is over.
    ClaimDue,
    /// A projection ended.
    Projected { result: Result<(), ShardError> },
    /// A back-off after a failed projection is over.
    ProjectionDue,
    /// A checkpoint was stored, or not.
    CheckpointStored { upto: Offset, needed_from: Offset, result: Result<(), ShardError> },
    /// So many more events are published, which are all up to `point`.
    EventsPublished { point: LogPoint, events: usize },
    /// The pause after a session's failure is over.
    RestartDue { session: Arc<SessionKey> },
    /// Time has passed.
    Sweep,
}

impl ractor::Message for ShardMessage {}

#[derive(Clone)]
pub(crate) struct ShardArguments {
    pub(crate) shard: ShardId,
    pub(crate) services: Arc<Services>,
    pub(crate) table: ShardTable,
    /// Whether it claims at once; otherwise it follows first.
    pub(crate) claims: bool,
}

#[derive(Clone, Copy)]
pub(crate) struct Shard;

/// A record on its way into the log.
struct Proposed {
    ticket: Ticket,
    session: Arc<SessionKey>,
    record: Arc<SessionRecord>,
    /// The session actor that asked for it and the tag that it knows it by; `None` for a record of the shard's own.
    by: Option<(ActorId, u64)>,
}

/// A session in memory.
struct LiveSession {
    actor: ActorRef<SessionMessage>,
    last_used: Instant,
    /// Commands that it was handed and has not handled.
    commands: usize,
    /// Records that it proposed and that are not settled.
    proposed: usize,
}

/// A session that failed.
#[derive(Default)]
struct FailedSession {
    ledger: RestartLedger,
    /// Set aside: it failed too often.
    parked: bool,
    /// No new incarnation before this.
    not_before: Option<Instant>,
}

pub(crate) struct ShardState {
    shard: ShardId,
    services: Arc<Services>,
    table: ShardTable,
    myself: ActorRef<ShardMessage>,
    ownership: Ownership,
    /// Whether this incarnation has replayed up to its own claim. Before that it performs no effect.
    owner: bool,
    term: Term,
    /// Commands that came before this incarnation owned the shard. Bound: `Limits::open_turns`, by admission.
    waiting: VecDeque<(Arc<SessionKey>, SessionCommand)>,
    /// Records on their way into the log.
    ///
    /// Invariant: in ticket order.
    proposed: VecDeque<Proposed>,
    /// Whether a `FlushDue` is in the mailbox.
    flush_due: bool,
    open: OpenTurns,
    tail: Tail,
    live: HashMap<Arc<SessionKey>, LiveSession>,
    by_actor: HashMap<ActorId, Arc<SessionKey>>,
    failed: BTreeMap<Arc<SessionKey>, FailedSession>,
    /// When sessions that owe an answer and are not in memory were last brought back.
    recovered: Instant,
    /// When sessions were last looked for that could leave for a new one.
    sought_room: Option<Instant>,
    /// The reader's state and the open turns at the end of the records that are being projected.
    projecting_to: Option<Checkpoint>,
    /// The same for what the store has.
    projected_to: Checkpoint,
    /// Up to where the stored checkpoint goes.
    checkpointed: Offset,
    /// From where on the log is needed by whoever begins at the stored checkpoint.
    needed_from: Offset,
    /// Publishes events, once this incarnation owns the shard.
    publishing: Option<Publishing>,
    checkpoint_started: Option<Instant>,
    checkpointing: bool,
    /// Who waits for the running projection, and who for the next.
    settling: Vec<oneshot::Sender<Result<(), Refusal>>>,
    settling_next: Vec<oneshot::Sender<Result<(), Refusal>>>,
    draining: bool,
}

impl Actor for Shard {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        arguments: ShardArguments,
    ) -> Result<ShardState, ActorProcessingErr> {
        let ShardArguments { shard, services, table, claims } = arguments;
        let checkpoint = on_term::patient_checkpoint(&services, shard).await?;
        let mut state = ShardState::new(shard, services, table, myself.clone(), checkpoint);
        state.begin_term(claims)?;
        myself.send_interval(SWEEP_EVERY, || ShardMessage::Internal(Internal::Sweep));
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Command { session, command } => state.on_command(session, command),
            ShardMessage::Append { from, session, record, tag } => state.on_append(from, session, record, tag),
            ShardMessage::Handled { from, session } => state.on_handled(from, &session),
            ShardMessage::Views { session, position, views } => state.tail.add_views(&session, position, views),
            ShardMessage::Settle { reply } => state.on_settle(reply),
            ShardMessage::Claim => state.on_claim("failover"),
            ShardMessage::Release { to } => state.on_release(to)?,
            ShardMessage::Drain => state.on_drain(),
            ShardMessage::Internal(internal) => state.on_internal(internal)?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ShardMessage>,
        event: SupervisionEvent,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => state.on_session_failed(cell.get_id(), &error.to_string()),
            SupervisionEvent::ActorTerminated(cell, ..) => state.on_session_ended(cell.get_id()),
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<ShardMessage>,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        state.on_stopped();
        Ok(())
    }
}

impl ShardState {
    fn new(
        shard: ShardId,
        services: Arc<Services>,
        table: ShardTable,
        myself: ActorRef<ShardMessage>,
        checkpoint: Checkpoint,
    ) -> Self {
        let slots = SlotTable::new(shard, services.log.shards());
        let limits = ownership::Limits::default();
        let ownership = Ownership::new(services.claim_name.clone(), slots, checkpoint.point, limits);
        Self {
            shard,
            table,
            myself,
            ownership,
            owner: false,
            term: Term::default(),
            waiting: VecDeque::new(),
            proposed: VecDeque::new(),
            flush_due: false,
            open: checkpoint.open.clone(),
            tail: Tail::default(),
            live: HashMap::new(),
            by_actor: HashMap::new(),
            failed: BTreeMap::new(),
            recovered: Instant::now(),
            sought_room: None,
            projecting_to: None,
            checkpointed: checkpoint.point.next,
            needed_from: checkpoint.needed_from(),
            publishing: None,
            projected_to: checkpoint,
            checkpoint_started: None,
            checkpointing: false,
            settling: Vec::new(),
            settling_next: Vec::new(),
            draining: false,
            services,
        }
    }

    fn on_internal(&mut self, internal: Internal) -> Result<(), ShardError> {
        match internal {
            Internal::LogRead { from, result } => self.on_log_read(from, result),
            Internal::ReadDue { from } => {
                self.read(from);
                Ok(())
            }
            Internal::Arrived => self.on_arrived(),
            Internal::OwnerProjected { result } => {
                self.on_owner_projected(result);
                Ok(())
            }
            Internal::Appended { tag, outcomes } => self.on_appended(tag, &outcomes),
            Internal::FlushDue => self.on_flush_due(),
            Internal::ClaimDue => {
                self.claim();
                Ok(())
            }
            Internal::Projected { result } => {
                self.on_projected(result);
                Ok(())
            }
            Internal::ProjectionDue => {
                self.run_projection();
                Ok(())
            }
            Internal::CheckpointStored { upto, needed_from, result } => {
                self.on_checkpoint_stored(upto, needed_from, result);
                Ok(())
            }
            Internal::EventsPublished { point, events } => {
                self.on_events_published(point, events);
                Ok(())
            }
            Internal::RestartDue { session } => {
                self.on_restart_due(&session);
                Ok(())
            }
            Internal::Sweep => {
                self.on_sweep();
                Ok(())
            }
        }
    }

    fn on_sweep(&mut self) {
        self.sweep_deadlines();
        self.sweep_unloaded();
        self.sweep_idle();
        self.sweep_followed();
        self.start_projection();
        self.start_checkpoint();
        self.finish_drain();
    }

    fn on_stopped(&mut self) {
        self.publishing = None;
        self.table.clear(self.shard, self.myself.get_id());
        if self.owner {
            metrics::shard_left();
        }
        for _ in &self.live {
            self.services.census.session_ended();
        }
    }

    /// Sends to itself. A failure means that this actor is stopping, so the message has no reader.
    fn tell_self(&self, internal: Internal) {
        let _stopping = self.myself.cast(ShardMessage::Internal(internal));
    }

    fn tell_self_after(&self, delay: Duration, internal: Internal) {
        self.myself.send_after(delay, move || ShardMessage::Internal(internal));
    }
}
