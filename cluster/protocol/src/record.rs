//! What is recorded about a session: the facts that its state machine is a fold of.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::{BodyHash, SessionKey, TimestampMs, TurnId, UserHash, WireError, adopted::Adopted, wire};

const WHAT: &str = "session record";

/// One fact about one session, as stored in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRecord {
    /// The session; its tenant is part of the key.
    pub session: SessionKey,
    /// Whose action it records, as a keyed hash; `None` for the system's own.
    pub user: Option<UserHash>,
    /// The data key that encrypts message text; 0 is none.
    pub key_id: u32,
    /// When it was recorded. Never runs backwards within a session.
    pub at: TimestampMs,
    /// What happened.
    pub event: SessionEvent,
}

/// What can happen to a session.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEvent {
    /// The conversation was created on request, with its settings.
    Opened(SessionOpened),
    /// Settings were changed.
    Updated(SessionUpdated),
    /// Items were put into the history from outside, without a turn.
    ItemsAdded(ItemsAdded),
    /// An idempotency key was bound to the first request that bore it. Lives in the key's own session.
    KeyBound(KeyBound),
    /// A turn was accepted: from here on it will be answered once. Implies its first attempt.
    TurnAccepted(TurnAccepted),
    /// A further attempt (2 or more) to answer an accepted turn begins.
    AttemptStarted(AttemptStarted),
    /// Tokens of the running attempt, so that another node can go on from them.
    Progress(Progress),
    /// The turn's one final reply.
    Replied(Replied),
    /// The turn ended without a reply; this is its one final answer.
    TurnFailed(TurnFailed),
    /// The conversation was deleted: its history is gone and new turns are refused.
    Deleted,
    /// A part of what another log knew of the session. With the last part the session goes on here as if it had never been elsewhere.
    Adopted(Adopted),
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// See [`SessionEvent::Opened`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionOpened {
    /// The owner's labels.
    pub metadata: BTreeMap<String, String>,
    /// Replaces the default system prompt, where given.
    pub system_prompt: Option<String>,
    /// The history to begin with.
    pub items: Vec<Item>,
}

/// See [`SessionEvent::Updated`]. An absent field stays as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionUpdated {
    /// Replaces all labels.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Replaces the system prompt.
    pub system_prompt: Option<String>,
}

/// See [`SessionEvent::ItemsAdded`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ItemsAdded {
    /// The items, oldest first.
    pub items: Vec<Item>,
}

/// See [`SessionEvent::KeyBound`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeyBound {
    /// The first request's body.
    pub body_hash: BodyHash,
    /// The session whose turn answers it.
    pub target: SessionKey,
    /// The turn that answers it.
    pub turn: TurnId,
    /// From when on the key is free again.
    pub expires_at: TimestampMs,
}

/// Through which face a turn came, so that a replay is rendered as the first answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `POST /v1/chat/completions`.
    ChatCompletion,
    /// `POST /v1/responses`.
    Response,
    /// The web chat's `/ws`.
    WebSocket,
    /// A channel connector.
    Channel,
}

/// Which history a turn is answered on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum History {
    /// The session's own, and the turn becomes part of it.
    Session,
    /// The one given with the turn: `input` is the whole prompt.
    Given,
}

/// How a reply is generated. An absent field means the model's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationOptions {
    /// The model's name or alias; empty means the model named `default`.
    pub model: String,
    /// The most tokens to generate.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling: the smallest set of tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Only the k most probable tokens; 0 is all.
    pub top_k: Option<u32>,
    /// Only tokens at least this probable relative to the most probable one.
    pub min_p: Option<f32>,
    /// Divides (or multiplies) the logits of tokens that occurred; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that occurred in the reply.
    pub presence_penalty: Option<f32>,
    /// Subtracted once for every time that the token occurred in the reply.
    pub frequency_penalty: Option<f32>,
    /// Texts that end the reply and are not part of it.
    pub stop: Vec<String>,
    /// What the reply is held to; any text where absent.
    pub format: Option<OutputFormat>,
    /// Which of the tenant's waiting turns goes first.
    pub tier: ServiceTier,
}

