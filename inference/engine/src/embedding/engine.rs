//! An embedding replica on a thread of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    EmbeddingCodec, EmbeddingInput, EmbeddingModel, EmbeddingOptions, EmbeddingReplica, EmbeddingRequest,
    PendingEmbeddings,
    metrics::EmbeddingMetrics,
    turns::{Batch, Ended, Job, Turns},
};
use crate::{
    EngineError, Lifeline, ReplicaInfo, ReplicaLoad, TokenId, lifeline::Life, load::Load, metrics::ReplicaMetrics,
    scheduler::MAX_FAILURES_IN_A_ROW,
};

/// Starts embedding engines.
pub struct EmbeddingEngine;

impl EmbeddingEngine {
    /// Starts a thread that owns `model` and embeds what the replica is asked.
    ///
    /// An error or a panic of the model fails the requests of that batch; the engine goes on. It ends, and tells every request so,
    /// when the model returns [`EngineError::Stopped`] or fails three steps in a row. Once the replica is dropped, the thread
    /// answers what it has taken on and ends; its [`Lifeline`] ends it sooner. Where the system refuses a thread, the replica is
    /// stopped from the beginning.
    pub fn start(
        model: Box<dyn EmbeddingModel>,
        codec: Arc<dyn EmbeddingCodec>,
        options: EmbeddingOptions,
    ) -> EmbeddingEngineReplica {
        let name = &codec.info().name;
        let load = Load::new(Arc::new(ReplicaMetrics::new(name)));
        let backlog = Arc::new(Backlog::default());
        let (inbox, jobs) = channel();
        let (lifeline, life) = Lifeline::new();
        let dimensions = model.dimensions();
        let thread = EngineThread {
            model,
            jobs,
            turns: Turns::default(),
            step_tokens: options.step_tokens,
            failures: 0,
            metrics: EmbeddingMetrics::new(name),
            backlog: backlog.clone(),
            life,
        };
        let spawned = thread::Builder::new().name(format!("embed {name}")).spawn(move || thread.run());
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the embedding engine");
        }
        EmbeddingEngineReplica { codec, dimensions, options, load, backlog, inbox, lifeline }
    }
}

/// What is to be computed and how long that takes, for those who are refused.
#[derive(Debug, Default)]
struct Backlog {
    tokens: AtomicUsize,
    /// Nanoseconds that a token of the last step took.
    token_cost: AtomicU64,
}

impl Backlog {
    /// When all that waits now is likely to be done.
    fn time_left(&self) -> Duration {
        let tokens = self.tokens.load(Ordering::Relaxed) as u64;
        Duration::from_nanos(tokens.saturating_mul(self.token_cost.load(Ordering::Relaxed)))
    }
}

/// An embedding engine's handle.
pub struct EmbeddingEngineReplica {
    codec: Arc<dyn EmbeddingCodec>,
    dimensions: usize,
    options: EmbeddingOptions,
    load: Arc<Load>,
    backlog: Arc<Backlog>,
    inbox: Sender<Job>,
    lifeline: Lifeline,
}

impl EmbeddingEngineReplica {
    /// Refuses what no step could compute, where it would take neighbours along.
    fn check(&self, texts: &[Vec<TokenId>]) -> Result<(), EngineError> {
        let all: usize = texts.iter().map(Vec::len).sum();
        if all > self.options.request_tokens {
            let most = self.options.request_tokens;
            return Err(EngineError::Texts(format!("the texts have {all} tokens, and a request may have {most}")));
        }
        if texts.is_empty() {
            return Err(EngineError::Texts("there are no texts".into()));
        }
        texts.iter().enumerate().try_for_each(|(number, tokens)| self.check_text(number, tokens))
    }

    fn check_text(&self, text: usize, tokens: &[TokenId]) -> Result<(), EngineError> {
        let (info, vocabulary) = (self.codec.info(), self.codec.vocabulary());
        if tokens.is_empty() {
            return Err(EngineError::Texts(format!("text {text} has no tokens")));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let known = format!("{} has the tokens 0 to {}", info.name, vocabulary - 1);
            return Err(EngineError::Texts(format!("text {text} has the token {token}, but {known}")));
        }
        if tokens.len() > info.context_tokens as usize {
            let (tokens, context) = (tokens.len(), info.context_tokens);
            return Err(EngineError::TextTooLong { text, tokens, context, model: info.name.clone() });
        }
        Ok(())
    }
}

