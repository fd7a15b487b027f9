//! The scripted twin: a replica without weights that answers deterministically, for tests and load.
//!
//! Where a schema governs, the reply is a short document that it allows, one byte a token. Every other reply begins with the first 16 hexadecimal digits of SHA-256 of the last user message, so that a swapped answer is seen,
//! and goes on with words; one word is one token. Where that message spells a call (`<tool_call>…</tool_call>`), the reply goes on with that
//! instead, one byte a token: so its template has tools, in Hermes' syntax. A tool's result is answered like a user's message. Limits, queue, deadline, cancellation and forced tokens work as in the real
//! engine; every token is certain, so its log-probability is 0. Replies that take time are tasks on tokio timers; replies that take none are given within `submit`.

mod document;
mod options;
mod script;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

pub use self::options::ScriptedOptions;
use self::script::Script;
use crate::{
    CancelHandle, ChatMessage, ChatRole, EngineError, EventSink, Finish, GenerateEvent, GenerateRequest, Grammar,
    Lifeline, PreparedPrompt, PromptBudget, Replica, ReplicaInfo, ReplicaLoad, ToolPrompt, ToolSyntax,
    grammar::GrammarCompiler,
    lifeline::Life,
    load::{Load, RunningGuard, WaitingGuard},
    metrics::ReplicaMetrics,
    reply, window,
};

/// The name that the scripted replica is served under.
const NAME: &str = "scripted";

/// A replica that answers from a script. See the module's documentation.
pub struct ScriptedReplica {
    shared: Arc<Shared>,
    lifeline: Lifeline,
}

struct Shared {
    options: ScriptedOptions,
    info: ReplicaInfo,
    metrics: Arc<ReplicaMetrics>,
    lanes: Arc<Semaphore>,
    /// Made for the first schema.
    compiler: OnceLock<Result<GrammarCompiler, EngineError>>,
    load: Arc<Load>,
    life: Life,
}

impl ScriptedReplica {
    /// A replica that behaves as `options` say.
    pub fn new(options: ScriptedOptions) -> Self {
        let script = Sha256::digest(format!("scripted v1 tokens={} seed={}", options.tokens, options.seed));
        let info = ReplicaInfo {
            name: NAME.into(),
            digest: script.iter().map(|byte| format!("{byte:02x}")).collect(),
            numerics: NAME.into(),
            context_tokens: options.context_tokens,
        };
        let lanes = Arc::new(Semaphore::new(options.lanes as usize));
        let metrics = Arc::new(ReplicaMetrics::new(NAME));
        let load = Load::new(metrics.clone());
        let compiler = OnceLock::new();
        let (lifeline, life) = Lifeline::new();
        Self { shared: Arc::new(Shared { options, info, metrics, lanes, compiler, load, life }), lifeline }
    }
}

impl Replica for ScriptedReplica {
    fn info(&self) -> &ReplicaInfo {
        &self.shared.info
    }

    fn prepare(&self, messages: &[ChatMessage<'_>], budget: PromptBudget) -> Result<PreparedPrompt, EngineError> {
        let count = |messages: &[ChatMessage<'_>]| {
            let words: usize = messages.iter().map(|message| script::count_words(message.content)).sum();
            let words = u32::try_from(words).unwrap_or(u32::MAX);
            Ok((words, words))
        };
        let window = window::fit(messages, budget, self.info(), count)?;
        let last_user = messages.iter().rfind(|message| message.role == ChatRole::User);
        Ok(PreparedPrompt {
            tokens: Vec::new(),
            token_count: window.prompt,
            last_user_text: last_user.map(|message| message.content.to_owned()).unwrap_or_default(),
            dropped_messages: window.dropped as u32,
        })
    }

    fn tool_syntax(&self) -> Option<ToolSyntax> {
        Some(ToolSyntax::Hermes)
    }

    fn prepare_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: ToolPrompt<'_>,
        reserve: u32,
    ) -> Result<PreparedPrompt, EngineError> {
        let prompt = self.prepare(messages, PromptBudget { reserve, drop_oldest: false })?;
        let answered = messages.last().filter(|message| message.role == ChatRole::Tool);
        let last_user_text = answered.map_or(prompt.last_user_text, |message| message.content.to_owned());
        let described: usize = tools.tools.iter().map(|tool| script::count_words(&tool.description)).sum();
        Ok(PreparedPrompt {
            token_count: prompt.token_count.saturating_add(described as u32),
            last_user_text,
            ..prompt
        })
    }

    fn compile(&self, schema: &str) -> Result<Grammar, EngineError> {
        self.shared.compiler.get_or_init(document::compiler).as_ref().map_err(Clone::clone)?.compile(schema)
    }

    /// With `ttft_ms=0,token_ms=0` the sink hears everything before this returns, in one `Tokens` event and one `Finished`.
    ///
    /// # Errors
    ///
    /// As in [`Replica::submit`], and [`EngineError::ModelFailed`] for a schema that leads nowhere. A replica that takes time lives on the caller's tokio runtime and has
    /// [`EngineError::Stopped`] where there is none.
    fn submit(&self, request: GenerateRequest, sink: Box<dyn EventSink>) -> Result<CancelHandle, EngineError> {
        let shared = &self.shared;
        let cancel = CancelHandle::default();
        if shared.life.is_cut() {
            return Err(EngineError::Stopped);
        }
        let mut job = Job::new(shared.clone(), request, sink)?;
        if shared.options.is_instant() {
            job.answer_at_once();
            return Ok(cancel);
        }
        let runtime = Handle::try_current().map_err(|_| EngineError::Stopped)?;
        let place = match shared.lanes.clone().try_acquire_owned() {
            Ok(lane) => Place::Lane(job.shared.take_lane(lane)),
            Err(_) => Place::Queue(job.shared.queue()?),
        };
        runtime.spawn(job.run(place, cancel.clone()));
        Ok(cancel)
    }

