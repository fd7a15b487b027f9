//! Continuous batching: which tokens of which requests the model computes next, and what becomes of the results.
//!
//! ```text
//!            admit: a lane, KV for prompt and reply                    a stop, a limit, a cancellation, an error
//! queued ───────────────────────────────────────────▶ prefill ─▶ decode ───────────────────────────────────────▶ ended
//!    └── cancelled or expired, told without running       (lane stays resident for the conversation's next turn) ──┘
//! ```
//!
//! Every step computes one token of each decoding request and one chunk of prompt, so that a long prompt never stalls running
//! streams. KV memory is reserved at admission, a lane as long as the context: nothing is preempted and nothing runs out.
//! No thread and no clock here: the caller passes the model and the time in, so that tests run millions of steps.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use crate::{
    EngineError, EngineOptions, GenerateRequest, Grammar, Lane, LaneInput, Sampling, TextCodec, TokenId, TokenLogprob,
    TokenModel,
    admission::{Admission, Progress},
    cost::{StepCosts, Work},
    lanes::{Lanes, Taken},
    load::{Load, RunningGuard},
    logprobs::Distribution,
    metrics::ReplicaMetrics,
    queue::{FairQueue, Job},
    reply::{Limits, Next, Reply},
    sampling::{Occurrences, Sampler},
};

/// A model that fails this many steps in a row is given up.
const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// Chunks of one step while the prompt of a tenant that has less than its share waits for them: it pays for the streams of the others.
const CHUNKS_OF_THE_OWED: usize = 2;
/// What the requests of a batch are told in which the model gave up.
const GAVE_UP: &str = "it can compute no more";
/// What a request is told whose logits are not all numbers.
const NOT_FINITE: &str = "the model gave a logit that is not finite";
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
/// Invariant: a lane is marked running exactly while one of `running` holds it.
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
    lanes: Lanes,
    /// In order of admission.
    running: Vec<Running>,
    sampler: Sampler,
    logits: Vec<f32>,
    failures: u32,
    costs: StepCosts,
}

/// What the scheduler knows of its model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelShape {
    pub(crate) lanes: usize,
    pub(crate) context_tokens: usize,
    pub(crate) vocabulary: usize,
}

