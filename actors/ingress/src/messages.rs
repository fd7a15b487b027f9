//! Messages of a request: role and text, out of every form in which the official clients send them.

use parlance_cluster_protocol::{Item, Role};
use parlance_inference_engine::MessageTools;
use serde_json::Value;

use crate::{
    api_error::ApiError,
    json::{Object, missing, wrong_type},
    tools,
};

/// The most messages of one request.
pub(crate) const MAX_MESSAGES: usize = 10_000;

/// Reads the array of messages at `path`; it may not be empty.
pub(crate) fn messages(values: Vec<Value>, path: &str) -> Result<Vec<Item>, ApiError> {
    check_count(values.len(), path)?;
    values.into_iter().enumerate().map(|(index, value)| message(value, &format!("{path}[{index}]"))).collect()
}

/// Reads the array of messages at `path`, and what each has to do with tools.
pub(crate) fn with_tools(values: Vec<Value>, path: &str) -> Result<(Vec<Item>, Vec<MessageTools>), ApiError> {
    check_count(values.len(), path)?;
    let numbered = values.into_iter().enumerate();
    numbered.map(|(index, value)| message_with_tools(value, &format!("{path}[{index}]"))).collect()
}

/// A message of the model may have calls, with text or without, and a tool's names the call whose result it is.
fn message_with_tools(value: Value, path: &str) -> Result<(Item, MessageTools), ApiError> {
    let is_tools = value.get("role").and_then(Value::as_str) == Some("tool");
    if !is_tools && value.get("tool_calls").is_none() {
        return message(value, path).map(|item| (item, MessageTools::default()));
    }
    let mut fields = Object::at(value, path)?;
    let content_path = fields.path("content");
    let content = fields.take("content");
    if is_tools {
        let answers = fields.required_string("tool_call_id")?;
        fields.take("role");
        let text = content_text(content.ok_or_else(|| missing(&content_path))?, &content_path)?;
        let said = MessageTools { calls: Vec::new(), answers: Some(answers) };
        return Ok((Item { role: Role::Tool, text }, said));
    }
    let calls = tools::calls(&mut fields)?;
    let role = role(&mut fields)?;
    if role != Role::Assistant && !calls.is_empty() {
        let path = fields.path("tool_calls");
        return Err(ApiError::invalid(
            Some(path.clone()),
            format!("Invalid '{path}': only the assistant calls tools."),
        ));
    }
    refuse_calls(&mut fields)?;
    let text = match content {
        None if !calls.is_empty() => String::new(),
        None => return Err(missing(&content_path)),
        Some(content) => content_text(content, &content_path)?,
    };
    Ok((Item { role, text }, MessageTools { calls, answers: None }))
}

/// Reads one message.
pub(crate) fn message(value: Value, path: &str) -> Result<Item, ApiError> {
    let mut fields = Object::at(value, path)?;
    check_kind(&mut fields)?;
    let role = role(&mut fields)?;
    refuse_calls(&mut fields)?;
    let content_path = fields.path("content");
    let content = fields.take("content").ok_or_else(|| missing(&content_path))?;
    Ok(Item { role, text: content_text(content, &content_path)? })
}

fn check_count(count: usize, path: &str) -> Result<(), ApiError> {
    match count {
        0 => Err(ApiError::invalid(Some(path.into()), format!("Invalid '{path}': expected at least one message."))),
        1..=MAX_MESSAGES => Ok(()),
        _ => {
            let message = format!("Invalid '{path}': at most {MAX_MESSAGES} messages.");
            Err(ApiError::invalid(Some(path.into()), message))
        }
    }
}

/// Items of the responses face say `"type": "message"` or nothing.
fn check_kind(fields: &mut Object) -> Result<(), ApiError> {
    let path = fields.path("type");
    match fields.string("type")?.as_deref() {
        None | Some("message") => Ok(()),
        Some(other) => {
            Err(ApiError::unsupported(path, format!("Items of type '{other}' are not supported by this server.")))
        }
    }
}

fn role(fields: &mut Object) -> Result<Role, ApiError> {
    let path = fields.path("role");
    match fields.required_string("role")?.as_str() {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => {
            Err(ApiError::unsupported(path, "Messages of the role 'tool' are not supported by this server."))
        }
        other => {
            let message =
                format!("Invalid value: '{other}'. Supported values are: 'system', 'developer', 'user', 'assistant'.");
            Err(ApiError::invalid(Some(path), message))
        }
    }
}

/// Calls of tools cannot be rendered into a prompt yet; leaving them out would change the conversation.
fn refuse_calls(fields: &mut Object) -> Result<(), ApiError> {
    for name in ["tool_calls", "function_call", "audio"] {
        let path = fields.path(name);
        if fields.take(name).is_some_and(|value| value != Value::Array(Vec::new())) {
            return Err(ApiError::unsupported(path.clone(), format!("'{path}' is not supported by this server.")));
        }
    }
    Ok(())
}

/// A message's content: a string, or an array of text parts.
pub(crate) fn content_text(content: Value, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of content parts", &other)),
    };
    if parts.is_empty() {
        return Err(ApiError::invalid(
            Some(path.into()),
            format!("Invalid '{path}': expected at least one content part."),
        ));
    }
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        text.push_str(&part_text(part, &format!("{path}[{index}]"))?);
    }
    Ok(text)
}

fn part_text(part: Value, path: &str) -> Result<String, ApiError> {
    let mut fields = Object::at(part, path)?;
    let kind_path = fields.path("type");
    match fields.required_string("type")?.as_str() {
        "text" | "input_text" | "output_text" => fields.required_string("text"),
        "refusal" => fields.required_string("refusal"),
        other @ ("image_url" | "input_image" | "input_audio" | "file" | "input_file") => Err(ApiError::unsupported(
            kind_path,
            format!("Content parts of type '{other}' are not supported by this server; it takes text."),
        )),
        other => {
            let message =
                format!("Invalid value: '{other}'. Supported values are: 'text', 'input_text', 'output_text'.");
            Err(ApiError::invalid(Some(kind_path), message))
        }
    }
}
