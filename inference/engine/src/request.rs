//! What a replica is asked and what it answers.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{EngineError, Grammar, TokenLogprob};

/// A token's number in its model's vocabulary.
pub type TokenId = u32;

/// Who speaks in a [`ChatMessage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One message of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatMessage<'a> {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: &'a str,
}

/// How tokens are chosen. [`Default`] is greedy without penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probabilities sum to this; 1 is off.
    pub top_p: f32,
    /// Only the k most probable tokens; 0 is off.
    pub top_k: u32,
    /// Only tokens at least this probable relative to the most probable one; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and reply; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the reply; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the reply; 0 is off.
    pub frequency_penalty: f32,
    /// Random numbers depend on this and the token's position alone, so that neighbours never change an answer.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Which of a tenant's waiting requests goes first. It changes nothing between tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// After all others.
    Low,
    /// In order of arrival.
    #[default]
    Default,
    /// Before all others.
    High,
}

/// One generation. The prompt was prepared by the same replica's [`Replica::prepare`](crate::Replica::prepare).
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The prompt.
    pub prompt: PreparedPrompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens to generate; already bounded by the context that the prompt leaves.
    pub max_tokens: u32,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub logprobs: Option<u32>,
    /// What the reply is held to; compiled by the same replica's [`Replica::compile`](crate::Replica::compile).
    pub grammar: Option<Grammar>,
    /// Tokens that the reply begins with: recorded by an earlier attempt, continued exactly. Their text is reported again.
    pub forced: Vec<TokenId>,
    /// When the request is dropped, started or not.
    pub deadline: Option<Instant>,
    /// Whose request it is, for fairness and so that nothing cached is shared between tenants.
    pub tenant: String,
    /// Requests with equal values share a conversation's cache; 0 is none.
    pub affinity: u64,
    /// Its place among the tenant's own.
    pub priority: Priority,
    /// Whether its answer was promised already: then it may wait for longer than the target time to its first token.
    pub promised: bool,
}

impl GenerateRequest {
    /// The most probable reply of at most `max_tokens`, and nothing besides asked of it.
    pub fn greedy(tenant: impl Into<String>, prompt: PreparedPrompt, max_tokens: u32) -> Self {
        Self {
            prompt,
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            logprobs: None,
            grammar: None,
            forced: Vec::new(),
            deadline: None,
            tenant: tenant.into(),
            affinity: 0,
            priority: Priority::default(),
            promised: false,
        }
    }
}

/// A prompt that fits the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedPrompt {
    /// Token ids. The scripted replica counts one per whitespace-separated word and leaves this empty.
    pub tokens: Vec<TokenId>,
    /// How many tokens the prompt has.
    pub token_count: u32,
    /// The last user message, which the scripted replica answers from.
    pub last_user_text: String,
    /// How many of the oldest messages were left out to fit the budget.
    pub dropped_messages: u32,
}

/// What a prompt may use of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptBudget {
    /// Tokens kept free for the reply. With `max_tokens` unset this is the least that a reply may have.
    pub reserve: u32,
    /// Whether the oldest messages (never a leading system message, never the last message) may be left out to fit.
    pub drop_oldest: bool,
}

/// Token counts of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the reply.
    pub completion: u32,
    /// Those of the prompt that were found in a cache.
    pub cached: u32,
}

/// Why a generation ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The model ended it, or a stop text was met.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
}

/// What happens to a generation, in this order: `Tokens` any number of times, then exactly one of the others, unless it was cancelled.
#[derive(Debug, Clone)]
pub enum GenerateEvent {
    /// More of the reply.
    Tokens {
        /// The new token ids. May be empty where held-back text is released.
        ids: Vec<TokenId>,
        /// The text that became certain: whole characters only, nothing that may yet turn out to be a stop text.
        text: String,
        /// The tokens whose text began to come out, where they were asked for. Forced tokens are not among them, nor are those
        /// whose text begins where a stop text does or later.
        logprobs: Vec<TokenLogprob>,
    },
    /// The reply is complete.
    Finished {
        /// Why.
        finish: Finish,
        /// Its token counts.
        usage: TokenUsage,
    },
    /// There will be no reply.
    Failed(EngineError),
}

/// Where a generation's events go. Called on the replica's thread: it must not block.
///
/// Dropping a sink unfinished means that the replica died; the owner of the receiving side treats that as a failure.
pub trait EventSink: Send {
    /// Takes the next event. `false`: nobody listens any more; the replica frees the lane within one step.
    fn send(&mut self, event: GenerateEvent) -> bool;
}

impl<F: FnMut(GenerateEvent) -> bool + Send> EventSink for F {
    fn send(&mut self, event: GenerateEvent) -> bool {
        self(event)
    }
}
