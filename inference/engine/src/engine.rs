//! A replica on a thread of its own.

use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    CancelHandle, ChatMessage, ChatRole, EngineError, EventSink, GenerateRequest, Grammar, Lifeline, PreparedPrompt,
    PromptBudget, Replica, ReplicaInfo, ReplicaLoad, Speculation, StepCosts, TextCodec, TokenId, TokenModel,
    ToolPrompt, ToolSyntax,
    admission::Admission,
    grammar::GrammarCompiler,
    lifeline::Life,
    load::Load,
    metrics::ReplicaMetrics,
    queue::{Job, Unserved},
    scheduler::{Scheduler, Step},
    shape::ModelShape,
    window,
};

/// The bounds of an engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineOptions {
    /// Requests that wait for a lane at most; every request does for a moment, so at least 1. A tenant gets as many places as it
    /// leaves free.
    pub queue: usize,
    /// The longest that a request is likely to wait for its first token. One that would wait longer is refused.
    pub target_first_token: Duration,
    /// What the model's steps cost, as far as that is known before the first one.
    pub costs: StepCosts,
    /// Tokens of one step at most, over all lanes; more only where more lanes decode. Bounds how late a cancellation is seen.
    pub step_tokens: usize,
    /// Prompt tokens of one step at most while other requests decode: what a long prompt may add to their token times. Twice that for
    /// a tenant that has less than its share of the lanes.
    pub prefill_chunk: usize,
    /// Tokens whose keys and values are kept at most when no request uses them any more, for others of the tenant that begin alike;
    /// by default as many as fit a quarter of the cache.
    pub kept_tokens: Option<usize>,
    /// Whether replies are guessed ahead. Changes no token.
    pub speculation: Speculation,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            queue: 512,
            target_first_token: Duration::from_secs(10),
            costs: StepCosts::default(),
            step_tokens: 256,
            prefill_chunk: 64,
            kept_tokens: None,
            speculation: Speculation::default(),
        }
    }
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Starts a thread that owns `model` and answers what the replica is asked.
    ///
    /// An error or a panic of the model fails the requests of that step and forgets all caches; the engine goes on. It ends, and
    /// tells every request so, when the model returns [`EngineError::Stopped`] or fails three steps in a row. Once the replica
    /// is dropped, the thread answers what it has taken on and ends; its [`Lifeline`] ends it sooner.
    ///
    /// Where the system refuses a thread or the model has no lanes or too few blocks for its context, the replica is stopped from the beginning.
    pub fn start(model: Box<dyn TokenModel>, codec: Arc<dyn TextCodec>, options: EngineOptions) -> EngineReplica {
        let metrics = Arc::new(ReplicaMetrics::new(&codec.info().name));
        let load = Load::new(metrics.clone());
        let shape = ModelShape::of(&*model);
        let admission = Admission::new(load.clone(), shape.lanes, &options);
        let (inbox, jobs) = channel();
        let (lifeline, life) = Lifeline::new();
        let scheduler = Scheduler::new(shape, codec.clone(), options, metrics, load.clone(), admission.clone());
        let thread = EngineThread { scheduler, model, jobs, life };
        let name = format!("engine {}", codec.info().name);
        let spawned = thread::Builder::new().name(name).spawn(move || thread.run(shape.is_usable()));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the engine");
        }
        EngineReplica { codec, shape, compiler: OnceLock::new(), load, admission, inbox, lifeline }
    }
}

/// An engine's handle.
pub struct EngineReplica {
    codec: Arc<dyn TextCodec>,
    shape: ModelShape,
    /// Made for the first schema.
    compiler: OnceLock<Result<GrammarCompiler, EngineError>>,
    load: Arc<Load>,
    admission: Arc<Admission>,
    inbox: Sender<Job>,
    lifeline: Lifeline,
}