    fn admits(&self, _tenant: &str, _prompt_tokens: u32) -> Result<(), EngineError> {
        let is_full = !self.shared.options.is_instant() && self.shared.lanes.available_permits() == 0;
        if is_full { self.shared.queue().map(drop) } else { Ok(()) }
    }

    fn load(&self) -> ReplicaLoad {
        self.shared.load.now()
    }

    fn lifeline(&self) -> Lifeline {
        self.lifeline.clone()
    }
}

impl Shared {
    fn take_lane(&self, permit: OwnedSemaphorePermit) -> HeldLane {
        (self.load.run(), permit)
    }

    fn queue(&self) -> Result<WaitingGuard, EngineError> {
        let place = self.load.wait(self.options.queue as usize);
        place.ok_or_else(|| EngineError::QueueFull { retry_after: self.time_per_place() })
    }

    /// How often a full replica frees a lane, and so a place in the queue.
    fn time_per_place(&self) -> Duration {
        let reply = self.options.ttft + self.options.token_time * self.options.tokens;
        (reply / self.options.lanes).max(Duration::from_millis(1))
    }
}

/// Dropping both frees the lane.
type HeldLane = (RunningGuard, OwnedSemaphorePermit);

enum Place {
    Lane(HeldLane),
    Queue(WaitingGuard),
}

/// One request on its way.
struct Job {
    shared: Arc<Shared>,
    submitted: Instant,
    deadline: Option<Instant>,
    script: Script,
    sink: Box<dyn EventSink>,
}

/// The sink wants nothing more, or has heard the end.
struct Done;

impl Job {
    fn new(shared: Arc<Shared>, request: GenerateRequest, sink: Box<dyn EventSink>) -> Result<Self, EngineError> {
        let deadline = request.deadline.map(Instant::from_std);
        let script = Script::new(&shared.options, request)?;
        Ok(Self { shared, submitted: Instant::now(), deadline, script, sink })
    }

    fn answer_at_once(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= self.submitted) {
            return self.fail(EngineError::DeadlineExceeded);
        }
        self.begin();
        // The script ends by itself: this says all of it.
        if self.say(u32::MAX).is_ok() {
            debug_assert!(false, "a script of bounded length goes on");
        }
    }

    async fn run(mut self, place: Place, cancel: CancelHandle) {
        let (deadline, shared) = (self.deadline, self.shared.clone());
        let expired = async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => self.shared.metrics.cancelled(self.script.said()),
            () = expired => self.fail(EngineError::DeadlineExceeded),
            () = shared.life.cut() => self.fail(EngineError::Stopped),
            Done = self.generate(place) => {}
        }
    }

    async fn generate(&mut self, place: Place) -> Done {
        let _lane = match place {
            Place::Lane(lane) => lane,
            Place::Queue(place) => {
                let Ok(permit) = self.shared.lanes.clone().acquire_owned().await else {
                    return Done;
                };
                drop(place);
                self.shared.take_lane(permit)
            }
        };
        self.begin();
        let (ttft, token_time) = (self.shared.options.ttft, self.shared.options.token_time);
        let mut next = Instant::now() + ttft;
        sleep_until(next).await;
        if token_time.is_zero() {
            let _ = self.say(u32::MAX);
            return Done;
        }
        let mut count = self.script.forced() + 1;
        while self.say(count).is_ok() {
            count = 1;
            next += token_time;
            sleep_until(next).await;
            self.shared.metrics.next_token(token_time);
        }
        Done
    }

    fn begin(&self) {
        self.shared.metrics.looked_up_prefix(self.script.usage().prompt, 0);
    }

    /// Says up to `count` tokens, and the end if this is it.
    fn say(&mut self, count: u32) -> Result<(), Done> {
        if self.script.said() == 0 {
            self.shared.metrics.first_token(self.submitted.elapsed());
        }
        let (tokens, finish) = self.script.advance(count);
        let empty = matches!(&tokens, GenerateEvent::Tokens { ids, text, .. } if ids.is_empty() && text.is_empty());
        if !empty && !reply::tell(&mut *self.sink, tokens) {
            self.shared.metrics.cancelled(self.script.said());
            return Err(Done);
        }
        finish.map_or(Ok(()), |finish| Err(self.finish(finish)))
    }

    fn finish(&mut self, finish: Finish) -> Done {
        let usage = self.script.usage();
        self.shared.metrics.finished(finish, usage, self.submitted.elapsed());
        reply::tell(&mut *self.sink, GenerateEvent::Finished { finish, usage });
        Done
    }

    fn fail(&mut self, error: EngineError) {
        self.shared.metrics.failed(self.script.said());
        reply::tell(&mut *self.sink, GenerateEvent::Failed(error));
    }
}

#[cfg(test)]
mod tests;
