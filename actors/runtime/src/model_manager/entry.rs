//! One model as the manager knows it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use parlance_inference_engine::Replica;
use parlance_inference_gateway::ModelState;
use ractor::ActorCell;
use tokio::sync::{oneshot, watch};

use super::{LoadingId, ModelSpec};
use crate::{Refusal, model_worker::LoadProgress};

/// One model.
///
/// Invariant: there is a `coming` one only beside a `serving` one.
pub(super) struct Entry {
    pub(super) spec: ModelSpec,
    /// Whether it was added at run time, so that it is forgotten once somebody has it unloaded.
    pub(super) added: bool,
    /// Somebody had it unloaded.
    pub(super) unwanted: bool,
    /// Decided to be loaded, once what makes room for it has left.
    pub(super) waits_for_room: bool,
    /// Takes requests, or will as soon as one of its replicas is there.
    pub(super) serving: Option<Loading>,
    /// Takes over once it is whole.
    pub(super) coming: Option<Loading>,
    /// Finish what they have taken on, by number, with what they take.
    pub(super) leaving: BTreeMap<u64, u64>,
    pub(super) waiting: Vec<oneshot::Sender<Result<(), Refusal>>>,
    pub(super) trouble: Option<Trouble>,
}

/// Why the last loading failed.
pub(super) struct Trouble {
    pub(super) reason: String,
    pub(super) at: Instant,
}

/// One loading of a model: its replicas, loaded or on their way.
pub(super) struct Loading {
    pub(super) id: LoadingId,
    pub(super) bytes: u64,
    pub(super) supervisor: ActorCell,
    /// Those that are loaded, by number.
    pub(super) replicas: BTreeMap<usize, Arc<dyn Replica>>,
    /// Of each replica.
    pub(super) progress: Vec<LoadProgress>,
    /// Closed once no thread loads any more.
    pub(super) busy: watch::Receiver<()>,
}

impl Entry {
    pub(super) fn new(spec: ModelSpec, added: bool) -> Self {
        Self {
            spec,
            added,
            unwanted: false,
            waits_for_room: false,
            serving: None,
            coming: None,
            leaving: BTreeMap::new(),
            waiting: Vec::new(),
            trouble: None,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving.as_ref().is_some_and(|loading| !loading.replicas.is_empty())
    }

    pub(super) fn is_loading(&self) -> bool {
        self.waits_for_room || self.coming.is_some() || (self.serving.is_some() && !self.is_serving())
    }

    pub(super) fn in_use(&self) -> u64 {
        let loadings = self.serving.iter().chain(&self.coming).map(|loading| loading.bytes);
        let decided = if self.waits_for_room { self.spec.bytes() } else { 0 };
        loadings.chain(self.leaving.values().copied()).sum::<u64>() + decided
    }

    /// Its part that is called `id`.
    pub(super) fn loading(&mut self, id: &LoadingId) -> Option<&mut Loading> {
        self.serving.iter_mut().chain(&mut self.coming).find(|loading| loading.id == *id)
    }

    pub(super) fn state(&self) -> ModelState {
        let on_its_way = match (&self.coming, &self.serving) {
            (Some(coming), _) => Some(coming),
            (None, Some(serving)) if serving.replicas.is_empty() => Some(serving),
            _ => None,
        };
        match (on_its_way, &self.trouble) {
            _ if self.waits_for_room => ModelState::Loading { percent: 0 },
            (Some(loading), _) => loading.state(),
            (None, Some(trouble)) => ModelState::Failed { reason: trouble.reason.clone() },
            (None, None) if self.is_serving() => ModelState::Ready,
            (None, None) if !self.leaving.is_empty() => ModelState::Draining,
            (None, None) => ModelState::Unloaded,
        }
    }

    /// Whether nothing is left of a model that was added at run time and is not wanted any more.
    pub(super) fn is_done(&self) -> bool {
        let gone = self.serving.is_none() && !self.is_loading() && self.leaving.is_empty();
        self.added && self.unwanted && gone
    }

    pub(super) fn answer(&mut self, answer: &Result<(), Refusal>) {
        for waiting in self.waiting.drain(..) {
            // It waited too long and is gone.
            let _gone = waiting.send(answer.clone());
        }
    }
}

impl Loading {
    pub(super) fn state(&self) -> ModelState {
        let percent = |progress: &LoadProgress| match progress {
            LoadProgress::Reading { percent } => *percent,
            LoadProgress::Warming => u8::MAX,
        };
        match self.progress.iter().map(percent).min() {
            Some(u8::MAX) => ModelState::Warming,
            slowest => ModelState::Loading { percent: slowest.unwrap_or(0).min(100) },
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.replicas.len() == self.progress.len()
    }
}
