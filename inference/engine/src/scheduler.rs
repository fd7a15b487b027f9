//! Continuous batching: which tokens of which requests the model computes next, and what becomes of the results.
//!
//! ```text
//!            admit: a lane, KV for prompt and reply                    a stop, a limit, a cancellation, an error
//! queued ───────────────────────────────────────────▶ prefill ─▶ decode ───────────────────────────────────────▶ ended
//!    └── cancelled or expired, told without running           (its blocks stay for whoever begins alike) ──────────┘
//! ```
//!
//! Every step computes one token of each decoding request and a chunk of prompt, so that a long prompt never stalls running
//! streams. A reply that repeats what was said is guessed ahead, and the guess checked in one step: the tokens are those that would
//! have come one by one. KV memory is promised at admission, for the prompt and the whole reply: nothing is preempted and nothing runs out.
//! No thread and no clock here: the caller passes the model and the time in, so that tests run millions of steps.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    BlockCopy, EngineError, EngineOptions, GenerateRequest, LaneInput, Speculation, TextCodec, TokenModel,
    admission::{Admission, Progress},
    blocks::{Admitted, BlockPool, Wanted},
    cost::{StepCosts, Work},
    load::Load,
    lookup::Lookup,
    metrics::ReplicaMetrics,
    queue::{FairQueue, Job},
    reply::{Limits, Next, Reply},
    running::{Chooser, NOT_FINITE, Running, follow},
    sampling::{Occurrences, Sampler},
    shape::ModelShape,
    speculation::{RowCost, depths},
};

/// A model that fails this many steps in a row is given up, so that its supervisor loads it anew.
pub(crate) const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// Chunks of one step while the prompt of a tenant that has less than its share waits for them: it pays for the streams of the others.
const CHUNKS_OF_THE_OWED: usize = 2;
/// What the requests of a batch are told in which the model gave up.
const GAVE_UP: &str = "it can compute no more";
/// A prompt is dropped unrun if its deadline came even if this part of the measured costs were all of them.
const CERTAINLY: f64 = 0.5;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The model computed something.
    Worked,
    /// There is nothing to do until the next request comes.
    Idle,
    /// The model can serve no more; every request has been told.
    Dead,
}

/// The requests of one replica.
///
/// Invariant: what `pool` has given out is held by `running`.
pub(crate) struct Scheduler {
    codec: Arc<dyn TextCodec>,
    options: EngineOptions,
    metrics: Arc<ReplicaMetrics>,
    load: Arc<Load>,
    admission: Arc<Admission>,
    shape: ModelShape,
    queue: FairQueue,
    /// Tenants that share the lanes in this step.
    contenders: usize,
    pool: BlockPool,
    /// What the model is to copy before its next step.
    copies: Vec<BlockCopy>,
    /// In order of admission.
    running: Vec<Running>,
    sampler: Sampler,
    logits: Vec<f32>,
    failures: u32,
    costs: StepCosts,
    /// Of steps that only decode.
    decode_cost: RowCost,
}

impl Scheduler {
    pub(crate) fn new(
        shape: ModelShape,
        codec: Arc<dyn TextCodec>,
        options: EngineOptions,
        metrics: Arc<ReplicaMetrics>,
        load: Arc<Load>,
        admission: Arc<Admission>,
    ) -> Self {
        Self {
            codec,
            options,
            metrics,
            load,
            admission,
            shape,
            queue: FairQueue::new(shape.lanes, shape.context_tokens),
            contenders: 0,
            pool: BlockPool::new(shape.pool(&options)),
            copies: Vec::new(),
            running: Vec::with_capacity(shape.lanes),
            sampler: Sampler::default(),
            logits: Vec::new(),
            failures: 0,
            costs: options.costs,
            decode_cost: RowCost::default(),
        }
    }

    /// Queues a request. Its prompt is known to fit the context and to hold tokens of the vocabulary only.
    pub(crate) fn submit(&mut self, job: Job) {
        self.queue.push(job);
    }

