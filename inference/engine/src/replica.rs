use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::{
    ChatMessage, EngineError, EventSink, GenerateRequest, Grammar, Lifeline, PreparedPrompt, PromptBudget, ToolPrompt,
    ToolSyntax,
};

/// What a replica serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The name that the model is served under.
    pub name: String,
    /// SHA-256 over weights and tokenizer, in hexadecimal.
    pub digest: String,
    /// The kernel set and precision: replicas with equal digest and numerics continue each other's tokens exactly. Those
    /// of a class that begins with `tensor-` do so but for rounding, which depends on what is computed together.
    pub numerics: String,
    /// The most tokens of prompt and reply together.
    pub context_tokens: u32,
}

/// One loaded model that answers requests: an engine thread over real weights, or the scripted twin. Once nobody holds it any more, it
/// finishes what it has taken on and ends.
pub trait Replica: Send + Sync + 'static {
    /// What it serves.
    fn info(&self) -> &ReplicaInfo;

    /// Renders `messages` through the chat template and counts tokens. Pure computation of up to milliseconds.
    ///
    /// # Errors
    ///
    /// [`EngineError::ContextExceeded`] if what may not be dropped does not fit the context less the reserve.
    fn prepare(&self, messages: &[ChatMessage<'_>], budget: PromptBudget) -> Result<PreparedPrompt, EngineError>;

    /// How the model writes calls of tools; nothing if its template has none.
    fn tool_syntax(&self) -> Option<ToolSyntax> {
        None
    }

    /// As [`prepare`](Self::prepare), with tools; no message is left out. `reserve` tokens are kept free for the reply.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare), and [`EngineError::Template`] where the template has no tools.
    fn prepare_with_tools(
        &self,
        _messages: &[ChatMessage<'_>],
        _tools: ToolPrompt<'_>,
        _reserve: u32,
    ) -> Result<PreparedPrompt, EngineError> {
        Err(EngineError::Template("it has no tools".to_owned()))
    }

    /// Makes a grammar of a JSON schema, given as JSON text. Pure computation, mostly of milliseconds; the first one takes longer.
    ///
    /// # Errors
    ///
    /// [`EngineError::Schema`] for what is no schema, or asks for what replies cannot be held to.
    fn compile(&self, schema: &str) -> Result<Grammar, EngineError>;

    /// Queues a request. Never blocks; everything that happens is told to `sink`.
    ///
    /// # Errors
    ///
    /// [`EngineError::QueueFull`] where it would wait for too long, or too many wait, and [`EngineError::Stopped`] after the engine
    /// ended; `sink` is then unused.
    fn submit(&self, request: GenerateRequest, sink: Box<dyn EventSink>) -> Result<CancelHandle, EngineError>;

    /// Whether a tenant's request with a prompt of that many tokens would be queued now. Never waits for a step.
    ///
    /// # Errors
    ///
    /// [`EngineError::QueueFull`].
    fn admits(&self, tenant: &str, prompt_tokens: u32) -> Result<(), EngineError>;

    /// Requests that run or wait.
    fn load(&self) -> ReplicaLoad;

    /// Watches its end.
    fn lifeline(&self) -> Lifeline;
}

/// How busy a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaLoad {
    /// Requests that hold a lane.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
}

/// Cancels one request: its lane is free within one step, and its sink hears nothing more.
#[derive(Debug, Clone, Default)]
pub struct CancelHandle(Arc<Cancellation>);

#[derive(Debug, Default)]
struct Cancellation {
    flag: AtomicBool,
    wake: Notify,
}

impl CancelHandle {
    /// Cancels. Without effect on a finished request.
    pub fn cancel(&self) {
        self.0.flag.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.flag.load(Ordering::Acquire)
    }

    /// Ends once [`cancel`](Self::cancel) was called. For one waiter: the replica.
    pub(crate) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.0.wake.notified().await;
        }
    }
}
