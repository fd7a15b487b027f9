//! The one generic supervisor: it starts its children in order, restarts those that fail by a strategy within a restart intensity, and
//! fails itself, so that its own supervisor decides, when that is exceeded.
//!
//! Owns its children's lives and nothing else. Spawned by [`Node`](crate::Node), one per branch of the supervision tree. A restart
//! loses its children's memory, which they rebuild from the log and the records.

mod ledger;

use std::sync::Arc;

use futures_util::future::BoxFuture;
pub use ledger::RestartPolicy;
pub(crate) use ledger::{RestartLedger, Verdict};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, ActorRuntime, SpawnErr, SupervisionEvent};
use tokio::time::Instant;

use crate::metrics;

/// Starts a child linked to the given supervisor. Called again for every restart.
pub(crate) type StartChild = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// One child and how to make it.
#[derive(Clone)]
pub(crate) struct ChildSpec {
    /// For logs and metrics; a closed set.
    pub(crate) kind: &'static str,
    pub(crate) start: StartChild,
    /// Whether its failure is that of its supervisor: it cannot be started twice.
    pub(crate) is_vital: bool,
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
    /// `None` while it waits for its restart, and behind its end.
    cell: Option<ActorCell>,
    /// It stopped by itself and is not wanted back.
    done: bool,
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
            children.push(Child { spec, cell: Some(cell), done: false, ledger: RestartLedger::default() });
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
            SupervisionEvent::ActorFailed(cell, error) => state.on_failed(&myself, &cell, error.to_string()),
            // A child that stopped by itself is done: a drained shard, for example.
            SupervisionEvent::ActorTerminated(cell, ..) => {
                if let Some(index) = state.forget(&cell) {
                    state.children[index].done = true;
                }
                Ok(())
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
        let last = match self.strategy {
            Strategy::OneForOne => first + 1,
            Strategy::RestForOne => self.children.len(),
        };
        for index in first..last {
            let child = &mut self.children[index];
            if child.cell.is_some() || child.done {
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

    fn on_failed(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        cell: &ActorCell,
        reason: String,
    ) -> Result<(), ActorProcessingErr> {
        match self.forget(cell) {
            Some(index) => self.on_failure(myself, index, reason),
            None => Ok(()),
        }
    }

    /// The child that ended; `None` for one that the supervisor itself stopped, which was forgotten before.
    fn forget(&mut self, cell: &ActorCell) -> Option<usize> {
        let is_it = |child: &Child| child.cell.as_ref().is_some_and(|known| known.get_id() == cell.get_id());
        let index = self.children.iter().position(is_it)?;
        self.children[index].cell = None;
        Some(index)
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
        let verdict = match child.spec.is_vital {
            true => Verdict::GiveUp,
            false => child.ledger.on_failure(&self.policy, Instant::now().into_std()),
        };
        match verdict {
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

/// Children that are restarted each by itself, by the default policy.
pub(crate) fn one_for_one(children: Vec<ChildSpec>) -> SupervisorArguments {
    SupervisorArguments { strategy: Strategy::OneForOne, policy: RestartPolicy::default(), children }
}

/// A child that is made from the same arguments each time.
pub(crate) fn child<A>(kind: &'static str, actor: A, arguments: A::Arguments) -> ChildSpec
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
    ChildSpec { kind, start, is_vital: false }
}

/// A child that is started once: if it fails, its supervisor does.
pub(crate) fn vital_child<A>(kind: &'static str, actor: A, arguments: A::Arguments) -> ChildSpec
where
    A: Actor + Copy,
    A::Arguments: Clone + Sync,
{
    ChildSpec { is_vital: true, ..child(kind, actor, arguments) }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use ractor::ActorStatus;

    use super::*;

    /// Fails when it is told to.
    #[derive(Clone, Copy)]
    struct Worker;

    enum WorkerMessage {
        Fail,
        Finish,
    }

    impl ractor::Message for WorkerMessage {}

    impl Actor for Worker {
        type Msg = WorkerMessage;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<WorkerMessage>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            myself: ActorRef<WorkerMessage>,
            message: WorkerMessage,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            match message {
                WorkerMessage::Fail => panic!("as it was told"),
                WorkerMessage::Finish => myself.stop(None),
            }
            Ok(())
        }

        async fn handle_supervisor_evt(
            &self,
            _: ActorRef<WorkerMessage>,
            _: SupervisionEvent,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    /// Every worker that was started, as (child, actor).
    type Started = Arc<Mutex<Vec<(usize, ActorRef<WorkerMessage>)>>>;

    fn worker(child: usize, started: &Started) -> ChildSpec {
        let started = started.clone();
        let start: StartChild = Arc::new(move |supervisor| {
            let started = started.clone();
            Box::pin(async move {
                let (actor, _running) = ActorRuntime::spawn_linked(None, Worker, (), supervisor).await?;
                started.lock().expect("no test panicked").push((child, actor.clone()));
                Ok(actor.get_cell())
            })
        });
        ChildSpec { kind: "worker", start, is_vital: false }
    }

    async fn supervise(strategy: Strategy, started: &Started) -> ActorRef<SupervisorMessage> {
        let children = (0..3).map(|child| worker(child, started)).collect();
        let arguments = SupervisorArguments { strategy, policy: RestartPolicy::default(), children };
        Supervisor::spawn(None, Supervisor, arguments).await.expect("it starts").0
    }

    async fn tell(started: &Started, child: usize, message: WorkerMessage) {
        let latest = {
            let started = started.lock().expect("no test panicked");
            started.iter().rev().find(|(of, _)| *of == child).map(|(_, actor)| actor.clone())
        };
        latest.expect("it was started").cast(message).expect("it lives");
        // Longer than any restart delay; the clock is paused.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }

    fn order(started: &Started) -> Vec<usize> {
        started.lock().expect("no test panicked").iter().map(|(child, _)| *child).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_for_one_restarts_the_failed_child_alone() {
        let started = Started::default();
        let _supervisor = supervise(Strategy::OneForOne, &started).await;
        tell(&started, 1, WorkerMessage::Fail).await;
        assert_eq!(order(&started), [0, 1, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn rest_for_one_restarts_those_behind_it_too_in_order() {
        let started = Started::default();
        let _supervisor = supervise(Strategy::RestForOne, &started).await;
        tell(&started, 1, WorkerMessage::Fail).await;
        assert_eq!(order(&started), [0, 1, 2, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_finished_is_not_wanted_back() {
        let started = Started::default();
        let _supervisor = supervise(Strategy::RestForOne, &started).await;
        tell(&started, 2, WorkerMessage::Finish).await;
        tell(&started, 0, WorkerMessage::Fail).await;
        assert_eq!(order(&started), [0, 1, 2, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_failures_end_the_supervisor() {
        let started = Started::default();
        let supervisor = supervise(Strategy::OneForOne, &started).await;
        for _ in 0..=RestartPolicy::default().max_restarts {
            assert_ne!(supervisor.get_status(), ActorStatus::Stopped);
            tell(&started, 0, WorkerMessage::Fail).await;
        }
        assert_eq!(supervisor.get_status(), ActorStatus::Stopped);
    }
}
