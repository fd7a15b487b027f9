//! Chat completions as JSON and as event streams.

use axum::Json;
use parlance_actors_runtime::TurnOutcome;
use parlance_cluster_protocol::{FinishReason, ModelTag, Replied, TurnId, Usage};
use parlance_inference_engine::TokenLogprob;
use serde::Serialize;

use crate::{
    api_error::ApiError,
    ids,
    logprobs::Logprobs,
    models::ServedModel,
    sse::{Frames, Render},
    tools::{CallObject, Calls, Read},
};

#[derive(Debug, Serialize)]
pub(super) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: [Choice; 1],
    usage: UsageObject,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    /// Nothing beside calls.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallObject>,
}

#[derive(Debug, Serialize)]
struct UsageObject {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<Usage> for UsageObject {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}

/// Renders a turn that has ended.
pub(super) fn completion(
    turn: TurnId,
    outcome: &TurnOutcome,
    logprobs: Option<&[TokenLogprob]>,
    calls: Option<Calls>,
) -> Result<Json<Completion>, ApiError> {
    let replied: &Replied = match outcome {
        TurnOutcome::Replied(replied) => replied,
        TurnOutcome::Failed(failed) => return Err(ApiError::from_failed(failed)),
    };
    let (message, has_calls) = message(&replied.text, calls);
    Ok(Json(Completion {
        id: ids::completion_id(turn),
        object: "chat.completion",
        created: ids::created_at(turn),
        model: replied.model.name.clone(),
        system_fingerprint: fingerprint(&replied.model),
        choices: [Choice {
            index: 0,
            message,
            logprobs: logprobs.map(Logprobs::new),
            finish_reason: finish_reason(replied.finish, has_calls),
        }],
        usage: replied.usage.into(),
    }))
}

/// The reply as a message, and whether it has calls.
fn message(text: &str, calls: Option<Calls>) -> (Message, bool) {
    let plain = |content| Message { role: "assistant", content, refusal: None, tool_calls: Vec::new() };
    let Some(mut calls) = calls else { return (plain(Some(text.to_owned())), false) };
    let (mut read, rest) = (calls.push(text, false), calls.finish(false));
    read.text.push_str(&rest.text);
    read.calls.extend(rest.calls);
    let content = Some(read.text).filter(|text| !text.is_empty() || read.calls.is_empty());
    (Message { tool_calls: read.calls, ..plain(content) }, calls.any())
}

/// The interface has no word for "stopped on request"; the text is complete as far as it goes.
fn finish_reason(finish: FinishReason, has_calls: bool) -> &'static str {
    match finish {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
        FinishReason::Length => "length",
    }
}

/// Replies of equal fingerprint and seed are equal.
fn fingerprint(model: &ModelTag) -> Option<String> {
    crate::models::fingerprint(&model.digest, &model.numerics)
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: &'a [ChunkChoice<'a>],
    /// Absent unless it was asked for; then `null` on every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageObject>>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallObject>,
}

/// Renders a turn as chunks.
pub(super) struct ChunkRender {
    id: String,
    created: u64,
    model: ServedModel,
    include_usage: bool,
    /// Whether probabilities were asked for.
    scored: bool,
    /// Where the reply may have calls of tools.
    calls: Option<Calls>,
}

impl ChunkRender {
    /// Renders `turn`, which `model` answers.
    pub(super) fn new(turn: TurnId, model: ServedModel, include_usage: bool, scored: bool) -> Self {
        Self { id: ids::completion_id(turn), created: ids::created_at(turn), model, include_usage, scored, calls: None }
    }

    /// Takes calls of tools out of the text.
    pub(super) fn with_calls(self, calls: Option<Calls>) -> Self {
        Self { calls, ..self }
    }

    fn chunk(&self, delta: Delta<'_>, finish_reason: Option<&'static str>, out: &mut Frames) {
        self.write(&[ChunkChoice { index: 0, delta, logprobs: None, finish_reason }], None, out);
    }

    fn write(&self, choices: &[ChunkChoice<'_>], usage: Option<UsageObject>, out: &mut Frames) {
        out.data(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model.name,
            system_fingerprint: self.model.fingerprint.as_deref(),
            choices,
            usage: self.include_usage.then_some(usage),
        });
    }
}

fn delta_of(read: &Read) -> Delta<'_> {
    let content = Some(read.text.as_str()).filter(|text| !text.is_empty());
    Delta { role: None, content, tool_calls: read.calls.clone() }
}

impl Render for ChunkRender {
    fn begin(&mut self, out: &mut Frames) {
        self.chunk(Delta { role: Some("assistant"), content: Some(""), ..Delta::default() }, None, out);
    }

    fn delta(&mut self, _end: usize, text: &str, logprobs: &[TokenLogprob], out: &mut Frames) {
        let read = self.calls.as_mut().map(|calls| calls.push(text, true));
        let delta = match &read {
            None => Delta { content: Some(text), ..Delta::default() },
            Some(read) if read.text.is_empty() && read.calls.is_empty() && logprobs.is_empty() => return,
            Some(read) => delta_of(read),
        };
        let logprobs = self.scored.then(|| Logprobs::new(logprobs));
        self.write(&[ChunkChoice { index: 0, delta, logprobs, finish_reason: None }], None, out);
    }

    fn end(&mut self, outcome: &TurnOutcome, _text: &str, out: &mut Frames) {
        match outcome {
            TurnOutcome::Failed(failed) => self.broken(&ApiError::from_failed(failed), out),
            TurnOutcome::Replied(replied) => {
                let rest = self.calls.as_mut().map(|calls| calls.finish(true)).unwrap_or_default();
                if !rest.text.is_empty() || !rest.calls.is_empty() {
                    self.chunk(delta_of(&rest), None, out);
                }
                let has_calls = self.calls.as_ref().is_some_and(Calls::any);
                self.chunk(Delta::default(), Some(finish_reason(replied.finish, has_calls)), out);
                if self.include_usage {
                    self.write(&[], Some(replied.usage.into()), out);
                }
                out.done();
            }
        }
    }

    fn broken(&mut self, error: &ApiError, out: &mut Frames) {
        out.event("error", &serde_json::json!({ "error": error.object() }));
    }
}
