//! Continuous batching: which tokens of which requests the model computes next, and what becomes of the results.
//!
//! ```text
//!            admit: a lane, KV for prompt and reply                    a stop, a limit, a cancellation, an error
//! queued ───────────────────────────────────────────▶ prefill ─▶ decode ───────────────────────────────────────▶ ended
//!    └── cancelled or expired, told without running           (its blocks stay for whoever begins alike) ──────────┘
//! ```
//!
//! Every step computes one token of each decoding request and one chunk of prompt, so that a long prompt never stalls running
//! streams. KV memory is promised at admission, for the prompt and the whole reply: nothing is preempted and nothing runs out.
//! No thread, no clock and no lock here: the caller passes the model and the time in, so that tests run millions of steps.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    BlockCopy, EngineError, EngineOptions, GenerateRequest, Grammar, LaneInput, Sampling, TextCodec, TokenId,
    TokenLogprob, TokenModel,
    blocks::{Admitted, BlockPool, PoolShape, Sequence, Wanted},
    load::{Load, RunningGuard},
    logprobs::Distribution,
    metrics::ReplicaMetrics,
    queue::{FairQueue, Job},
    reply::{Limits, Next, Reply},
    sampling::{Occurrences, Sampler},
};

/// A model that fails this many steps in a row is given up.
const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// Weight of the newest step in the running mean of step times.
const NEWEST_STEP: f64 = 0.1;
/// Part of the cache that is kept for later requests where the options do not say.
const USUALLY_KEPT: usize = 4;
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
}

/// What the scheduler knows of its model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelShape {
    pub(crate) lanes: usize,
    pub(crate) context_tokens: usize,
    pub(crate) vocabulary: usize,
    pub(crate) block_tokens: usize,
    pub(crate) blocks: usize,
}

impl ModelShape {
    pub(crate) fn of(model: &dyn TokenModel) -> Self {
        Self {
            lanes: model.lanes(),
            context_tokens: model.context_tokens(),
            vocabulary: model.vocabulary(),
            block_tokens: model.block_tokens(),
            blocks: model.blocks(),
        }
    }

    /// Whether any request can be served.
    pub(crate) fn is_usable(&self) -> bool {
        self.lanes > 0 && self.block_tokens > 0 && self.blocks * self.block_tokens >= self.context_tokens
    }

    fn pool(&self, options: &EngineOptions) -> PoolShape {
        let kept = options.kept_tokens.unwrap_or(self.blocks * self.block_tokens / USUALLY_KEPT);
        PoolShape {
            lanes: self.lanes,
            blocks: self.blocks,
            block_tokens: self.block_tokens,
            kept_blocks: kept / self.block_tokens.max(1),
        }
    }
}

/// A request that holds a lane.
struct Running {
    sequence: Sequence,
    tenant: String,
    sampling: Sampling,
    logprobs: Option<u32>,
    /// Invariant: has followed the reply's part of `tokens`.
    grammar: Option<Grammar>,
    seen: Occurrences,
    /// Prompt and reply so far.
    tokens: Vec<TokenId>,
    /// How many of `tokens` are in the cache. Invariant: fewer than all of them, until the reply ended.
    computed: usize,
    /// Of `tokens` in this step.
    planned: usize,
    reply: Reply,
    deadline: Option<Instant>,
    _guard: RunningGuard,
}

/// The next token of a reply.
struct Chosen {
    token: TokenId,
    logprob: Option<TokenLogprob>,
    /// Whether the grammar allows nothing behind it.
    is_last: bool,
}

impl Running {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn input(&self) -> Option<LaneInput<'_>> {
        let end = self.computed + self.planned;
        (self.planned > 0).then(|| LaneInput {
            lane: self.sequence.lane,
            start: self.computed,
            tokens: &self.tokens[self.computed..end],
            logits: usize::from(end == self.tokens.len()),
        })
    }

    /// The most positions that it may come to.
    fn positions(&self) -> usize {
        self.tokens.len() + self.reply.room() as usize
    }

    /// How much of the prompt is computed next, of at most `most`: up to the end of a block, where others may have gone on.
    fn chunk(&self, most: usize, block_tokens: usize) -> usize {
        let whole = (self.computed + most) / block_tokens * block_tokens;
        if self.pending() <= most {
            self.pending()
        } else {
            whole.checked_sub(self.computed).filter(|n| *n > 0).unwrap_or(most)
        }
    }

    /// The next token, from its row of logits.
    fn choose(&mut self, row: &mut [f32], sampler: &mut Sampler, codec: &dyn TextCodec) -> Result<Chosen, EngineError> {
        let distribution = self.logprobs.map(|top| (Distribution::of(row), top));
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(row)?;
        }
        let position = self.reply.len().into();
        let chosen = sampler.choose(row, &self.sampling, &self.seen, position);
        let token =
            chosen.map_err(|_| EngineError::ModelFailed("the model gave a logit that is not finite".to_owned()))?;
        let logprob = distribution.map(|(distribution, top)| distribution.report(token, top, codec));
        Ok(Chosen { token, logprob, is_last: follow(self.grammar.as_mut(), &[token], codec)? })
    }
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
        let decoding = self.running.iter().filter(|running| running.pending() == 1).count();
        let rest = self.options.step_tokens.saturating_sub(decoding).max(1);
        let mut prefill = if decoding > 0 { rest.min(self.options.prefill_chunk.max(1)) } else { rest };
        for running in &mut self.running {
            let decodes = running.pending() == 1;
            running.planned = if decodes { 1 } else { running.chunk(prefill, self.shape.block_tokens) };
            prefill -= if decodes { 0 } else { running.planned };
            self.pool.extend(&mut running.sequence, running.computed + running.planned);
        }
        debug_assert!(self.running.iter().any(|running| running.planned > 0), "a step without work");
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
        let mut rows = self.logits.chunks_exact_mut(self.shape.vocabulary);
        for running in self.running.iter_mut().filter(|running| running.planned > 0) {
            running.computed += running.planned;
            self.pool.publish(&mut running.sequence, &running.tokens[..running.computed]);
            if running.pending() > 0 {
                continue;
            }
            let Some(row) = rows.next() else { break };
            match running.choose(row, &mut self.sampler, &*self.codec) {
                Ok(Chosen { token, logprob, is_last }) => {
                    self.queue.charge(&running.tenant, 0, 1);
                    running.seen.add(token);
                    let next = Next { tokens: &[token], logprob, is_last };
                    running.reply.accept(next, &*self.codec, now);
                    running.tokens.push(token);
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

/// Takes a grammar, where there is one, behind `tokens`. Whether it allows nothing more.
fn follow(grammar: Option<&mut Grammar>, tokens: &[TokenId], codec: &dyn TextCodec) -> Result<bool, EngineError> {
    let Some(grammar) = grammar else { return Ok(false) };
    // The end is the reply's matter.
    if !tokens.iter().any(|&token| codec.is_end(token)) {
        grammar.follow(tokens)?;
    }
    Ok(grammar.is_complete())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the model panicked".into())
}

#[cfg(test)]
mod tests;