impl EmbeddingReplica for EmbeddingEngineReplica {
    fn info(&self) -> &ReplicaInfo {
        self.codec.info()
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn prepare(&self, inputs: &[EmbeddingInput]) -> Result<Vec<Vec<TokenId>>, EngineError> {
        let tokens = |input: &EmbeddingInput| match input {
            EmbeddingInput::Text(text) => self.codec.encode(text),
            EmbeddingInput::Tokens(tokens) => Ok(tokens.clone()),
        };
        let texts = inputs.iter().map(tokens).collect::<Result<Vec<_>, _>>()?;
        self.check(&texts)?;
        Ok(texts)
    }

    /// # Errors
    ///
    /// As in [`EmbeddingReplica::submit`], and as in [`EmbeddingReplica::prepare`] for texts that it did not prepare.
    fn submit(&self, request: EmbeddingRequest) -> Result<PendingEmbeddings, EngineError> {
        self.check(&request.texts)?;
        if self.lifeline.is_ended() {
            return Err(EngineError::Stopped);
        }
        let queue = self.options.queue.max(1);
        let full = || EngineError::queue_full(self.backlog.time_left() / queue as u32);
        let place = self.load.wait(queue).ok_or_else(full)?;
        let tokens: usize = request.texts.iter().map(Vec::len).sum();
        let (reply, pending) = oneshot::channel();
        self.backlog.tokens.fetch_add(tokens, Ordering::Relaxed);
        let job = Job { request, reply, submitted: Instant::now(), place };
        self.inbox.send(job).map_err(|_| EngineError::Stopped)?;
        Ok(pending)
    }

    fn load(&self) -> ReplicaLoad {
        self.load.now()
    }

    fn lifeline(&self) -> Lifeline {
        self.lifeline.clone()
    }
}

/// What the thread owns. Dropping it, however the thread ends, drops all replies and says that the engine has stopped.
struct EngineThread {
    model: Box<dyn EmbeddingModel>,
    /// Bounded by the places that jobs hold.
    jobs: Receiver<Job>,
    turns: Turns,
    step_tokens: usize,
    /// Steps in a row that failed.
    failures: u32,
    metrics: EmbeddingMetrics,
    backlog: Arc<Backlog>,
    life: Life,
}

impl EngineThread {
    fn run(mut self) {
        let (mut vectors, mut open) = (Vec::new(), true);
        loop {
            if self.turns.is_empty() {
                if !open {
                    return;
                }
                match self.jobs.recv() {
                    Ok(job) => self.turns.push(job),
                    Err(_) => return,
                }
            }
            open &= self.take_jobs();
            if self.life.is_cut() || self.step(&mut vectors).is_err() {
                self.take_jobs();
                let (metrics, backlog) = (&self.metrics, &self.backlog);
                return self.turns.end_all(&EngineError::Stopped, |how, job| note(metrics, backlog, how, job));
            }
        }
    }

    /// Takes what was submitted since the last step. Whether more can come.
    fn take_jobs(&mut self) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.turns.push(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Computes one batch. An error ends the engine.
    fn step(&mut self, vectors: &mut Vec<f32>) -> Result<(), EngineError> {
        let (metrics, backlog) = (&self.metrics, &self.backlog);
        let ended = |how: Ended, job: &Job| note(metrics, backlog, how, job);
        let begun = Instant::now();
        self.turns.drop_unwanted(begun, ended);
        let batch = self.turns.next_batch(self.step_tokens);
        let texts = self.turns.texts(&batch);
        if texts.is_empty() {
            return Ok(());
        }
        let (count, tokens) = (texts.len(), texts.iter().map(|text| text.len()).sum::<usize>());
        match compute(&mut *self.model, &texts, vectors) {
            Ok(()) => {
                self.failures = 0;
                metrics.computed(count, tokens);
                let cost = begun.elapsed().as_nanos() as u64 / tokens.max(1) as u64;
                backlog.token_cost.store(cost, Ordering::Relaxed);
                self.turns.computed(&batch, vectors, self.model.dimensions(), ended);
                Ok(())
            }
            Err(error) => self.failed(&batch, error),
        }
    }

    fn failed(&mut self, batch: &Batch, error: EngineError) -> Result<(), EngineError> {
        self.failures += 1;
        tracing::error!(%error, failures = self.failures, "the embedding model failed");
        let (metrics, backlog) = (&self.metrics, &self.backlog);
        self.turns.failed(batch, &error, |how, job| note(metrics, backlog, how, job));
        if error == EngineError::Stopped || self.failures == MAX_FAILURES_IN_A_ROW { Err(error) } else { Ok(()) }
    }
}

fn note(metrics: &EmbeddingMetrics, backlog: &Backlog, how: Ended, job: &Job) {
    let tokens: usize = job.request.texts.iter().map(Vec::len).sum();
    backlog.tokens.fetch_sub(tokens, Ordering::Relaxed);
    metrics.ended(how, job.submitted.elapsed());
}

/// Runs the model, whose panic is an error of this batch alone.
fn compute(model: &mut dyn EmbeddingModel, texts: &[&[TokenId]], vectors: &mut Vec<f32>) -> Result<(), EngineError> {
    let computed = catch_unwind(AssertUnwindSafe(|| model.embed(texts, vectors)));
    computed.unwrap_or_else(|_| Err(EngineError::ModelFailed("it panicked".into())))?;
    let (found, expected) = (vectors.len(), texts.len() * model.dimensions());
    if found == expected {
        return Ok(());
    }
    Err(EngineError::ModelFailed(format!("it computed {found} values, not {expected}")))
}

#[cfg(test)]
mod tests;
