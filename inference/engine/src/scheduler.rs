//! Continuous batching: which tokens of which requests the model computes next, and what becomes of the results.
//!
//! ```text
//!            admit: a lane, KV for prompt and reply                    a stop, a limit, a cancellation, an error
//! queued ───────────────────────────────────────────▶ prefill ─▶ decode ───────────────────────────────────────▶ ended
//!    └── cancelled or expired, told without running           (its blocks stay for whoever begins alike) ──────────┘
//! ```
//!
//! Every step computes one token of each decoding request and one chunk of prompt, so that a long prompt never stalls running
//! streams. A reply that repeats what was said is guessed ahead, and the guess checked in one step: the tokens are those that would
//! have come one by one. KV memory is promised at admission, for the prompt and the whole reply: nothing is preempted and nothing runs out.
//! No thread, no clock and no lock here: the caller passes the model and the time in, so that tests run millions of steps.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    BlockCopy, EngineError, EngineOptions, GenerateRequest, LaneInput, Speculation, TextCodec, TokenModel,
    blocks::{Admitted, BlockPool, Wanted},
    load::Load,
    lookup::Lookup,
    metrics::ReplicaMetrics,
    queue::{FairQueue, Job},
    reply::{Limits, Next, Reply},
    running::{Chooser, Running, follow},
    sampling::{Occurrences, Sampler},
    shape::ModelShape,
    speculation::{StepCost, depths},
};

/// A model that fails this many steps in a row is given up, so that its supervisor loads it anew.
pub(crate) const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// Weight of the newest step in the running mean of step times.
const NEWEST_STEP: f64 = 0.1;
/// What a step is taken to cost before one was measured.
const UNMEASURED_STEP: Duration = Duration::from_millis(50);

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
    shape: ModelShape,
    queue: FairQueue,
    pool: BlockPool,
    /// What the model is to copy before its next step.
    copies: Vec<BlockCopy>,
    /// In order of admission.
    running: Vec<Running>,
    sampler: Sampler,
    logits: Vec<f32>,
    failures: u32,
    step_seconds: Option<f64>,
    /// Of steps that only decode.
    decode_cost: StepCost,
}

impl Scheduler {
    pub(crate) fn new(
        shape: ModelShape,
        codec: Arc<dyn TextCodec>,
        options: EngineOptions,
        metrics: Arc<ReplicaMetrics>,
        load: Arc<Load>,
    ) -> Self {
        Self {
            codec,
            options,
            metrics,
            load,
            shape,
            queue: FairQueue::default(),
            pool: BlockPool::new(shape.pool(&options)),
            copies: Vec::new(),
            running: Vec::with_capacity(shape.lanes),
            sampler: Sampler::default(),
            logits: Vec::new(),
            failures: 0,
            step_seconds: None,
            decode_cost: StepCost::default(),
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
        if self.running.is_empty() {
            return Step::Idle;
        }
        self.plan();
        let outcome = self.compute(model);
        let now = clock();
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.measure(now - begun);
                self.apply(now);
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

    /// When the first of the running requests has its reply at the latest, by measured step times.
    pub(crate) fn time_to_next_lane(&self) -> Duration {
        let steps = |running: &Running| {
            let prefill = running.pending().div_ceil(self.options.prefill_chunk.max(1));
            prefill + running.reply.room() as usize
        };
        let least = self.running.iter().map(steps).min().unwrap_or(1);
        let step = self.step_seconds.unwrap_or(UNMEASURED_STEP.as_secs_f64());
        Duration::from_secs_f64(step * least as f64)
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
        while let Some(job) = self.queue.pop_if(|request| self.pool.has_room(wanted(request, &self.shape))) {
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
            return reply.fail(EngineError::Stopped);
        };
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
        (Reply::new(job.sink, job.cancel, self.metrics.clone(), limits, job.submitted), request)
    }

    /// One token of each decoding request, and the rest of the budget to prompts in order of admission: a chunk while others
    /// decode, all of it while nobody would be stalled.
    fn plan(&mut self) {
        self.catch_up();
        let decoding = self.running.iter().filter(|running| running.decodes()).count();
        let rest = self.options.step_tokens.saturating_sub(decoding).max(1);
        let mut prefill = if decoding > 0 { rest.min(self.options.prefill_chunk.max(1)) } else { rest };
        for running in &mut self.running {
            let decodes = running.decodes();
            running.planned = if decodes { 1 } else { running.chunk(prefill, self.shape.block_tokens) };
            prefill -= if decodes { 0 } else { running.planned };
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

    fn apply(&mut self, now: Instant) {
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
                    // A lane's logits depend on that lane alone, so the neighbours' are good; but what it has published is not.
                    running.computed = 0;
                    self.pool.forget();
                    running.reply.fail(error);
                }
            }
        }
    }

    /// Ends the requests of this batch. Those that waited for their next chunk begin anew: nothing in the cache can be trusted.
    fn fail_batch(&mut self, error: EngineError) {
        self.failures = if error == EngineError::Stopped { MAX_FAILURES_IN_A_ROW } else { self.failures + 1 };
        tracing::error!(%error, failures = self.failures, "the model failed a step");
        self.pool.forget();
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

    fn measure(&mut self, step: Duration) {
        if self.running.iter().all(|running| running.planned <= 1 || !running.guess.is_empty()) {
            self.decode_cost.measure(self.running.iter().map(|running| running.planned).sum(), step);
        }
        let step = step.as_secs_f64();
        let mean = self.step_seconds.get_or_insert(step);
        *mean += (step - *mean) * NEWEST_STEP;
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
