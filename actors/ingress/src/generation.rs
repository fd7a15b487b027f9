//! What chat completions and responses have in common: how a reply is generated, and which parts of the interface there are.
//!
//! A parameter that would change the answer and that this server cannot honour is refused with its name. One that changes
//! nothing about the answer is accepted and has no effect. Unknown parameters are refused, since they are mostly misspelt.

use parlance_cluster_protocol::{GenerationOptions, ServiceTier};
use serde_json::Value;

use crate::{
    api_error::ApiError,
    json::{Object, wrong_type},
};

/// The most that a caller can ask for; the model's context bounds it further.
const MAX_TOKENS: i64 = 1_048_576;

/// How many stop texts a request may have, and how long each may be, in bytes.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 256;

/// The longest model name, in bytes.
const MAX_MODEL_NAME: usize = 256;

/// The longest end-user name, in bytes.
const MAX_USER: usize = 512;

/// The sampling parameters that both faces know, under the same names.
pub(crate) fn sampling(body: &mut Object) -> Result<GenerationOptions, ApiError> {
    Ok(GenerationOptions {
        temperature: body.number("temperature", 0.0..=2.0)?,
        top_p: above_zero(body, "top_p", 1.0)?,
        top_k: body.integer("top_k", 0..=1_000_000)?.map(|k| k as u32),
        min_p: body.number("min_p", 0.0..=1.0)?,
        repetition_penalty: above_zero(body, "repetition_penalty", 2.0)?,
        presence_penalty: body.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: body.number("frequency_penalty", -2.0..=2.0)?,
        tier: service_tier(body)?,
        ..GenerationOptions::default()
    })
}

/// The caller's wish for its place among its own waiting requests. What other providers sell as "scale" has no place of its own here.
fn service_tier(body: &mut Object) -> Result<ServiceTier, ApiError> {
    let path = body.path("service_tier");
    match body.string("service_tier")?.as_deref() {
        None | Some("auto" | "default" | "scale") => Ok(ServiceTier::Default),
        Some("flex") => Ok(ServiceTier::Flex),
        Some("priority") => Ok(ServiceTier::Priority),
        Some(_) => {
            let message = format!("Invalid value for '{path}': it is one of auto, default, flex, priority and scale.");
            Err(ApiError::invalid(Some(path), message))
        }
    }
}

fn above_zero(body: &mut Object, name: &str, most: f64) -> Result<Option<f32>, ApiError> {
    let path = body.path(name);
    match body.number(name, 0.0..=most)? {
        Some(0.0) => {
            Err(ApiError::invalid(Some(path.clone()), format!("Invalid value for '{path}': it must be above 0.")))
        }
        other => Ok(other),
    }
}

/// A bound on the reply's tokens.
pub(crate) fn token_limit(body: &mut Object, name: &str) -> Result<Option<u32>, ApiError> {
    Ok(body.integer(name, 1..=MAX_TOKENS)?.map(|tokens| tokens as u32))
}

/// The seed of the random numbers. Negative ones are as good as others.
pub(crate) fn seed(body: &mut Object) -> Result<Option<u64>, ApiError> {
    Ok(body.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned))
}

/// The texts that end a reply: one string or up to four.
pub(crate) fn stop(body: &mut Object) -> Result<Vec<String>, ApiError> {
    let path = body.path("stop");
    let stops = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.into_iter().map(|value| stop_text(value, &path)).collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type(&path, "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            Some(path.clone()),
            format!("Invalid '{path}': at most {MAX_STOPS} stop texts."),
        ));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        let message = format!("Invalid '{path}': a stop text has 1 to {MAX_STOP_BYTES} bytes.");
        return Err(ApiError::invalid(Some(path), message));
    }
    Ok(stops)
}

fn stop_text(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "an array of strings", &other)),
    }
}

/// The model: the header wins over the body; neither means the model named `default`.
pub(crate) fn model(body: &mut Object, header: Option<&str>) -> Result<String, ApiError> {
    let named = body.string("model")?;
    let (name, param) = match header {
        Some(name) => (name.to_owned(), "X-Model-ID"),
        None => (named.unwrap_or_default(), "model"),
    };
    if name.len() > MAX_MODEL_NAME || name.chars().any(char::is_control) {
        let message =
            format!("Invalid '{param}': a model's name has at most {MAX_MODEL_NAME} bytes and no control characters.");
        return Err(ApiError::invalid(Some(param.into()), message));
    }
    Ok(name)
}

/// The caller's own name for its user.
pub(crate) fn user(body: &mut Object) -> Result<Option<String>, ApiError> {
    let deprecated = body.string("user")?;
    let user = body.string("safety_identifier")?.or(deprecated);
    match user {
        Some(user) if user.len() > MAX_USER => {
            Err(ApiError::invalid(Some("user".into()), format!("Invalid 'user': at most {MAX_USER} bytes.")))
        }
        other => Ok(other.filter(|user| !user.is_empty())),
    }
}

/// Parameters without influence on the answer.
const HARMLESS: &[&str] = &[
    "background",
    "extra_body",
    "max_tool_calls",
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "store",
    "tool_choice",
    "truncation",
    "verbosity",
];

/// Parameters that are accepted where they are at the value that means nothing special.
fn is_neutral(name: &str, value: &Value) -> bool {
    match (name, value) {
        ("n", Value::Number(n)) => n.as_u64() == Some(1),
        ("logprobs" | "background", Value::Bool(on)) => !on,
        ("top_logprobs", Value::Number(n)) => n.as_u64() == Some(0),
        ("include", Value::Array(_)) => true,
        ("logit_bias", Value::Object(bias)) => bias.is_empty(),
        ("tools" | "functions", Value::Array(tools)) => tools.is_empty(),
        ("tool_choice" | "function_call", Value::String(choice)) => choice == "none" || choice == "auto",
        ("modalities", Value::Array(kinds)) => kinds.iter().all(|kind| kind == "text"),
        ("truncation", Value::String(how)) => how == "auto" || how == "disabled",
        ("reasoning", Value::Object(_)) | ("reasoning_effort", Value::String(_)) => true,
        ("stream_options", Value::Object(_)) => true,
        _ => false,
    }
}

/// Parameters of the interface that would change the answer and that are not there yet.
const NOT_YET: &[&str] = &[
    "audio",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "modalities",
    "n",
    "prediction",
    "prompt",
    "reasoning",
    "reasoning_effort",
    "stream_options",
    "tools",
    "top_logprobs",
    "web_search_options",
];

/// Decides on what is left of a request once everything known was taken out.
pub(crate) fn check_rest(body: &Object) -> Result<(), ApiError> {
    for (name, value) in body.rest() {
        if is_neutral(name, value) {
            continue;
        }
        if NOT_YET.contains(&name.as_str())
            || matches!(name.as_str(), "background" | "include" | "tool_choice" | "truncation")
        {
            let message = format!("Unsupported value: '{name}' with this value is not supported by this server.");
            return Err(ApiError::unsupported(name.as_str(), message));
        }
        if !HARMLESS.contains(&name.as_str()) {
            let message = format!("Unrecognized request argument supplied: {name}.");
            return Err(ApiError {
                code: "unknown_parameter".into(),
                ..ApiError::invalid(Some(name.clone()), message)
            });
        }
    }
    Ok(())
}
