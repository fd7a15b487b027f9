//! The guard's place around a generation: messages before they are rendered for the model, text before anybody sees it.
//!
//! A guard that panics lets nothing through: its request fails, and nothing else does, on whatever thread it was asked.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parlance_actors_guard::{Block, Guards, InputVerdict, OutputReview, OutputVerdict};
use parlance_cluster_protocol::Item;
use parlance_inference_engine::{EngineError, EventSink, GenerateEvent, TokenId, TokenLogprob};

use crate::Refusal;

/// A prompt as the model may get it.
pub(crate) struct Reviewed<'a> {
    messages: Vec<&'a Item>,
    masked: Option<Vec<Item>>,
}

impl<'a> Reviewed<'a> {
    /// Has the guard look at a prompt.
    ///
    /// # Errors
    ///
    /// [`Refusal::Blocked`] if the model may get nothing, [`Refusal::Engine`] if the guard fails.
    pub(crate) fn new(guards: &Guards, tenant: &str, messages: Vec<&'a Item>) -> Result<Self, Refusal> {
        let masked = match caught("prompt", || guards.input.review(tenant, &messages))? {
            InputVerdict::Pass => None,
            InputVerdict::Masked(masked) => Some(masked),
            InputVerdict::Blocked(block) => return Err(block.into()),
        };
        Ok(Self { messages, masked })
    }

    /// Its messages.
    pub(crate) fn messages(&self) -> Vec<&Item> {
        match &self.masked {
            Some(masked) => masked.iter().collect(),
            None => self.messages.clone(),
        }
    }
}

/// A sink that a blocked reply can be told.
pub(crate) trait Blockable: EventSink {
    /// The reply ends here. Nothing follows.
    fn blocked(&mut self, refusal: Refusal);
}

/// A sink that is told only what the guard lets through.
pub(crate) struct Guarded<S> {
    sink: S,
    review: Box<dyn OutputReview>,
    blocked: bool,
}

impl<S: Blockable> Guarded<S> {
    /// # Errors
    ///
    /// [`Refusal::Engine`] if the guard fails.
    pub(crate) fn new(guards: &Guards, tenant: &str, sink: S) -> Result<Self, Refusal> {
        let review = caught("reply", || guards.output.begin(tenant))?;
        Ok(Self { sink, review, blocked: false })
    }

    /// Probabilities spell out their tokens, so they pass only with a text that passes unchanged and at once.
    fn review_tokens(&mut self, ids: Vec<TokenId>, text: String, mut logprobs: Vec<TokenLogprob>) -> bool {
        let said = (!logprobs.is_empty()).then(|| text.clone());
        match caught("reply", || self.review.push(text)) {
            Ok(OutputVerdict::Release(text)) => {
                if said.is_some_and(|said| said != text) {
                    logprobs.clear();
                }
                self.sink.send(GenerateEvent::Tokens { ids, text, logprobs })
            }
            Ok(OutputVerdict::Blocked(block)) => self.block(block.into()),
            Err(refusal) => self.block(refusal),
        }
    }

    /// There will be no reply, and why; it is no matter for the guard.
    pub(crate) fn fail(&mut self, refusal: Refusal) {
        self.block(refusal);
    }

    fn block(&mut self, refusal: Refusal) -> bool {
        self.blocked = true;
        self.sink.blocked(refusal);
        false
    }
}

fn caught<T>(what: &str, review: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(review)).map_err(|_| {
        tracing::error!(what, "the guard panicked");
        Refusal::Engine(EngineError::ModelFailed(format!("the {what} could not be reviewed")))
    })
}

impl<S: Blockable> EventSink for Guarded<S> {
    fn send(&mut self, event: GenerateEvent) -> bool {
        // The engine hears that nobody listens, and may have had more on its lips.
        if self.blocked {
            return false;
        }
        match event {
            GenerateEvent::Tokens { ids, text, logprobs } => self.review_tokens(ids, text, logprobs),
            GenerateEvent::Finished { .. } => match caught("reply", || self.review.finish()) {
                Ok(OutputVerdict::Release(text)) if text.is_empty() => self.sink.send(event),
                Ok(OutputVerdict::Release(text)) => {
                    self.sink.send(GenerateEvent::Tokens { ids: Vec::new(), text, logprobs: Vec::new() })
                        && self.sink.send(event)
                }
                Ok(OutputVerdict::Blocked(block)) => self.block(block.into()),
                Err(refusal) => self.block(refusal),
            },
            GenerateEvent::Failed(_) => self.sink.send(event),
        }
    }
}

impl From<Block> for Refusal {
    fn from(block: Block) -> Self {
        Self::Blocked { code: block.code, message: block.message }
    }
}
