//! Tools of a chat completion: what a request says of them, and the calls in a reply.

use parlance_cluster_protocol::TurnId;
use parlance_inference_engine::{MessageTools, Tool, ToolCall};
use parlance_inference_gateway::{CallReader, CallSyntax, Part, ToolChoice, ToolUse};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    api_error::ApiError,
    json::{Object, missing, wrong_type},
};

/// The most tools of a request, and the most calls of a message.
const MAX_TOOLS: usize = 128;
/// The longest id of a call, in bytes.
const MAX_ID: usize = 256;
/// Characters of an id that is made here: some templates want exactly so many letters and digits.
const ID_LENGTH: usize = 9;

/// Takes `tools` and `tool_choice` out of a request, to go with what its messages have to do with tools. Nothing, if none of it does.
pub(crate) fn tool_use(body: &mut Object, messages: Vec<MessageTools>) -> Result<Option<ToolUse>, ApiError> {
    let values = body.array("tools")?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        return Err(ApiError::invalid(Some("tools".into()), format!("Invalid 'tools': at most {MAX_TOOLS} tools.")));
    }
    let numbered = values.into_iter().enumerate();
    let tools =
        numbered.map(|(index, value)| tool(value, &format!("tools[{index}]"))).collect::<Result<Vec<_>, _>>()?;
    let choice = choice(body, &tools)?;
    let concerned = !tools.is_empty() || messages.iter().any(|said| *said != MessageTools::default());
    Ok(concerned.then_some(ToolUse { tools, choice, messages }))
}

fn tool(value: Value, path: &str) -> Result<Tool, ApiError> {
    let mut fields = Object::at(value, path)?;
    is_function(&mut fields)?;
    let mut function = fields.object("function")?.ok_or_else(|| missing(&fields.path("function")))?;
    let name = function.name()?;
    let description = function.string("description")?;
    function.boolean("strict")?;
    let parameters_path = function.path("parameters");
    let parameters = match function.take("parameters") {
        None => json!({ "type": "object", "properties": {} }),
        Some(parameters @ Value::Object(_)) => parameters,
        Some(other) => return Err(wrong_type(&parameters_path, "an object", &other)),
    };
    let mut described = json!({ "type": "function", "function": { "name": name } });
    if let Some(description) = description {
        described["function"]["description"] = description.into();
    }
    described["function"]["parameters"] = parameters.clone();
    Ok(Tool { name, description: described.to_string(), parameters: parameters.to_string() })
}

fn is_function(fields: &mut Object) -> Result<(), ApiError> {
    let path = fields.path("type");
    match fields.required_string("type")?.as_str() {
        "function" => Ok(()),
        other => Err(ApiError::unsupported(path, format!("Tools of type '{other}' are not supported by this server."))),
    }
}

fn choice(body: &mut Object, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let invalid = |message: String| ApiError::invalid(Some("tool_choice".into()), message);
    let choice = match body.take("tool_choice") {
        None if tools.is_empty() => ToolChoice::Never,
        None => ToolChoice::Free,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => ToolChoice::Never,
            "auto" if tools.is_empty() => ToolChoice::Never,
            "auto" => ToolChoice::Free,
            "required" => ToolChoice::Required,
            other => {
                let supported = "'none', 'auto', 'required' and an object that names a function";
                return Err(invalid(format!("Invalid value: '{other}'. Supported values are: {supported}.")));
            }
        },
        Some(value) => {
            let mut fields = Object::at(value, "tool_choice")?;
            is_function(&mut fields)?;
            let mut function = fields.object("function")?.ok_or_else(|| missing("tool_choice.function"))?;
            ToolChoice::Named(function.name()?)
        }
    };
    match &choice {
        ToolChoice::Required if tools.is_empty() => {
            Err(invalid("'tool_choice' is 'required' without any tool.".into()))
        }
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(invalid(format!("'tool_choice' names '{name}', which is not in 'tools'.")))
        }
        _ => Ok(choice),
    }
}

/// Takes the calls out of a message of the model.
pub(crate) fn calls(message: &mut Object) -> Result<Vec<ToolCall>, ApiError> {
    let path = message.path("tool_calls");
    let values = message.array("tool_calls")?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        return Err(ApiError::invalid(Some(path.clone()), format!("Invalid '{path}': at most {MAX_TOOLS} calls.")));
    }
    let numbered = values.into_iter().enumerate();
    numbered.map(|(index, value)| call(value, &format!("{path}[{index}]"))).collect()
}

fn call(value: Value, path: &str) -> Result<ToolCall, ApiError> {
    let mut fields = Object::at(value, path)?;
    is_function(&mut fields)?;
    let id_path = fields.path("id");
    let id = fields.required_string("id")?;
    if id.is_empty() || id.len() > MAX_ID {
        return Err(ApiError::invalid(Some(id_path.clone()), format!("Invalid '{id_path}': 1 to {MAX_ID} bytes.")));
    }
    let mut function = fields.object("function")?.ok_or_else(|| missing(&fields.path("function")))?;
    let name = function.name()?;
    let arguments_path = function.path("arguments");
    let arguments = function.required_string("arguments")?;
    if !serde_json::from_str::<Value>(&arguments).is_ok_and(|arguments| arguments.is_object()) {
        let message = format!("Invalid '{arguments_path}': expected the text of a JSON object.");
        return Err(ApiError::invalid(Some(arguments_path), message));
    }
    Ok(ToolCall { id, name, arguments })
}

/// A call as chat completions show it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CallObject {
    /// Its number in the reply; in streams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionObject,
}

#[derive(Debug, Clone, Serialize)]
struct FunctionObject {
    name: String,
    arguments: String,
}

/// The calls of one reply, as they come out of its text.
pub(crate) struct Calls {
    reader: CallReader,
    turn: TurnId,
    /// Whether there may be several; else those behind the first are left out.
    parallel: bool,
    /// Calls so far.
    count: usize,
}

/// What came out of a piece of text.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) text: String,
    pub(crate) calls: Vec<CallObject>,
}

impl Calls {
    /// The calls of `turn`.
    pub(crate) fn new(syntax: CallSyntax, turn: TurnId, parallel: bool) -> Self {
        Self { reader: CallReader::new(syntax), turn, parallel, count: 0 }
    }

    /// Takes more text.
    pub(crate) fn push(&mut self, text: &str, streamed: bool) -> Read {
        let parts = self.reader.push(text);
        self.read(parts, streamed)
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self, streamed: bool) -> Read {
        let parts = self.reader.finish();
        self.read(parts, streamed)
    }

    /// Whether the reply has any.
    pub(crate) fn any(&self) -> bool {
        self.count > 0
    }

    fn read(&mut self, parts: Vec<Part>, streamed: bool) -> Read {
        let mut read = Read::default();
        for part in parts {
            match part {
                // The line breaks between calls say nothing.
                Part::Text(text) if self.count > 0 && text.trim().is_empty() => {}
                Part::Text(text) => read.text.push_str(&text),
                Part::Call(_) if self.count > 0 && !self.parallel => {}
                Part::Call(call) => {
                    let function = FunctionObject { name: call.name, arguments: call.arguments };
                    let index = streamed.then_some(self.count);
                    read.calls.push(CallObject { index, id: self.fresh_id(), kind: "function", function });
                    self.count += 1;
                }
            }
        }
        read
    }

    /// The same on every node: from the turn and the call's number.
    fn fresh_id(&self) -> String {
        let digest = Sha256::digest(format!("call {} of {}", self.count, self.turn));
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..ID_LENGTH].to_owned()
    }
}