    /// One step: ends what is cancelled or late, admits what fits, computes, and hands out the results.
    pub(crate) fn step(&mut self, model: &mut dyn TokenModel, clock: impl Fn() -> Instant) -> Step {
        let begun = clock();
        self.end_unwanted(begun);
        self.admit(begun);
        self.note_progress();
        if self.running.is_empty() {
            return Step::Idle;
        }
        self.plan();
        let work = self.work();
        let outcome = self.compute(model);
        match outcome {
            Ok(()) => {
                self.apply(clock());
                self.learn(work, clock() - begun);
            }
            Err(error) => self.fail_batch(error),
        }
        self.retire();
        if self.failures < MAX_FAILURES_IN_A_ROW {
            return Step::Worked;
        }
        self.end_all();
        Step::Dead
    }

    /// Ends what nobody wants any more, queued or running.
    fn end_unwanted(&mut self, now: Instant) {
        let late = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        for job in self.queue.take(|job| job.cancel.is_cancelled() || late(job.request.deadline)) {
            let mut reply = self.reply(job).0;
            if reply.is_cancelled() {
                reply.abandon();
            } else {
                reply.fail(EngineError::DeadlineExceeded);
            }
        }
        for running in &mut self.running {
            if running.reply.is_cancelled() {
                running.reply.abandon();
            } else if late(running.deadline) {
                running.reply.fail(EngineError::DeadlineExceeded);
            }
        }
        self.retire();
    }

    fn admit(&mut self, now: Instant) {
        self.contenders = self.queue.take_stock(now);
        while let Some(job) = self
            .queue
            .pop_if(self.shape.lanes - self.running.len(), |request| self.pool.has_room(wanted(request, &self.shape)))
        {
            self.start(job, now);
        }
        self.metrics.kv_usage.set(self.pool.usage());
    }

