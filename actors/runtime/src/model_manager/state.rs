//! What the manager knows of each model, and what it does about it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parlance_inference_gateway::{Demand, ModelState};
use ractor::{Actor, ActorCell, ActorRef, SpawnErr};
use tokio::sync::{oneshot, watch};

use super::{
    Internal, LoadingId, ManagerHandle, ModelManagerArguments, ModelManagerMessage, ModelMemory, ModelRefusal,
    ModelReport, ModelSpec, ModelsReport, WorkerNews,
    entry::{Entry, Loading, Trouble},
    memory::{Holding, make_room},
};
use crate::{
    Refusal,
    model_worker::{LoadProgress, ModelWorker, ModelWorkerArguments},
    models::Models,
    supervisor::{Supervisor, child, one_for_one},
};

/// Requests that wait for one model at most.
const MAX_WAITING: usize = 1_024;

/// A model that is loaded on demand and could not be is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(crate) struct ModelManagerState {
    myself: ActorRef<ModelManagerMessage>,
    memory: ModelMemory,
    drain: Duration,
    models: Models,
    entries: BTreeMap<String, Entry>,
    /// Loadings are numbered over all models.
    loadings: u64,
}

impl ModelManagerState {
    /// Makes all models known and begins to load those that are wanted from the start.
    pub(super) async fn start(myself: ActorRef<ModelManagerMessage>, arguments: ModelManagerArguments) -> Self {
        let ModelManagerArguments { specs, memory, drain, models } = arguments;
        let entries = specs.into_iter().map(|spec| (spec.name.clone(), Entry::new(spec, false))).collect();
        let mut state = Self { myself, memory, drain, models, entries, loadings: 0 };
        // An earlier incarnation took its loadings along, and what was added to it.
        let registry = state.models.registry();
        for listing in registry.list().iter().filter(|listing| !state.entries.contains_key(&listing.name)) {
            registry.remove(&listing.name);
        }
        let mut wanted = Vec::new();
        for (name, entry) in &state.entries {
            let at_start = entry.spec.preload || entry.spec.pinned;
            // A turn that is taken up again meanwhile must see that the model comes.
            registry.set_demand(name, if at_start { Demand::Required } else { Demand::OnDemand });
            registry.clear(name, if at_start { ModelState::Loading { percent: 0 } } else { ModelState::Unloaded });
            wanted.extend(at_start.then(|| name.clone()));
        }
        // Pinned ones first: their memory is kept anyway.
        wanted.sort_by_key(|name| !state.entries[name].spec.pinned);
        for name in wanted {
            if let Err(refused) = state.try_load(&name).await {
                tracing::error!(model = name, reason = %refused, "model cannot be loaded");
                state.note_trouble(&name, &refused.to_string());
                state.show(&name);
            }
        }
        state
    }

    pub(super) async fn on_load(
        &mut self,
        name: &str,
        spec: Option<ModelSpec>,
        reload: bool,
    ) -> Result<(), ModelRefusal> {
        match (self.entries.get(name), &spec) {
            (None, None) => return Err(self.not_found(name)),
            (Some(entry), _) if entry.is_loading() => {
                return if reload { Err(ModelRefusal::Busy(name.to_owned())) } else { Ok(()) };
            }
            (Some(entry), _) if entry.is_serving() && !reload => return Ok(()),
            _ => {}
        }
        let before = self.entries.get(name).map(|entry| entry.spec.clone());
        match (self.entries.get_mut(name), spec) {
            (Some(entry), Some(spec)) => entry.spec = spec,
            (None, Some(spec)) => drop(self.entries.insert(name.to_owned(), Entry::new(spec, true))),
            (_, None) => {}
        }
        let decided = self.try_load(name).await;
        if decided.is_err() {
            match (self.entries.get_mut(name), before) {
                (Some(entry), Some(before)) => entry.spec = before,
                _ => drop(self.entries.remove(name)),
            }
        }
        decided
    }

