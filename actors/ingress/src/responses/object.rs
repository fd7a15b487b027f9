//! A response as JSON.

use std::collections::BTreeMap;

use parlance_actors_runtime::TurnOutcome;
use parlance_cluster_protocol::{FinishReason, GenerationOptions, OutputFormat, TurnId, Usage};
use parlance_inference_engine::TokenLogprob;
use serde::Serialize;
use serde_json::Value;

use crate::{
    ids,
    logprobs::{ScoredToken, scored},
};

/// What a response repeats of its request. A response that is fetched later knows less: only what is in the record.
#[derive(Debug, Clone, Default)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) options: GenerationOptions,
    pub(super) previous: Option<String>,
    /// The conversation as the caller knows it.
    pub(super) conversation: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) store: bool,
    /// The model that answers, as far as known.
    pub(super) model: String,
    pub(super) user: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ResponseObject<'a> {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    error: Option<ErrorPart<'a>>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<&'a str>,
    max_output_tokens: Option<u32>,
    model: &'a str,
    output: Vec<MessageItem<'a>>,
    parallel_tool_calls: bool,
    previous_response_id: Option<&'a str>,
    conversation: Option<Conversation<'a>>,
    reasoning: Reasoning,
    store: bool,
    temperature: Option<f32>,
    text: TextConfig<'a>,
    tool_choice: &'static str,
    tools: [(); 0],
    top_p: Option<f32>,
    truncation: &'static str,
    usage: Option<UsageObject>,
    user: Option<&'a str>,
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct ErrorPart<'a> {
    code: &'a str,
    message: &'a str,
}

#[derive(Debug, Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Conversation<'a> {
    id: &'a str,
}

#[derive(Debug, Serialize)]
struct Reasoning {
    effort: Option<()>,
    summary: Option<()>,
}

#[derive(Debug, Serialize)]
struct TextConfig<'a> {
    format: TextFormat<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TextFormat<'a> {
    Text,
    JsonObject,
    JsonSchema { name: &'a str, schema: Value, strict: bool },
}

impl<'a> TextFormat<'a> {
    fn new(format: Option<&'a OutputFormat>) -> Self {
        match format {
            None => Self::Text,
            Some(OutputFormat::JsonObject) => Self::JsonObject,
            Some(OutputFormat::JsonSchema { name, schema }) => {
                // It was read from a request's body and written by ourselves.
                let schema = serde_json::from_str(schema).unwrap_or_default();
                Self::JsonSchema { name, schema, strict: true }
            }
        }
    }
}

/// The reply as an output item.
#[derive(Debug, Serialize)]
pub(super) struct MessageItem<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    role: &'static str,
    content: Vec<OutputText<'a>>,
}

/// The reply's text as a content part.
#[derive(Debug, Serialize)]
pub(super) struct OutputText<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
    annotations: [(); 0],
    logprobs: Vec<ScoredToken>,
}

#[derive(Debug, Serialize)]
struct UsageObject {
    input_tokens: u32,
    input_tokens_details: InputDetails,
    output_tokens: u32,
    output_tokens_details: OutputDetails,
    total_tokens: u32,
}

#[derive(Debug, Serialize)]
struct InputDetails {
    cached_tokens: u32,
}

#[derive(Debug, Serialize)]
struct OutputDetails {
    reasoning_tokens: u32,
}

impl From<Usage> for UsageObject {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        }
    }
}

impl<'a> OutputText<'a> {
    pub(super) fn new(text: &'a str, logprobs: &[TokenLogprob]) -> Self {
        Self { kind: "output_text", text, annotations: [], logprobs: scored(logprobs) }
    }
}

impl<'a> MessageItem<'a> {
    /// The item while there is no text yet.
    pub(super) fn begun(turn: TurnId) -> Self {
        Self::new(turn, "in_progress", Vec::new())
    }

    /// The item with its text, and the probabilities of its tokens where they were asked for.
    pub(super) fn ended(turn: TurnId, text: &'a str, finish: FinishReason, logprobs: &[TokenLogprob]) -> Self {
        let status = if finish == FinishReason::Stop { "completed" } else { "incomplete" };
        Self::new(turn, status, vec![OutputText::new(text, logprobs)])
    }

    fn new(turn: TurnId, status: &'static str, content: Vec<OutputText<'a>>) -> Self {
        Self { id: ids::reply_item_id(turn), kind: "message", status, role: "assistant", content }
    }
}

impl<'a> ResponseObject<'a> {
    /// A response that is being made.
    pub(super) fn running(turn: TurnId, echo: &'a Echo) -> Self {
        Self {
            id: ids::response_id(turn),
            object: "response",
            created_at: ids::created_at(turn),
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            instructions: echo.instructions.as_deref(),
            max_output_tokens: echo.options.max_tokens,
            model: &echo.model,
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: echo.previous.as_deref(),
            conversation: echo.conversation.as_deref().map(|id| Conversation { id }),
            reasoning: Reasoning { effort: None, summary: None },
            store: echo.store,
            temperature: echo.options.temperature,
            text: TextConfig { format: TextFormat::new(echo.options.format.as_ref()) },
            tool_choice: "auto",
            tools: [],
            top_p: echo.options.top_p,
            truncation: "disabled",
            usage: None,
            user: echo.user.as_deref(),
            metadata: &echo.metadata,
        }
    }

    /// A response that has ended, with the probabilities of its tokens where they were asked for.
    pub(super) fn ended(turn: TurnId, echo: &'a Echo, outcome: &'a TurnOutcome, logprobs: &[TokenLogprob]) -> Self {
        let running = Self::running(turn, echo);
        match outcome {
            TurnOutcome::Failed(failed) => {
                let error = ErrorPart { code: &failed.code, message: &failed.message };
                Self { status: "failed", error: Some(error), ..running }
            }
            TurnOutcome::Replied(replied) => {
                let (status, incomplete_details) = match replied.finish {
                    FinishReason::Stop => ("completed", None),
                    FinishReason::Length => ("incomplete", Some(Incomplete { reason: "max_output_tokens" })),
                    FinishReason::Cancelled => ("cancelled", None),
                };
                Self {
                    status,
                    incomplete_details,
                    model: &replied.model.name,
                    output: vec![MessageItem::ended(turn, &replied.text, replied.finish, logprobs)],
                    usage: Some(replied.usage.into()),
                    ..running
                }
            }
        }
    }
}
