//! The requests of an embedding engine and whose turn it is: tenants in turn, within a tenant its requests in turn, text by text. So a
//! request of two thousand texts delays another tenant's, and its own tenant's next one, by a batch and not by all of itself.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use tokio::sync::oneshot;

use super::{EmbeddingRequest, Embeddings};
use crate::{EngineError, TokenId, load::WaitingGuard};

/// The bounds of an embedding engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingOptions {
    /// Requests that run or wait at most.
    pub queue: usize,
    /// Tokens of one request at most, over all its texts.
    pub request_tokens: usize,
    /// Tokens of one step at most; one text may have more. Bounds how late a cancellation is seen.
    pub step_tokens: usize,
}

impl Default for EmbeddingOptions {
    fn default() -> Self {
        Self { queue: 256, request_tokens: 300_000, step_tokens: 512 }
    }
}

/// A request on its way.
pub(super) struct Job {
    pub(super) request: EmbeddingRequest,
    pub(super) reply: oneshot::Sender<Result<Embeddings, EngineError>>,
    pub(super) submitted: Instant,
    pub(super) place: WaitingGuard,
}

/// A request, and how far it is.
struct Open {
    job: Job,
    /// The first text that no batch has taken.
    next: usize,
    /// The vectors of the texts before it, once their batch is done.
    values: Vec<f32>,
}

/// Names a request for as long as it is open.
type JobId = u64;

/// The texts of one step, each by its request and its number there.
pub(super) struct Batch(Vec<(JobId, usize)>);

/// Why a request ended, for whoever counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Cancelled,
    Failed,
}

/// All open requests.
///
/// Invariant: a request is in `turns`, once and under its tenant, as long as it has texts that no batch has taken.
#[derive(Default)]
pub(super) struct Turns {
    open: HashMap<JobId, Open>,
    turns: VecDeque<(String, VecDeque<JobId>)>,
    jobs: JobId,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn push(&mut self, job: Job) {
        let id = self.jobs;
        self.jobs += 1;
        match self.turns.iter_mut().find(|(tenant, _)| *tenant == job.request.tenant) {
            Some((_, jobs)) => jobs.push_back(id),
            None => self.turns.push_back((job.request.tenant.clone(), VecDeque::from([id]))),
        }
        self.open.insert(id, Open { job, next: 0, values: Vec::new() });
    }

    /// Ends what nobody waits for any more, and what is out of time. `ended` hears of each.
    pub(super) fn drop_unwanted(&mut self, now: Instant, mut ended: impl FnMut(Ended, &Job)) {
        let late = |open: &Open| open.job.request.deadline.is_some_and(|deadline| deadline <= now);
        let unwanted = |open: &Open| open.job.reply.is_closed() || late(open);
        let ids: Vec<JobId> = self.open.iter().filter(|(_, open)| unwanted(open)).map(|(id, _)| *id).collect();
        for id in ids {
            let cancelled = self.open[&id].job.reply.is_closed();
            let how = if cancelled { Ended::Cancelled } else { Ended::Failed };
            self.end(id, Err(EngineError::DeadlineExceeded), |job| ended(how, job));
        }
    }

    /// The texts of the next step: in turn, as long as they fit into `tokens`; at least one where there is any.
    pub(super) fn next_batch(&mut self, tokens: usize) -> Batch {
        let (mut batch, mut left) = (Vec::new(), tokens);
        while let Some((tenant, mut jobs)) = self.turns.pop_front() {
            let Some(id) = jobs.pop_front() else { continue };
            let Some(open) = self.open.get_mut(&id) else { continue };
            let texts = &open.job.request.texts;
            let length = texts[open.next].len();
            if length > left && !batch.is_empty() {
                jobs.push_front(id);
                self.turns.push_front((tenant, jobs));
                break;
            }
            batch.push((id, open.next));
            left = left.saturating_sub(length);
            open.next += 1;
            if open.next < texts.len() {
                jobs.push_back(id);
            }
            if !jobs.is_empty() {
                self.turns.push_back((tenant, jobs));
            }
        }
        Batch(batch)
    }

    /// The tokens of a batch, text by text.
    pub(super) fn texts<'a>(&'a self, batch: &Batch) -> Vec<&'a [TokenId]> {
        batch.0.iter().map(|(id, text)| &*self.open[id].job.request.texts[*text]).collect()
    }

    /// Takes the vectors of a batch in, and ends the requests that are complete, or have a vector that is none.
    pub(super) fn computed(
        &mut self,
        batch: &Batch,
        vectors: &[f32],
        dimensions: usize,
        mut ended: impl FnMut(Ended, &Job),
    ) {
        for (&(id, text), vector) in batch.0.iter().zip(vectors.chunks_exact(dimensions)) {
            // An earlier vector of the same batch may have ended it.
            let Some(open) = self.open.get_mut(&id) else { continue };
            if vector.iter().any(|value| !value.is_finite()) {
                let error = EngineError::ModelFailed("a vector holds what is not a finite number".into());
                self.end(id, Err(error), |job| ended(Ended::Failed, job));
                continue;
            }
            open.values.extend_from_slice(vector);
            if text + 1 == open.job.request.texts.len() {
                let values = std::mem::take(&mut open.values);
                self.end(id, Ok(Embeddings { values, dimensions }), |job| ended(Ended::Done, job));
            }
        }
    }

    /// Ends the requests of a batch.
    pub(super) fn failed(&mut self, batch: &Batch, error: &EngineError, mut ended: impl FnMut(Ended, &Job)) {
        for (id, _) in &batch.0 {
            self.end(*id, Err(error.clone()), |job| ended(Ended::Failed, job));
        }
    }

    /// Ends all requests.
    pub(super) fn end_all(&mut self, error: &EngineError, mut ended: impl FnMut(Ended, &Job)) {
        let ids: Vec<JobId> = self.open.keys().copied().collect();
        for id in ids {
            self.end(id, Err(error.clone()), |job| ended(Ended::Failed, job));
        }
    }

    fn end(&mut self, id: JobId, result: Result<Embeddings, EngineError>, ended: impl FnOnce(&Job)) {
        let Some(Open { job, .. }) = self.open.remove(&id) else { return };
        for (_, jobs) in &mut self.turns {
            jobs.retain(|job| *job != id);
        }
        self.turns.retain(|(_, jobs)| !jobs.is_empty());
        ended(&job);
        // A caller that is gone does not want it.
        let Job { reply, place, .. } = job;
        drop(place);
        let _gone = reply.send(result);
    }
}

#[cfg(test)]
mod tests;