    pub(super) fn on_unload(&mut self, name: &str, deadline: Duration) -> Result<(), ModelRefusal> {
        let Some(entry) = self.entries.get(name) else { return Err(self.not_found(name)) };
        if entry.spec.pinned {
            return Err(ModelRefusal::Pinned(name.to_owned()));
        }
        tracing::info!(model = name, deadline_s = deadline.as_secs(), "unloading the model");
        let demand = if entry.spec.preload { Demand::Optional } else { Demand::OnDemand };
        self.models.registry().set_demand(name, demand);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.unwanted = true;
        }
        self.retire(name, deadline);
        self.forget_if_done(name);
        Ok(())
    }

    /// Without `reply`, whoever asks looks for the model by himself.
    pub(super) async fn on_demand(&mut self, name: &str, reply: Option<oneshot::Sender<Result<(), Refusal>>>) {
        let answer = self.decide_on_demand(name).await;
        let Some(reply) = reply else { return };
        let entry = self.entries.get_mut(name).filter(|entry| answer.is_ok() && !entry.is_serving());
        let Some(entry) = entry else {
            let _gone = reply.send(answer);
            return;
        };
        entry.waiting.retain(|waiting| !waiting.is_closed());
        if entry.waiting.len() < MAX_WAITING {
            entry.waiting.push(reply);
        } else {
            let _gone = reply.send(Err(not_ready(name, "too many requests wait for it")));
        }
    }

    async fn decide_on_demand(&mut self, name: &str) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get(name) else { return Ok(()) };
        if entry.is_serving() || entry.is_loading() {
            return Ok(());
        }
        if let Some(trouble) = entry.trouble.as_ref().filter(|trouble| trouble.at.elapsed() < RETRY_AFTER) {
            return Err(not_ready(name, &trouble.reason));
        }
        self.try_load(name).await.map_err(|refused| not_ready(name, &refused.to_string()))
    }

    pub(super) fn on_report(&self) -> ModelsReport {
        let registry = self.models.registry();
        let report = |(name, entry): (&String, &Entry)| {
            Some(ModelReport {
                listing: registry.listing(name)?,
                replicas: entry.spec.replicas,
                bytes: entry.spec.bytes(),
                held_bytes: entry.in_use(),
                pinned: entry.spec.pinned,
                preload: entry.spec.preload,
                draining: entry.leaving.len(),
            })
        };
        ModelsReport {
            budget_bytes: self.memory.budget_bytes,
            held_bytes: self.holdings().iter().map(Holding::bytes).sum(),
            models: self.entries.iter().filter_map(report).collect(),
        }
    }

    pub(super) fn on_worker(&mut self, id: &LoadingId, number: usize, news: WorkerNews) {
        let name = &*id.model;
        // News of a loading that was given up: what it brings ends when it is dropped.
        let Some(loading) = self.entries.get_mut(name).and_then(|entry| entry.loading(id)) else { return };
        match news {
            WorkerNews::Progressed(progress) => loading.progress[number] = progress,
            WorkerNews::Loaded(Ok(replica)) => {
                loading.replicas.insert(number, replica);
                return self.on_replica(id);
            }
            WorkerNews::Loaded(Err(reason)) => {
                tracing::error!(model = name, reason, "model cannot be loaded");
                return self.on_trouble(id, reason);
            }
            WorkerNews::Lost => {
                let replica = loading.replicas.remove(&number);
                loading.progress[number] = LoadProgress::Reading { percent: 0 };
                if let Some(replica) = replica {
                    self.models.registry().withdraw(name, &replica, "its engine ended");
                }
            }
        }
        self.show(name);
    }

    /// Publishes what `id` has, or lets it take over.
    fn on_replica(&mut self, id: &LoadingId) {
        let name = &*id.model;
        let Some(entry) = self.entries.get_mut(name) else { return };
        if entry.coming.as_ref().is_some_and(|coming| coming.id == *id) {
            if entry.coming.as_ref().is_some_and(|coming| !coming.is_whole()) {
                return;
            }
            let replaced = std::mem::replace(&mut entry.serving, entry.coming.take());
            self.publish(name);
            replaced.into_iter().for_each(|replaced| self.leave(replaced, self.drain));
            return;
        }
        self.publish(name);
    }

    fn publish(&mut self, name: &str) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Some(serving) = &entry.serving else { return };
        let replicas: Vec<_> = serving.replicas.values().cloned().collect();
        let digest = replicas.first().map(|replica| replica.info().digest.clone());
        tracing::info!(model = name, digest, replicas = replicas.len(), "model is ready");
        entry.trouble = None;
        self.models.registry().publish(name, replicas);
        entry.answer(&Ok(()));
        self.show(name);
    }

    /// The loading `id` cannot go on. What serves goes on serving.
    fn on_trouble(&mut self, id: &LoadingId, reason: String) {
        let name = &*id.model;
        let Some(entry) = self.entries.get_mut(name) else { return };
        let failed = match &entry.coming {
            Some(coming) if coming.id == *id => entry.coming.take(),
            _ => entry.serving.take_if(|serving| serving.replicas.is_empty()),
        };
        self.note_trouble(name, &reason);
        failed.into_iter().for_each(|failed| self.leave(failed, Duration::ZERO));
        self.show(name);
    }

    fn note_trouble(&mut self, name: &str, reason: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.trouble = Some(Trouble { reason: reason.to_owned(), at: Instant::now() });
            entry.answer(&Err(not_ready(name, reason)));
        }
    }

    /// A loading's supervisor gave up: its replicas ended again and again.
    pub(super) fn on_loading_failed(&mut self, cell: &ActorCell, reason: &str) {
        let is_it = |loading: &Loading| loading.supervisor.get_id() == cell.get_id();
        let found = self.entries.values_mut().find_map(|entry| {
            let failed = entry.serving.take_if(|loading| is_it(loading));
            failed.or_else(|| entry.coming.take_if(|loading| is_it(loading)))
        });
        let Some(failed) = found else { return };
        let name = failed.id.model.clone();
        tracing::error!(model = &*name, reason, "model failed too often and is given up");
        self.note_trouble(&name, reason);
        if let Some(entry) = self.entries.get_mut(&*name) {
            // What was to take over serves with what it has.
            entry.serving = entry.serving.take().or_else(|| entry.coming.take());
        }
        match self.entries.get(&*name).is_some_and(Entry::is_serving) {
            true => self.publish(&name),
            false => self.models.registry().clear(&name, ModelState::Unloaded),
        }
        self.leave(failed, Duration::ZERO);
        self.show(&name);
    }

    /// Nothing of a loading is left: what waited for its memory may begin.
    pub(super) async fn on_left(&mut self, id: &LoadingId) {
        let name = &*id.model;
        if let Some(entry) = self.entries.get_mut(name) {
            entry.leaving.remove(&id.number);
            self.show(name);
            self.forget_if_done(name);
        }
        let waiting: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.waits_for_room).map(|(name, _)| name.clone()).collect();
        for name in waiting {
            if self.fits_now(&name) {
                self.begin_or_fail(&name).await;
            }
        }
    }

    /// Begins to load a model, or lets it wait for idle ones that make room for it.
    async fn try_load(&mut self, name: &str) -> Result<(), ModelRefusal> {
        let Some(entry) = self.entries.get(name) else { return Err(self.not_found(name)) };
        let leaving = make_room(self.memory, &self.holdings(), name, entry.spec.bytes())?;
        for evicted in &leaving {
            tracing::info!(model = evicted, by = name, "unloading an idle model to make room");
            // The next request for it has it loaded again.
            self.models.registry().set_demand(evicted, Demand::OnDemand);
            self.retire(evicted, self.drain);
        }
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        if !leaving.is_empty() {
            entry.waits_for_room = true;
            self.show(name);
            return Ok(());
        }
        self.begin_or_fail(name).await;
        Ok(())
    }

    async fn begin_or_fail(&mut self, name: &str) {
        if let Err(error) = self.begin(name).await {
            // Nothing but a process at its end has no place for an actor.
            tracing::error!(model = name, %error, "no actor for the model");
        }
        self.show(name);
    }

    async fn begin(&mut self, name: &str) -> Result<(), SpawnErr> {
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        entry.waits_for_room = false;
        entry.unwanted = false;
        entry.trouble = None;
        self.loadings += 1;
        let id = LoadingId { model: name.into(), number: self.loadings };
        let (sender, busy) = watch::channel(());
        let sender = Arc::new(sender);
        let workers = (0..entry.spec.replicas).map(|number| ModelWorkerArguments {
            load: entry.spec.load.clone(),
            loading: id.clone(),
            number,
            busy: sender.clone(),
            manager: ManagerHandle(self.myself.clone()),
        });
        let children = workers.map(|arguments| child("model_worker", ModelWorker, arguments)).collect();
        let arguments = one_for_one(children);
        let (supervisor, _running) =
            Supervisor::spawn_linked(None, Supervisor, arguments, self.myself.get_cell()).await?;
        let loading = Loading {
            id,
            bytes: entry.spec.bytes(),
            supervisor: supervisor.get_cell(),
            replicas: BTreeMap::new(),
            progress: vec![LoadProgress::Reading { percent: 0 }; entry.spec.replicas],
            busy,
        };
        if entry.serving.is_some() {
            entry.coming = Some(loading);
        } else {
            entry.serving = Some(loading);
        }
        Ok(())
    }

    /// Takes everything of a model out of service.
    fn retire(&mut self, name: &str, deadline: Duration) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.waits_for_room = false;
        entry.trouble = None;
        let leaving: Vec<_> = entry.serving.take().into_iter().chain(entry.coming.take()).collect();
        entry.answer(&Err(Refusal::ModelUnloaded { model: name.to_owned() }));
        self.models.registry().clear(name, ModelState::Draining);
        leaving.into_iter().for_each(|loading| self.leave(loading, deadline));
        self.show(name);
    }

    /// Lets a loading, of which the registry knows nothing any more, finish what it has taken on.
    fn leave(&mut self, loading: Loading, deadline: Duration) {
        let Loading { id, bytes, supervisor, replicas, busy, .. } = loading;
        // Before the engines: one that ends behind this is no failure.
        supervisor.stop(Some("its model leaves".into()));
        if let Some(entry) = self.entries.get_mut(&*id.model) {
            entry.leaving.insert(id.number, bytes);
        }
        let lifelines: Vec<_> = replicas.values().map(|replica| replica.lifeline()).collect();
        drop(replicas);
        #[cfg(feature = "planted-bugs")]
        if crate::planted::cuts_replaced_models() {
            lifelines.iter().for_each(parlance_inference_engine::Lifeline::cut);
        }
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let ended = async {
                for lifeline in &lifelines {
                    lifeline.ended().await
                }
            };
            if tokio::time::timeout(deadline, ended).await.is_err() {
                tracing::warn!(model = &*id.model, "ending what still runs on the model");
                for lifeline in &lifelines {
                    lifeline.cut();
                    lifeline.ended().await;
                }
            }
            loaded_or_given_up(busy).await;
            let _stopped = myself.cast(ModelManagerMessage::Internal(Internal::Left(id)));
        });
    }

    fn forget_if_done(&mut self, name: &str) {
        if self.entries.get(name).is_some_and(Entry::is_done) {
            self.entries.remove(name);
            self.models.registry().remove(name);
        }
    }

    fn show(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            self.models.registry().set_state(name, entry.state());
        }
    }

    fn fits_now(&self, name: &str) -> bool {
        let mut holdings = self.holdings();
        let needed = self.entries[name].spec.bytes();
        for holding in holdings.iter_mut().filter(|holding| holding.name == name) {
            holding.in_use -= needed;
        }
        let as_it_is = ModelMemory { evict_idle: false, ..self.memory };
        make_room(as_it_is, &holdings, name, needed).is_ok()
    }

    fn holdings(&self) -> Vec<Holding> {
        let registry = self.models.registry();
        let holding = |(name, entry): (&String, &Entry)| {
            let listing = registry.listing(name);
            let idle = listing.filter(|listing| {
                let asked = listing.load.running + listing.load.waiting;
                asked == 0 && !entry.spec.pinned && entry.is_serving() && !entry.is_loading()
            });
            Holding {
                name: name.clone(),
                in_use: entry.in_use(),
                kept: if entry.spec.pinned { entry.spec.bytes() } else { 0 },
                idle: idle.map(|listing| listing.unused_for),
            }
        };
        self.entries.iter().map(holding).collect()
    }

    fn not_found(&self, name: &str) -> ModelRefusal {
        let known = self.entries.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        ModelRefusal::NotFound { name: name.to_owned(), known }
    }
}

/// Waits until no thread loads for a loading any more.
async fn loaded_or_given_up(mut busy: watch::Receiver<()>) {
    while busy.changed().await.is_ok() {}
}

fn not_ready(model: &str, reason: &str) -> Refusal {
    Refusal::ModelNotReady { model: model.to_owned(), reason: reason.to_owned() }
}
