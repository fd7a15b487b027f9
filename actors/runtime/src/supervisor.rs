//! The one generic supervisor: it starts its children in order, restarts them by a strategy within a restart intensity, and fails
//! itself, so that its own supervisor decides, when that is exceeded.
//!
//! Owns its children's lives and nothing else. Spawned by [`Node`](crate::Node), one per branch of the supervision tree. A restart
//! loses its children's memory, which they rebuild from the log and the records.

mod ledger;

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
pub use ledger::RestartPolicy;
pub(crate) use ledger::{RestartLedger, Verdict};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use crate::metrics;

/// Starts a child linked to the given supervisor. Called again for every restart.
pub(crate) type StartChild = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// One child and how to make it.
#[derive(Clone)]
pub(crate) struct ChildSpec {
    /// For logs and metrics; a closed set.
    pub(crate) kind: &'static str,
    pub(crate) start: StartChild,
}

/// Which children a failed one takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// None.
    OneForOne,
    /// Those started after it, which depend on it.
    RestForOne,
}

pub(crate) enum SupervisorMessage {
    Internal(Internal),
}

pub(crate) enum Internal {
    /// The wait before a restart of this child (and, by strategy, of those behind it) is over.
    Restart { child: usize },
}

impl ractor::Message for SupervisorMessage {}

#[derive(Clone)]
pub(crate) struct SupervisorArguments {
    pub(crate) strategy: Strategy,
    pub(crate) policy: RestartPolicy,
    pub(crate) children: Vec<ChildSpec>,
}

#[derive(Clone, Copy)]
pub(crate) struct Supervisor;

struct Child {
    spec: ChildSpec,
    /// `None` while it waits for its restart.
    cell: Option<ActorCell>,
    ledger: RestartLedger,
}

pub(crate) struct SupervisorState {
    strategy: Strategy,
    policy: RestartPolicy,
    children: Vec<Child>,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let mut children = Vec::with_capacity(arguments.children.len());
        for spec in arguments.children {
            let cell = (spec.start)(myself.get_cell()).await?;
            children.push(Child { spec, cell: Some(cell), ledger: RestartLedger::default() });
        }
        Ok(SupervisorState { strategy: arguments.strategy, policy: arguments.policy, children })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Internal(Internal::Restart { child }) => state.on_restart(&myself, child).await,
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => state.on_end(&myself, &cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                state.on_end(&myself, &cell, reason.unwrap_or_else(|| "stopped".into()))
            }
            _ => Ok(()),
        }
    }
}

impl SupervisorState {
    async fn on_restart(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        first: usize,
    ) -> Result<(), ActorProcessingErr> {
        for index in first..self.children.len() {
            let child = &mut self.children[index];
            if child.cell.is_some() {
                continue;
            }
            match (child.spec.start)(myself.get_cell()).await {
                Ok(cell) => child.cell = Some(cell),
                Err(error) => return self.on_failure(myself, index, error.to_string()),
            }
            metrics::actor_restarted(child.spec.kind);
        }
        Ok(())
    }

    /// A child ended. Ends that the supervisor asked for were forgotten before and are not found here.
    fn on_end(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        cell: &ActorCell,
        reason: String,
    ) -> Result<(), ActorProcessingErr> {
        let ended = self
            .children
            .iter()
            .position(|child| child.cell.as_ref().is_some_and(|known| known.get_id() == cell.get_id()));
        match ended {
            Some(index) => {
                self.children[index].cell = None;
                self.on_failure(myself, index, reason)
            }
            None => Ok(()),
        }
    }

    fn on_failure(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        index: usize,
        reason: String,
    ) -> Result<(), ActorProcessingErr> {
        if self.strategy == Strategy::RestForOne {
            for later in &mut self.children[index + 1..] {
                if let Some(cell) = later.cell.take() {
                    cell.stop(Some("an actor that it depends on failed".into()));
                }
            }
        }
        let child = &mut self.children[index];
        match child.ledger.on_failure(&self.policy, Instant::now()) {
            Verdict::RestartAfter(delay) => {
                let (actor, restarts) = (child.spec.kind, child.ledger.restarts());
                tracing::warn!(actor, restarts, ?delay, %reason, "actor failed, restarting it");
                myself.send_after(delay, move || SupervisorMessage::Internal(Internal::Restart { child: index }));
                Ok(())
            }
            Verdict::GiveUp => {
                tracing::error!(actor = child.spec.kind, %reason, "actor failed too often, escalating");
                Err(format!("{} failed too often: {reason}", child.spec.kind).into())
            }
        }
    }
}
