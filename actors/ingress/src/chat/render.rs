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
    content: String,
    refusal: Option<()>,
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
) -> Result<Json<Completion>, ApiError> {
    let replied: &Replied = match outcome {
        TurnOutcome::Replied(replied) => replied,
        TurnOutcome::Failed(failed) => return Err(ApiError::from_failed(failed)),
    };
    let message = Message { role: "assistant", content: replied.text.clone(), refusal: None };
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
            finish_reason: finish_reason(replied.finish),
        }],
        usage: replied.usage.into(),
    }))
}

/// The interface has no word for "stopped on request"; the text is complete as far as it goes.
fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
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
}

/// Renders a turn as chunks.
pub(super) struct ChunkRender {
    id: String,
    created: u64,
    model: ServedModel,
    include_usage: bool,
    /// Whether probabilities were asked for.
    scored: bool,
}

impl ChunkRender {
    /// Renders `turn`, which `model` answers.
    pub(super) fn new(turn: TurnId, model: ServedModel, include_usage: bool, scored: bool) -> Self {
        Self { id: ids::completion_id(turn), created: ids::created_at(turn), model, include_usage, scored }
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

impl Render for ChunkRender {
    fn begin(&mut self, out: &mut Frames) {
        self.chunk(Delta { role: Some("assistant"), content: Some("") }, None, out);
    }

    fn delta(&mut self, _end: usize, text: &str, logprobs: &[TokenLogprob], out: &mut Frames) {
        let delta = Delta { role: None, content: Some(text) };
        let logprobs = self.scored.then(|| Logprobs::new(logprobs));
        self.write(&[ChunkChoice { index: 0, delta, logprobs, finish_reason: None }], None, out);
    }

    fn end(&mut self, outcome: &TurnOutcome, _text: &str, out: &mut Frames) {
        match outcome {
            TurnOutcome::Failed(failed) => self.broken(&ApiError::from_failed(failed), out),
            TurnOutcome::Replied(replied) => {
                self.chunk(Delta::default(), Some(finish_reason(replied.finish)), out);
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
