//! What a reply is to be held to: `response_format` of chat completions, `text.format` of responses.

use parlance_cluster_protocol::OutputFormat;
use parlance_inference_engine::MAX_SCHEMA_BYTES;

use crate::{
    api_error::ApiError,
    json::{Object, missing, wrong_type},
};

/// Where chat completions name the format.
const CHAT: &str = parlance_inference_gateway::FORMAT;
/// Where responses do.
pub(crate) const RESPONSES: &str = "text.format";

/// Takes `response_format` out of a chat completion: `{"type": "json_schema", "json_schema": {"name": …, "schema": …}}`.
pub(crate) fn of_chat(body: &mut Object) -> Result<Option<OutputFormat>, ApiError> {
    let Some(mut format) = body.object(CHAT)? else { return Ok(None) };
    match kind(&mut format)? {
        Kind::Text => Ok(None),
        Kind::JsonObject => Ok(Some(OutputFormat::JsonObject)),
        Kind::JsonSchema => {
            let path = format.path("json_schema");
            let mut named = format.object("json_schema")?.ok_or_else(|| missing(&path))?;
            schema(&mut named).map(Some)
        }
    }
}

/// Takes `text` out of a response's request: `{"format": {"type": "json_schema", "name": …, "schema": …}}`.
pub(crate) fn of_response(body: &mut Object) -> Result<Option<OutputFormat>, ApiError> {
    let Some(mut text) = body.object("text")? else { return Ok(None) };
    let Some(mut format) = text.object("format")? else { return Ok(None) };
    match kind(&mut format)? {
        Kind::Text => Ok(None),
        Kind::JsonObject => Ok(Some(OutputFormat::JsonObject)),
        Kind::JsonSchema => schema(&mut format).map(Some),
    }
}

enum Kind {
    Text,
    JsonObject,
    JsonSchema,
}

fn kind(format: &mut Object) -> Result<Kind, ApiError> {
    let path = format.path("type");
    match format.required_string("type")?.as_str() {
        "text" => Ok(Kind::Text),
        "json_object" => Ok(Kind::JsonObject),
        "json_schema" => Ok(Kind::JsonSchema),
        other => {
            let message =
                format!("Invalid value: '{other}'. Supported values are: 'text', 'json_object', 'json_schema'.");
            Err(ApiError::invalid(Some(path), message))
        }
    }
}

/// A schema with its name. Replies are held to it with `strict` and without.
fn schema(named: &mut Object) -> Result<OutputFormat, ApiError> {
    let name = named.name()?;
    named.boolean("strict")?;
    named.string("description")?;
    let path = named.path("schema");
    let schema = named.take("schema").ok_or_else(|| missing(&path))?;
    if !schema.is_object() {
        return Err(wrong_type(&path, "an object", &schema));
    }
    let schema = schema.to_string();
    if schema.len() > MAX_SCHEMA_BYTES {
        return Err(ApiError::invalid(
            Some(path.clone()),
            format!("Invalid '{path}': at most {MAX_SCHEMA_BYTES} bytes."),
        ));
    }
    Ok(OutputFormat::JsonSchema { name, schema })
}