/// A request that holds a lane.
struct Running {
    lane: Lane,
    tenant: String,
    sampling: Sampling,
    logprobs: Option<u32>,
    /// Invariant: has followed the reply's part of `tokens`.
    grammar: Option<Grammar>,
    seen: Occurrences,
    /// Prompt and reply so far.
    tokens: Vec<TokenId>,
    /// How many of `tokens` are in the lane's cache. Invariant: fewer than all of them, until the reply ended.
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
            lane: self.lane,
            start: self.computed,
            tokens: &self.tokens[self.computed..end],
            want_logits: end == self.tokens.len(),
        })
    }

    /// The next token, from its row of logits.
    fn choose(&mut self, row: &mut [f32], sampler: &mut Sampler, codec: &dyn TextCodec) -> Result<Chosen, EngineError> {
        let distribution = self.logprobs.map(|top| (Distribution::of(row), top));
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(row)?;
        }
        let position = self.reply.len().into();
        let chosen = sampler.choose(row, &self.sampling, &self.seen, position);
        let token = chosen.map_err(|_| EngineError::ModelFailed(NOT_FINITE.to_owned()))?;
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
            lanes: Lanes::new(shape.lanes),
            running: Vec::with_capacity(shape.lanes),
            sampler: Sampler::default(),
            logits: Vec::new(),
            failures: 0,
            costs: options.costs,
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
                self.costs.observe(work, clock() - begun);
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
        while self.lanes.has_idle()
            && let Some(job) = self.queue.pop(self.shape.lanes - self.running.len())
        {
            self.start(job, now);
        }
        let reserved: usize =
            self.running.iter().map(|running| running.tokens.len() + running.reply.room() as usize).sum();
        self.metrics.kv_usage.set(reserved as f64 / (self.shape.lanes * self.shape.context_tokens) as f64);
    }

    fn start(&mut self, job: Job, now: Instant) {
        let (mut reply, mut request) = self.reply(job);
        self.repeat(&mut reply, &mut request, now);
        if reply.is_ended() {
            return self.queue.ended(&request.tenant);
        }
        let prompt = request.prompt.tokens.len();
        let tokens = [&request.prompt.tokens[..], &request.forced].concat();
        let Some(Taken { lane, reused }) = self.lanes.take(&request, &tokens) else {
            debug_assert!(false, "admission without an idle lane");
            self.queue.ended(&request.tenant);
            return reply.fail(EngineError::Stopped);
        };
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(now).as_secs_f64());
        if left.is_some_and(|left| left < self.costs.of(1.0, 1, tokens.len() - reused) * CERTAINLY) {
            self.lanes.release(lane, tokens[..reused].to_vec());
            self.queue.ended(&request.tenant);
            return reply.fail(EngineError::DeadlineExceeded);
        }
        reply.begin(reused.min(prompt) as u32);
        self.queue.charge(&request.tenant, tokens.len() - reused, 0);
        let mut seen = Occurrences::new(&request.sampling, &request.prompt.tokens);
        request.forced.iter().for_each(|&id| seen.add(id));
        self.running.push(Running {
            lane,
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

    /// One token of each decoding request, and the rest of the budget to prompts: a chunk while others decode, all of it while nobody
    /// would be stalled. The prompts of tenants that are behind go first, each tenant's in order of admission.
    fn plan(&mut self) {
        let decoding = self.running.iter().filter(|running| running.pending() == 1).count();
        let mut prompts = Vec::new();
        for running in &mut self.running {
            running.planned = usize::from(running.pending() == 1);
            if running.planned == 0 {
                prompts.push((self.queue.rank(&running.tenant), running));
            }
        }
        // Stable: of equals, whoever was admitted first.
        prompts.sort_by_key(|(rank, _)| *rank);
        let is_owed = prompts.first().is_some_and(|(rank, _)| rank.is_owed());
        let chunk = self.options.prefill_chunk.max(1) * if is_owed { CHUNKS_OF_THE_OWED } else { 1 };
        let rest = self.options.step_tokens.saturating_sub(decoding).max(1);
        let mut prefill = if decoding > 0 { rest.min(chunk) } else { rest };
        for (_, running) in prompts {
            running.planned = running.pending().min(prefill);
            prefill -= running.planned;
        }
        debug_assert!(self.running.iter().any(|running| running.planned > 0), "a step without work");
    }

    fn work(&self) -> Work {
        let planned: usize = self.running.iter().map(|running| running.planned).sum();
        let decoding = self.running.iter().filter(|running| running.pending() == 1).count();
        Work { prompt_tokens: planned - decoding, decoding }
    }

    fn compute(&mut self, model: &mut dyn TokenModel) -> Result<(), EngineError> {
        let inputs: Vec<LaneInput<'_>> = self.running.iter().filter_map(Running::input).collect();
        let rows = inputs.iter().filter(|input| input.want_logits).count();
        let logits = &mut self.logits;
        catch_unwind(AssertUnwindSafe(|| model.step(&inputs, logits)))
            .unwrap_or_else(|panic| Err(EngineError::ModelFailed(panic_message(&*panic))))?;
        let expected = rows * self.shape.vocabulary;
        if self.logits.len() != expected {
            let message = format!("the model gave {} logits instead of {expected}", self.logits.len());
            return Err(EngineError::ModelFailed(message));
        }
        Ok(())
    }

    /// Hands out the results. What is not finite fails its own request, since a lane's logits depend on that lane alone; but what
    /// idle lanes hold is not trusted any more, and the step counts as a failure of the model.
    fn apply(&mut self, now: Instant) {
        let mut sound = true;
        let mut rows = self.logits.chunks_exact_mut(self.shape.vocabulary);
        for running in self.running.iter_mut().filter(|running| running.planned > 0) {
            running.computed += running.planned;
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
        self.lanes.forget();
    }

    /// Ends the requests of this batch. Those that waited for their next chunk begin anew: no lane's cache can be trusted.
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
    }

    /// Gives back the lanes of ended requests.
    fn retire(&mut self) {
        for running in self.running.extract_if(.., |running| running.reply.is_ended()) {
            let mut tokens = running.tokens;
            tokens.truncate(running.computed);
            self.lanes.release(running.lane, tokens);
            self.admission.reply_ended(running.reply.len());
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