impl EngineReplica {
    /// Refuses what no step could compute, where it would take neighbours along.
    fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        let prompt = request.prompt.tokens.len();
        if prompt == 0 {
            return Err(EngineError::Template("the prompt is empty".into()));
        }
        if prompt >= self.shape.context_tokens {
            return Err(EngineError::ContextExceeded {
                prompt: prompt as u32,
                reserve: 1,
                context: self.shape.context_tokens as u32,
                model: self.info().name.clone(),
            });
        }
        let unknown = |&id: &TokenId| id as usize >= self.shape.vocabulary;
        match request.prompt.tokens.iter().chain(&request.forced).copied().find(unknown) {
            Some(id) => Err(EngineError::ModelFailed(format!("token {id} is not in the vocabulary"))),
            None => Ok(()),
        }
    }

    /// The prompt of as many of the messages as the budget allows.
    fn fit(
        &self,
        messages: &[ChatMessage<'_>],
        budget: PromptBudget,
        encode: impl Fn(&[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError>,
    ) -> Result<PreparedPrompt, EngineError> {
        let render = |messages: &[ChatMessage<'_>]| {
            let tokens = encode(messages)?;
            let count = tokens.len() as u32;
            Ok((tokens, count))
        };
        let window = window::fit(messages, budget, self.info(), render)?;
        let last_user = messages.iter().rfind(|message| message.role == ChatRole::User);
        Ok(PreparedPrompt {
            token_count: window.prompt.len() as u32,
            tokens: window.prompt,
            last_user_text: last_user.map(|message| message.content.to_owned()).unwrap_or_default(),
            dropped_messages: window.dropped as u32,
        })
    }
}

impl Replica for EngineReplica {
    fn info(&self) -> &ReplicaInfo {
        self.codec.info()
    }

    fn prepare(&self, messages: &[ChatMessage<'_>], budget: PromptBudget) -> Result<PreparedPrompt, EngineError> {
        self.fit(messages, budget, |messages| self.codec.encode_chat(messages))
    }

    fn tool_syntax(&self) -> Option<ToolSyntax> {
        self.codec.tool_syntax()
    }

    fn prepare_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: ToolPrompt<'_>,
        reserve: u32,
    ) -> Result<PreparedPrompt, EngineError> {
        let budget = PromptBudget { reserve, drop_oldest: false };
        self.fit(messages, budget, |messages| self.codec.encode_with_tools(messages, tools))
    }

    fn compile(&self, schema: &str) -> Result<Grammar, EngineError> {
        let codec = &*self.codec;
        let compiler = self.compiler.get_or_init(|| {
            GrammarCompiler::new(self.shape.vocabulary, |id| codec.token_bytes(id), |id| codec.is_end(id))
        });
        compiler.as_ref().map_err(Clone::clone)?.compile(schema)
    }

    /// # Errors
    ///
    /// As in [`Replica::submit`]; and for a prompt that was not prepared by this replica [`EngineError::ContextExceeded`],
    /// [`EngineError::Template`] (it is empty) or [`EngineError::ModelFailed`] (it holds tokens of another vocabulary).
    fn submit(&self, request: GenerateRequest, sink: Box<dyn EventSink>) -> Result<CancelHandle, EngineError> {
        self.check(&request)?;
        if self.lifeline.is_closed() {
            return Err(EngineError::Stopped);
        }
        let place = self.admission.admit(&request).map_err(EngineError::queue_full)?;
        let cancel = CancelHandle::default();
        let sink = Unserved::new(sink);
        let job = Job { request, sink, cancel: cancel.clone(), submitted: Instant::now(), _place: place };
        self.inbox.send(job).map_err(|refused| {
            // The caller is told, and its sink is not.
            drop(refused.0.sink.take());
            EngineError::Stopped
        })?;
        Ok(cancel)
    }

    fn admits(&self, tenant: &str, prompt_tokens: u32) -> Result<(), EngineError> {
        let admitted = self.admission.check(tenant, prompt_tokens as usize);
        admitted.map_err(|retry_after| EngineError::QueueFull { retry_after })
    }

    fn load(&self) -> ReplicaLoad {
        self.load.now()
    }

    fn lifeline(&self) -> Lifeline {
        self.lifeline.clone()
    }
}

/// What the thread owns. Dropping it, however the thread ends, says that the engine takes nothing more, then tells all sinks and drops the
/// model, and at last says that the engine has ended.
struct EngineThread {
    scheduler: Scheduler,
    model: Box<dyn TokenModel>,
    /// Bounded by the places that jobs hold.
    jobs: Receiver<Job>,
    life: Life,
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.life.close();
    }
}

impl EngineThread {
    fn run(mut self, usable: bool) {
        if !usable {
            return tracing::error!("a model without lanes or without memory for its context cannot serve");
        }
        let mut open = true;
        loop {
            open &= self.take_jobs();
            if self.life.is_cut() {
                self.life.close();
                return self.scheduler.end_all();
            }
            match self.scheduler.step(&mut *self.model, Instant::now) {
                Step::Worked => {}
                Step::Idle if open => match self.jobs.recv() {
                    Ok(job) => self.scheduler.submit(job),
                    Err(_) => return,
                },
                Step::Idle => return,
                Step::Dead => {
                    self.life.close();
                    return self.scheduler.end_all();
                }
            }
        }
    }

    /// Takes what was submitted since the last step. Whether more can come.
    fn take_jobs(&mut self) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.scheduler.submit(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests;
