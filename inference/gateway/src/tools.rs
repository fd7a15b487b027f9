//! From the tools of a request to what a replica is asked: what the model is told, and what its reply is held to.

use parlance_inference_engine::{
    ChatMessage, EngineError, Grammar, MessageTools, PreparedPrompt, Replica, Tool, ToolPrompt, ToolSyntax,
};
use serde_json::{Value, json};

use crate::{CallSyntax, GatewayError};

/// The parameter that errors about tools name.
const TOOLS: &str = "tools";

/// The tools of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolUse {
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether it does.
    pub choice: ToolChoice,
    /// What each message of the request has to do with tools, message by message.
    pub messages: Vec<MessageTools>,
}

/// Whether a model calls a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// It does not, and is not told of any.
    Never,
    /// It decides.
    Free,
    /// It calls one.
    Required,
    /// It calls this one.
    Named(String),
}

impl ToolUse {
    fn syntax(&self, replica: &dyn Replica) -> Result<ToolSyntax, GatewayError> {
        let model = &replica.info().name;
        let none = || refused(format!("cannot be used with {model}: its chat template has none"));
        replica.tool_syntax().ok_or_else(none)
    }

    fn is_forced(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The tools that the choice leaves.
    fn chosen(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| match &self.choice {
            ToolChoice::Never => false,
            ToolChoice::Free | ToolChoice::Required => true,
            ToolChoice::Named(name) => tool.name == *name,
        })
    }
}

/// How the calls of the reply are written; nothing if it has none.
///
/// # Errors
///
/// [`GatewayError::InvalidValue`] if the model has no tools.
pub fn call_syntax(replica: &dyn Replica, tools: &ToolUse) -> Result<Option<CallSyntax>, GatewayError> {
    let syntax = tools.syntax(replica)?;
    Ok(match tools.choice {
        ToolChoice::Never => None,
        ToolChoice::Free => Some(CallSyntax::Free(syntax)),
        ToolChoice::Required | ToolChoice::Named(_) => Some(CallSyntax::Forced),
    })
}

/// Renders the messages with the tools.
pub(crate) fn prepare(
    replica: &dyn Replica,
    messages: &[ChatMessage<'_>],
    tools: &ToolUse,
    reserve: u32,
) -> Result<PreparedPrompt, GatewayError> {
    let syntax = tools.syntax(replica)?;
    if tools.messages.len() != messages.len() {
        return Err(refused("cannot be used with messages of which some are left out"));
    }
    let offered = if tools.choice == ToolChoice::Never { &[][..] } else { &tools.tools };
    let lead = if tools.is_forced() { syntax.lead() } else { "" };
    Ok(replica.prepare_with_tools(messages, ToolPrompt { tools: offered, messages: &tools.messages, lead }, reserve)?)
}

/// What a reply is held to that must be a call.
pub(crate) fn grammar(replica: &dyn Replica, tools: &ToolUse) -> Result<Option<Grammar>, GatewayError> {
    if !tools.is_forced() {
        return Ok(None);
    }
    let schema = call_schema(tools.chosen(), tools.syntax(replica)?)?;
    let compiled = replica.compile(&schema).map_err(|error| match error {
        EngineError::Schema(problem) => refused(format!("have parameters that cannot be followed: {problem}")),
        other => other.into(),
    });
    compiled.map(Some)
}

/// The schema of a call of one of the tools. Each one's parameters keep their own root, which its references mean.
fn call_schema<'a>(tools: impl Iterator<Item = &'a Tool>, syntax: ToolSyntax) -> Result<String, GatewayError> {
    let (mut definitions, mut calls) = (serde_json::Map::new(), Vec::new());
    for (number, tool) in tools.enumerate() {
        let root = format!("tool{number}");
        let no_json = |error| refused(format!("have parameters of {} that are no JSON: {error}", tool.name));
        let mut parameters: Value = serde_json::from_str(&tool.parameters).map_err(no_json)?;
        move_references(&mut parameters, &format!("#/$defs/{root}"));
        definitions.insert(root.clone(), parameters);
        let key = syntax.arguments_key();
        calls.push(json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, key: { "$ref": format!("#/$defs/{root}") } },
            "required": ["name", key],
            "additionalProperties": false,
        }));
    }
    if calls.is_empty() {
        return Err(refused("are fewer than the choice needs: none is left to call"));
    }
    Ok(json!({ "$defs": definitions, "anyOf": calls }).to_string())
}

fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(target) if key == "$ref" && target.starts_with('#') => {
                        *target = format!("{root}{}", &target[1..]);
                    }
                    value => move_references(value, root),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_references(value, root)),
        _ => {}
    }
}

fn refused(message: impl Into<String>) -> GatewayError {
    GatewayError::InvalidValue { param: TOOLS, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_mean_their_own_tools_root() {
        let tool = |name: &str, parameters: &str| Tool {
            name: name.into(),
            description: "{}".into(),
            parameters: parameters.into(),
        };
        let tools = [
            tool("f", r##"{"type":"object","properties":{"x":{"$ref":"#/$defs/a"}},"$defs":{"a":{"type":"string"}}}"##),
            tool("g", r##"{"properties":{"$ref":{"type":"string"},"again":{"$ref":"#"}}}"##),
        ];
        let schema: Value =
            serde_json::from_str(&call_schema(tools.iter(), ToolSyntax::Llama).expect("a schema")).expect("JSON");
        assert_eq!(schema["$defs"]["tool0"]["properties"]["x"]["$ref"], "#/$defs/tool0/$defs/a");
        assert_eq!(schema["$defs"]["tool1"]["properties"]["again"]["$ref"], "#/$defs/tool1");
        assert_eq!(schema["anyOf"][1]["properties"]["parameters"]["$ref"], "#/$defs/tool1");
        assert!(call_schema([].into_iter(), ToolSyntax::Hermes).is_err());
    }
}
