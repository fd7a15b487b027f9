//! The request of a response.

use std::collections::BTreeMap;

use parlance_cluster_protocol::{Item, Origin, Role, TurnId};
use serde_json::Value;

use crate::{
    api_error::ApiError,
    call::Call,
    format, generation, ids,
    json::{Object, missing, parse_object, wrong_type},
    logprobs::MAX_ALTERNATIVES,
    messages, metadata,
};

/// What a request includes to get probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The longest instructions, in bytes; the body's bound is looser.
const MAX_INSTRUCTIONS: usize = 256 * 1024;

/// A parsed request.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    pub(super) call: Call,
    pub(super) instructions: Option<String>,
    pub(super) conversation: Option<String>,
    pub(super) previous: Option<TurnId>,
    pub(super) stream: bool,
    pub(super) store: bool,
    pub(super) metadata: BTreeMap<String, String>,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub(super) logprobs: Option<u32>,
}

impl ResponseRequest {
    /// Parses and checks a body; `model_header` wins over its model.
    pub(super) fn parse(body: &[u8], model_header: Option<&str>) -> Result<Self, ApiError> {
        let mut body = parse_object(body)?;
        let input = input(&mut body)?;
        let mut options = generation::sampling(&mut body)?;
        options.model = generation::model(&mut body, model_header)?;
        options.stop = generation::stop(&mut body)?;
        options.max_tokens = generation::token_limit(&mut body, "max_output_tokens")?;
        options.format = format::of_response(&mut body)?;
        let seed = generation::seed(&mut body)?;
        let user = generation::user(&mut body)?;
        let request = Self {
            call: Call { input, options, seed, user, origin: Origin::Response },
            instructions: instructions(&mut body)?,
            conversation: conversation(&mut body)?,
            previous: previous(&mut body)?,
            stream: body.boolean("stream")?.unwrap_or(false),
            store: body.boolean("store")?.unwrap_or(true),
            metadata: metadata::take(&mut body)?.unwrap_or_default(),
            logprobs: logprobs(&mut body)?,
        };
        generation::check_rest(&body)?;
        request.check()
    }

    fn check(self) -> Result<Self, ApiError> {
        if self.previous.is_some() && self.conversation.is_some() {
            let message = "'previous_response_id' and 'conversation' exclude each other.";
            return Err(ApiError::invalid(Some("previous_response_id".into()), message));
        }
        if !self.store && (self.previous.is_some() || self.conversation.is_some()) {
            let message = "A response that continues a conversation or another response is stored; leave 'store' out.";
            return Err(ApiError::unsupported("store", message));
        }
        Ok(self)
    }
}

fn logprobs(body: &mut Object) -> Result<Option<u32>, ApiError> {
    let parts = body.array("include")?.unwrap_or_default();
    if let Some(other) = parts.iter().find(|part| !part.is_string()) {
        return Err(wrong_type("include", "an array of strings", other));
    }
    let wanted = parts.iter().any(|part| part == LOGPROBS);
    match body.integer("top_logprobs", 0..=MAX_ALTERNATIVES)? {
        Some(1..) if !wanted => {
            let message = format!("Invalid value for 'top_logprobs': it goes only with '{LOGPROBS}' in 'include'.");
            Err(ApiError::invalid(Some("top_logprobs".into()), message))
        }
        alternatives => Ok(wanted.then_some(alternatives.unwrap_or(0) as u32)),
    }
}

fn input(body: &mut Object) -> Result<Vec<Item>, ApiError> {
    match body.take("input") {
        None => Err(missing("input")),
        Some(Value::String(text)) => Ok(vec![Item { role: Role::User, text }]),
        Some(Value::Array(items)) => messages::messages(items, "input"),
        Some(other) => Err(wrong_type("input", "a string or an array of items", &other)),
    }
}

fn instructions(body: &mut Object) -> Result<Option<String>, ApiError> {
    match body.string("instructions")? {
        Some(text) if text.len() > MAX_INSTRUCTIONS => {
            let message = format!("Invalid 'instructions': at most {MAX_INSTRUCTIONS} bytes.");
            Err(ApiError::invalid(Some("instructions".into()), message))
        }
        other => Ok(other.filter(|text| !text.is_empty())),
    }
}

/// An id, or an object with one.
fn conversation(body: &mut Object) -> Result<Option<String>, ApiError> {
    let id = match body.take("conversation") {
        None => return Ok(None),
        Some(Value::String(id)) => id,
        Some(value @ Value::Object(_)) => Object::at(value, "conversation")?.required_string("id")?,
        Some(other) => return Err(wrong_type("conversation", "a string or an object", &other)),
    };
    ids::check_session_id(&id, "conversation")?;
    Ok(Some(id))
}

fn previous(body: &mut Object) -> Result<Option<TurnId>, ApiError> {
    let Some(id) = body.string("previous_response_id")? else { return Ok(None) };
    let invalid = || {
        let message = "Invalid 'previous_response_id': a response's id is resp_ and 32 hexadecimal digits.";
        ApiError::invalid(Some("previous_response_id".into()), message)
    };
    ids::parse_response_id(&id).map(Some).ok_or_else(invalid)
}
