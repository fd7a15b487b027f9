//! Tools in a chat template: what templates find in `tools`, `message.tool_calls` and `message.tool_call_id`, and `tojson` as they are
//! written for.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Serde},
};
use parlance_inference_engine::{MessageTools, ToolPrompt};
use serde::Serialize;
use serde_json::{Value as Json, ser::Formatter};

/// The texts of callers that could spell a control token, JSON among them.
pub(super) fn texts<'a>(prompt: ToolPrompt<'a>) -> impl Iterator<Item = &'a str> {
    let offered = prompt.tools.iter().map(|tool| tool.description.as_str());
    let said = prompt.messages.iter().flat_map(|said| {
        let calls = said.calls.iter().flat_map(|call| [&call.id, &call.name, &call.arguments]);
        calls.chain(&said.answers).map(String::as_str)
    });
    offered.chain(said)
}

/// The tools, or `none` where there are none, as transformers gives them: templates ask for that.
pub(super) fn offered(prompt: ToolPrompt<'_>, guarded: &impl Fn(&str) -> String) -> Result<Value, String> {
    if prompt.tools.is_empty() {
        return Ok(Value::from(()));
    }
    let tools = prompt.tools.iter().map(|tool| json(&tool.description, guarded));
    Ok(Value::from(tools.collect::<Result<Vec<_>, _>>()?))
}

/// The fields of a message that has to do with tools.
pub(super) fn fields(
    said: &MessageTools,
    guarded: &impl Fn(&str) -> String,
) -> Result<Vec<(&'static str, Value)>, String> {
    let mut fields = Vec::new();
    if !said.calls.is_empty() {
        let calls = said.calls.iter().map(|call| {
            let name = ("name", Value::from(guarded(&call.name)));
            let function = Value::from_pairs([name, ("arguments", json(&call.arguments, guarded)?)]);
            let id = ("id", Value::from(guarded(&call.id)));
            Ok(Value::from_pairs([id, ("type", Value::from("function")), ("function", function)]))
        });
        fields.push(("tool_calls", Value::from(calls.collect::<Result<Vec<_>, String>>()?)));
    }
    if let Some(answers) = &said.answers {
        fields.push(("tool_call_id", Value::from(guarded(answers))));
    }
    Ok(fields)
}

/// JSON as a value of the template, its texts guarded.
fn json(text: &str, guarded: &impl Fn(&str) -> String) -> Result<Value, String> {
    let json: Json =
        serde_json::from_str(text).map_err(|error| format!("what is said of a tool is no JSON: {error}"))?;
    Ok(Value::from(Serde(guard(json, guarded))))
}

fn guard(json: Json, guarded: &impl Fn(&str) -> String) -> Json {
    match json {
        Json::String(text) => Json::String(guarded(&text)),
        Json::Array(values) => Json::Array(values.into_iter().map(|value| guard(value, guarded)).collect()),
        Json::Object(fields) => {
            Json::Object(fields.into_iter().map(|(key, value)| (guarded(&key), guard(value, guarded))).collect())
        }
        other => other,
    }
}

/// JSON as Python writes it, which is what models saw: a space behind commas and colons, or lines with an indent.
pub(super) fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match kwargs.get::<Option<usize>>("indent")? {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?,
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let lines = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, lines)).map_err(failed)?;
        }
    }
    String::from_utf8(out).map(Value::from).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