    fn start(&mut self, job: Job, now: Instant) {
        let (mut reply, mut request) = self.reply(job);
        self.repeat(&mut reply, &mut request, now);
        if reply.is_ended() {
            return self.queue.ended(&request.tenant);
        }
        let prompt = request.prompt.tokens.len();
        let tokens = [&request.prompt.tokens[..], &request.forced].concat();
        let positions = tokens.len() + reply.room() as usize;
        let wanted = Wanted { tenant: &request.tenant, tokens: &tokens, positions };
        let Some(Admitted { sequence, reused, copy }) = self.pool.admit(wanted) else {
            debug_assert!(false, "admission without room");
            self.queue.ended(&request.tenant);
            return reply.fail(EngineError::Stopped);
        };
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(now).as_secs_f64());
        if left.is_some_and(|left| left < self.costs.of(1.0, 1, tokens.len() - reused) * CERTAINLY) {
            self.pool.release(sequence, &[]);
            self.queue.ended(&request.tenant);
            return reply.fail(EngineError::DeadlineExceeded);
        }
        self.copies.extend(copy);
        reply.begin(reused.min(prompt) as u32);
        self.queue.charge(&request.tenant, tokens.len() - reused, 0);
        let mut seen = Occurrences::new(&request.sampling, &request.prompt.tokens);
        request.forced.iter().for_each(|&id| seen.add(id));
        let lookup = (self.options.speculation != Speculation::Off).then(|| Lookup::behind(&tokens));
        self.running.push(Running {
            sequence,
            tenant: request.tenant,
            sampling: request.sampling,
            logprobs: request.logprobs,
            grammar: request.grammar,
            seen,
            tokens,
            computed: reused,
            planned: 0,
            lookup,
            guess: Vec::new(),
            reply,
            deadline: request.deadline,
            _guard: self.load.run(),
        });
    }

    /// Begins the reply with what an earlier attempt recorded of it.
    fn repeat(&self, reply: &mut Reply, request: &mut GenerateRequest, now: Instant) {
        match follow(request.grammar.as_mut(), &request.forced, &*self.codec) {
            Err(error) => reply.fail(error),
            Ok(is_last) if !request.forced.is_empty() || reply.room() == 0 => {
                reply.accept(Next { tokens: &request.forced, logprob: None, is_last }, &*self.codec, now);
            }
            Ok(_) => {}
        }
    }

    /// The reply to a job that leaves the queue, and what is left of its request.
    fn reply(&self, job: Job) -> (Reply, GenerateRequest) {
        let mut request = job.request;
        let prompt = request.prompt.tokens.len();
        let room = self.shape.context_tokens.saturating_sub(prompt);
        let limits = Limits {
            prompt: prompt as u32,
            max_tokens: request.max_tokens.min(room as u32),
            stop: std::mem::take(&mut request.stop),
        };
        (Reply::new(job.sink.take(), job.cancel, self.metrics.clone(), limits, job.submitted), request)
    }

    /// Tells submitters what is in hand.
    fn note_progress(&self) {
        let progress = self.running.iter().map(|running| Progress {
            tenant: &running.tenant,
            prefill: running.pending() - 1,
            said: running.reply.len(),
            room: running.reply.room(),
        });
        self.admission.note(progress, self.contenders, &self.costs);
    }

    /// One token of each decoding request, and the rest of the budget to prompts: all of it while nobody would be stalled, a chunk while
    /// others decode, and a chunk for each prompt where those are all one tenant's, who pays with its own streams. The prompts of tenants that are behind go first, each tenant's in order of admission.
    fn plan(&mut self) {
        self.catch_up();
        let decoding = self.running.iter().filter(|running| running.decodes()).count();
        let mut prompts = Vec::new();
        for running in &mut self.running {
            running.planned = usize::from(running.decodes());
            if running.planned == 0 {
                prompts.push((self.queue.rank(&running.tenant), running));
            }
        }
        // Stable: of equals, whoever was admitted first.
        prompts.sort_by_key(|(rank, _)| *rank);
        let is_owed = prompts.first().is_some_and(|(rank, _)| rank.is_owed());
        let chunks = match self.contenders {
            0 | 1 => prompts.len(),
            _ if is_owed => CHUNKS_OF_THE_OWED,
            _ => 1,
        };
        let chunk = self.options.prefill_chunk.max(1).saturating_mul(chunks);
        let rest = self.options.step_tokens.saturating_sub(decoding).max(1);
        let mut prefill = if decoding > 0 { rest.min(chunk) } else { rest };
        for (_, running) in prompts {
            running.planned = running.chunk(prefill, self.shape.block_tokens);
            prefill -= running.planned;
        }
        self.guess();
        for running in &mut self.running {
            self.pool.extend(&mut running.sequence, running.computed + running.planned);
        }
        debug_assert!(self.running.iter().any(|running| running.planned > 0), "a step without work");
    }

    /// Lets the step check as many guesses as are worth their time.
    fn guess(&mut self) {
        let chances: Vec<_> = self.running.iter().map(Running::chances).collect();
        let rows = self.running.iter().map(|running| running.planned).sum();
        let most = self.options.step_tokens.saturating_sub(rows);
        let depths = depths(self.options.speculation, &self.decode_cost, rows, most, &chances);
        self.running.iter_mut().zip(depths).for_each(|(running, depth)| running.guess_ahead(depth));
    }

    /// What requests that began alike have computed since, nobody computes again.
    fn catch_up(&mut self) {
        for running in self.running.iter_mut().filter(|running| running.pending() > 1) {
            let before = std::mem::take(&mut running.computed);
            running.computed = self.pool.catch_up(&mut running.sequence, &running.tokens, before);
            running.reply.found((running.computed - before) as u32);
        }
    }

    fn work(&self) -> Work {
        let planned: usize = self.running.iter().map(|running| running.planned).sum();
        let decoding = self.running.iter().filter(|running| running.decodes()).map(|running| running.planned).sum();
        Work { prompt_tokens: planned - decoding, decoding }
    }

    fn compute(&mut self, model: &mut dyn TokenModel) -> Result<(), EngineError> {
        let copies = std::mem::take(&mut self.copies);
        let (running, logits) = (&mut self.running, &mut self.logits);
        let step = || {
            copies.into_iter().for_each(|copy| model.copy(copy));
            for Running { sequence, .. } in running.iter_mut() {
                let lane = sequence.lane;
                sequence.take_moved().into_iter().for_each(|blocks| model.place(lane, blocks));
            }
            let inputs: Vec<LaneInput<'_>> = running.iter().filter_map(Running::input).collect();
            model.step(&inputs, logits)?;
            Ok(inputs.iter().map(|input| input.logits).sum::<usize>())
        };
        let rows = catch_unwind(AssertUnwindSafe(step))
            .unwrap_or_else(|panic| Err(EngineError::ModelFailed(panic_message(&*panic))))?;
        let expected = rows * self.shape.vocabulary;
        if self.logits.len() != expected {
            let message = format!("the model gave {} logits instead of {expected}", self.logits.len());
            return Err(EngineError::ModelFailed(message));
        }
        Ok(())
    }

    /// Hands out the results. What is not finite fails its own request, since a lane's logits depend on that lane alone; but nothing
    /// that is cached for others is trusted any more, and the step counts as a failure of the model.
    fn apply(&mut self, now: Instant) {
        let mut sound = true;
        let mut logits = &mut self.logits[..];
        let mut chooser = Chooser { sampler: &mut self.sampler, codec: &*self.codec, now };
        for running in self.running.iter_mut().filter(|running| running.planned > 0) {
            let guessed = running.guess.len().saturating_sub(1);
            running.computed += running.planned - guessed;
            if running.pending() > 0 {
                self.pool.publish(&mut running.sequence, &running.tokens[..running.computed]);
                continue;
            }
            let (own, others) = std::mem::take(&mut logits).split_at_mut((1 + guessed) * self.shape.vocabulary);
            logits = others;
            match running.advance(own.chunks_exact_mut(self.shape.vocabulary), &mut chooser) {
                Ok(taken) => {
                    self.queue.charge(&running.tenant, 0, taken);
                    self.metrics.guessed(guessed, taken - 1);
                    self.pool.publish(&mut running.sequence, &running.tokens[..running.computed]);
                }
                Err(error) => {
                    sound &= !matches!(&error, EngineError::ModelFailed(problem) if problem == NOT_FINITE);
                    running.computed = 0;
                    running.reply.fail(error);
                }
            }
        }
        if sound {
            self.failures = 0;
        } else {
            self.note_failure(&EngineError::ModelFailed(NOT_FINITE.to_owned()));
        }
    }

    fn note_failure(&mut self, error: &EngineError) {
        self.failures = if *error == EngineError::Stopped { MAX_FAILURES_IN_A_ROW } else { self.failures + 1 };
        tracing::error!(%error, failures = self.failures, "the model failed a step");
        self.pool.forget();
    }

    /// Ends the requests of this batch. Those that waited for their next chunk begin anew: nothing in the cache can be trusted.
    fn fail_batch(&mut self, error: EngineError) {
        self.note_failure(&error);
        // Only who had no part in it hears of the end as such, and may go elsewhere: what ended one engine could end the next.
        let error = if error == EngineError::Stopped { EngineError::ModelFailed(GAVE_UP.to_owned()) } else { error };
        for running in &mut self.running {
            running.computed = 0;
            if running.planned > 0 {
                running.reply.fail(error.clone());
            }
        }
        self.retire();
        for running in &mut self.running {
            let positions = running.positions();
            if !self.pool.restart(&mut running.sequence, positions) {
                running.reply.fail(error.clone());
            }
        }
    }

    /// Gives back the lanes and blocks of ended requests.
    fn retire(&mut self) {
        for running in self.running.extract_if(.., |running| running.reply.is_ended()) {
            self.admission.reply_ended(running.reply.len());
            self.pool.release(running.sequence, &running.tokens[..running.computed]);
            self.queue.ended(&running.tenant);
        }
    }

    /// Tells every request that the engine has stopped.
    pub(crate) fn end_all(&mut self) {
        for job in self.queue.take(|_| true) {
            self.reply(job).0.fail(EngineError::Stopped);
        }
        self.running.iter_mut().for_each(|running| running.reply.fail(EngineError::Stopped));
        self.retire();
    }

    fn learn(&mut self, work: Work, took: Duration) {
        if work.prompt_tokens == 0 {
            self.decode_cost.measure(work.decoding, took);
        }
        self.costs.observe(work, took);
    }
}

/// What a request that waits wants of the cache.
fn wanted<'a>(request: &'a GenerateRequest, shape: &ModelShape) -> Wanted<'a> {
    let tokens = &request.prompt.tokens[..];
    let positions = shape.context_tokens.min(tokens.len() + request.max_tokens as usize);
    Wanted { tenant: &request.tenant, tokens, positions }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the model panicked".into())
}

#[cfg(test)]
mod tests;