/// A turn's place among those of its tenant that wait for a model. It changes nothing between tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceTier {
    /// In order of arrival.
    #[default]
    Default,
    /// After all others.
    Flex,
    /// Before all others.
    Priority,
}

/// What a reply is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputFormat {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema {
        /// The caller's name for the schema.
        name: String,
        /// The schema as JSON text.
        schema: String,
    },
}

/// See [`SessionEvent::TurnAccepted`].
#[derive(Debug, Clone, PartialEq)]
pub struct TurnAccepted {
    /// The turn.
    pub turn: TurnId,
    /// The provider's id or the idempotency key that a repeated delivery would bear; empty if none.
    pub event_id: String,
    /// The request's body, where `event_id` is an idempotency key.
    pub body_hash: Option<BodyHash>,
    /// What was said.
    pub input: Vec<Item>,
    /// Which history it is answered on.
    pub history: History,
    /// How the reply is generated.
    pub options: GenerationOptions,
    /// The seed of the reply's random numbers: the caller's, or drawn when the turn was accepted.
    pub seed: u64,
    /// Through which face it came.
    pub origin: Origin,
    /// The turn whose reply this one replaces.
    pub regenerates: Option<TurnId>,
    /// What the model is told before the history of this turn alone, in place of the session's system prompt.
    pub instructions: Option<String>,
    /// When the turn fails if it has no reply.
    pub deadline: TimestampMs,
}

/// What a reply depends on besides its prompt: two workers with equal tags continue each other's tokens exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelTag {
    /// The name that the model is served under.
    pub name: String,
    /// SHA-256 over weights and tokenizer, in hexadecimal.
    pub digest: String,
    /// The kernel set and precision.
    pub numerics: String,
}

/// See [`SessionEvent::AttemptStarted`].
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptStarted {
    /// The turn.
    pub turn: TurnId,
    /// 2 for the second attempt.
    pub attempt: u32,
}

/// See [`SessionEvent::Progress`].
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The turn.
    pub turn: TurnId,
    /// The attempt that made them.
    pub attempt: u32,
    /// The model that made them.
    pub model: ModelTag,
    /// Index of the first of `tokens` within the reply.
    pub from: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it, or a stop text was met.
    Stop,
    /// The token limit was reached.
    Length,
    /// It was stopped on request; the text is what there was.
    Cancelled,
}

/// Token counts of one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the reply.
    pub completion_tokens: u32,
    /// Those of the prompt that were not computed again.
    pub cached_tokens: u32,
}

/// See [`SessionEvent::Replied`].
#[derive(Debug, Clone, PartialEq)]
pub struct Replied {
    /// The turn.
    pub turn: TurnId,
    /// The attempt that made it.
    pub attempt: u32,
    /// The reply.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Its token counts.
    pub usage: Usage,
    /// The model that made it.
    pub model: ModelTag,
}

/// See [`SessionEvent::TurnFailed`].
#[derive(Debug, Clone, PartialEq)]
pub struct TurnFailed {
    /// The turn.
    pub turn: TurnId,
    /// The attempt that failed last.
    pub attempt: u32,
    /// The error code of the public interface, for example `deadline_exceeded`.
    pub code: String,
    /// What a person is told.
    pub message: String,
}

impl SessionRecord {
    /// The record as bytes, in the newest format.
    pub fn encode(&self) -> Bytes {
        wire::Record::from(self).encode_to_vec().into()
    }

    /// Reads a record of any known format.
    ///
    /// # Errors
    ///
    /// See [`WireError`]; the owner of a shard that gets one steps down.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let record = wire::Record::decode(bytes).map_err(|e| WireError::malformed(WHAT, e.to_string()))?;
        wire::check_format(WHAT, record.format)?;
        record.try_into()
    }
}
