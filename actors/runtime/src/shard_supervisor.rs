//! Which shards this node serves: starts their actors, ends them, and restarts those that fail.
//!
//! One per node, spawned by its root supervisor. A node that is alone owns every shard from its start on. In a cluster shards come and go as
//! the cluster's actor [assigns](Assignment) them; a shard's actor serves one term: it follows, claims, owns, and ends with its reign. A restart
//! of this actor ends all terms; they begin again from the log.

use std::sync::Arc;

use parlance_cluster_protocol::ShardId;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, ActorRuntime, SupervisionEvent};
use tokio::time::Instant;

use crate::{
    cluster::ShardNews,
    metrics,
    node::Services,
    shard::{Shard, ShardArguments, ShardMessage},
    shards::ShardTable,
    supervisor::{RestartLedger, RestartPolicy, Verdict},
};

/// What this node is to be to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// Nothing.
    Away,
    /// One that reads along, to take over at once.
    Follow,
    /// Its owner.
    Own,
}

pub(crate) enum ShardSupervisorMessage {
    /// Serve the shard so from now on, until its term ends.
    Assign {
        shard: ShardId,
        assignment: Assignment,
    },
    Internal(Internal),
}

pub(crate) enum Internal {
    /// The pause before the restart of a shard's actor is over.
    RestartDue { shard: ShardId },
}

impl ractor::Message for ShardSupervisorMessage {}

#[derive(Clone)]
pub(crate) struct ShardSupervisorArguments {
    pub(crate) services: Arc<Services>,
    pub(crate) table: ShardTable,
    /// What the node is to every shard at its start.
    pub(crate) at_start: Assignment,
}

#[derive(Clone, Copy)]
pub(crate) struct ShardSupervisor;

struct Term {
    assignment: Assignment,
    /// `None` while it waits for its restart, and where nothing is assigned.
    actor: Option<ActorRef<ShardMessage>>,
    ledger: RestartLedger,
}

pub(crate) struct ShardSupervisorState {
    myself: ActorRef<ShardSupervisorMessage>,
    arguments: ShardSupervisorArguments,
    /// By shard.
    terms: Vec<Term>,
}

impl Actor for ShardSupervisor {
    type Msg = ShardSupervisorMessage;
    type State = ShardSupervisorState;
    type Arguments = ShardSupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardSupervisorMessage>,
        arguments: ShardSupervisorArguments,
    ) -> Result<ShardSupervisorState, ActorProcessingErr> {
        arguments.services.set_shard_supervisor(myself.clone());
        let shards = arguments.services.log.shards();
        let term = |_| Term { assignment: arguments.at_start, actor: None, ledger: RestartLedger::default() };
        let mut state = ShardSupervisorState { myself, terms: (0..shards).map(term).collect(), arguments };
        for shard in 0..shards {
            state.start(ShardId(shard))?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ShardSupervisorMessage>,
        message: ShardSupervisorMessage,
        state: &mut ShardSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardSupervisorMessage::Assign { shard, assignment } => state.on_assign(shard, assignment),
            ShardSupervisorMessage::Internal(Internal::RestartDue { shard }) => state.on_restart_due(shard),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ShardSupervisorMessage>,
        event: SupervisionEvent,
        state: &mut ShardSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => state.on_failed(cell.get_id(), &error.to_string()),
            SupervisionEvent::ActorTerminated(cell, ..) => {
                state.on_ended(cell.get_id());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl ShardSupervisorState {
    fn on_assign(&mut self, shard: ShardId, assignment: Assignment) -> Result<(), ActorProcessingErr> {
        let term = &mut self.terms[usize::from(shard.0)];
        let was = std::mem::replace(&mut term.assignment, assignment);
        match (&term.actor, assignment) {
            (Some(actor), Assignment::Away) => actor.stop(Some("the shard is not assigned to this node".into())),
            (Some(actor), Assignment::Own) if was != Assignment::Own => {
                // One that is just ending is started again as an owner.
                let _ending = actor.cast(ShardMessage::Claim);
            }
            (None, Assignment::Follow | Assignment::Own) if was == Assignment::Away => return self.start(shard),
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, shard: ShardId) -> Result<(), ActorProcessingErr> {
        let term = &mut self.terms[usize::from(shard.0)];
        if term.assignment == Assignment::Away || term.actor.is_some() {
            return Ok(());
        }
        let arguments = ShardArguments {
            shard,
            services: self.arguments.services.clone(),
            table: self.arguments.table.clone(),
            claims: term.assignment == Assignment::Own,
        };
        let (actor, _running) = ActorRuntime::spawn_linked_instant(None, Shard, arguments, self.myself.get_cell())?;
        term.actor = Some(actor);
        Ok(())
    }

    /// A term came to its end: the shard was handed over or taken over, or is not wanted here.
    fn on_ended(&mut self, actor: ActorId) {
        if let Some(shard) = self.forget(actor) {
            self.terms[usize::from(shard.0)].assignment = Assignment::Away;
            self.arguments.services.tell_of(shard, ShardNews::Ended);
        }
    }

    fn on_failed(&mut self, actor: ActorId, reason: &str) -> Result<(), ActorProcessingErr> {
        let Some(shard) = self.forget(actor) else { return Ok(()) };
        self.arguments.table.clear(shard, actor);
        let term = &mut self.terms[usize::from(shard.0)];
        match term.ledger.on_failure(&RestartPolicy::default(), Instant::now().into_std()) {
            Verdict::RestartAfter(delay) => {
                tracing::warn!(actor = "shard", shard = shard.0, ?delay, reason, "actor failed, restarting it");
                self.myself.send_after(delay, move || ShardSupervisorMessage::Internal(Internal::RestartDue { shard }));
                Ok(())
            }
            Verdict::GiveUp => {
                tracing::error!(actor = "shard", shard = shard.0, reason, "actor failed too often, escalating");
                Err(format!("shard {shard} failed too often: {reason}").into())
            }
        }
    }

    fn on_restart_due(&mut self, shard: ShardId) -> Result<(), ActorProcessingErr> {
        let term = &mut self.terms[usize::from(shard.0)];
        if term.actor.is_some() {
            return Ok(());
        }
        metrics::actor_restarted("shard");
        if !self.arguments.services.is_clustered() {
            return self.start(shard);
        }
        // Others may have taken it over meanwhile.
        term.assignment = Assignment::Away;
        self.arguments.services.tell_of(shard, ShardNews::Ended);
        Ok(())
    }

    /// The shard whose actor ended.
    fn forget(&mut self, actor: ActorId) -> Option<ShardId> {
        let is_it = |term: &Term| term.actor.as_ref().is_some_and(|known| known.get_id() == actor);
        let index = self.terms.iter().position(is_it)?;
        self.terms[index].actor = None;
        Some(ShardId(index as u16))
    }
}
