//! Tools that a model may call: what it is told of them, and what was called before.

/// How a family's models write calls. Which one a model has, its chat template says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolSyntax {
    /// Hermes, Qwen2.5 and Qwen3: `<tool_call>` and an object with `name` and `arguments`, `</tool_call>`.
    Hermes,
    /// Mistral: `[TOOL_CALLS]` and an array of such objects.
    Mistral,
    /// Llama 3: an object with `name` and `parameters`, without a mark.
    Llama,
}

impl ToolSyntax {
    /// The syntax that a chat template tells models to use; none if it has no tools.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        [Self::Mistral, Self::Hermes]
            .into_iter()
            .find(|syntax| source.contains(syntax.mark()))
            .or_else(|| (source.contains("tool_call") && source.contains("\"parameters\"")).then_some(Self::Llama))
    }

    /// What begins a call, or several; nothing where only the whole reply can be one.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Llama => "",
        }
    }

    /// What a reply begins with whose first call is decided on: up to where the call's object begins.
    pub fn lead(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>\n",
            Self::Mistral => "[TOOL_CALLS] [",
            Self::Llama => "",
        }
    }

    /// What the arguments are called.
    pub fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama => "parameters",
        }
    }
}

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What the model is told: the JSON text of `{"type": "function", "function": {…}}`.
    pub description: String,
    /// The JSON schema of its arguments, as text.
    pub parameters: String,
}

/// A call that a model made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Names it in the conversation.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The JSON text of the arguments' object.
    pub arguments: String,
}

/// What a message has to do with tools besides its text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageTools {
    /// The calls that the model made in it.
    pub calls: Vec<ToolCall>,
    /// The call whose result it is.
    pub answers: Option<String>,
}

/// What a prompt says of tools besides its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ToolPrompt<'a> {
    /// What the model may call.
    pub tools: &'a [Tool],
    /// What each message has to do with tools. Invariant: one for each message, or none at all.
    pub messages: &'a [MessageTools],
    /// What the reply begins with already: a part of the prompt in which control tokens count.
    pub lead: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_say_how_calls_are_written() {
        for (source, syntax) in [
            ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
            ("{% if tools %}<tool_call>{% endif %}", Some(ToolSyntax::Hermes)),
            ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", Some(ToolSyntax::Mistral)),
            (
                r#"{% if tools %}{{ '"parameters": ' + tool_call.arguments|tojson }}{% endif %}"#,
                Some(ToolSyntax::Llama),
            ),
            ("{% if tools %}{{- raise_exception('no tools here') }}{% endif %}", None),
        ] {
            assert_eq!(ToolSyntax::of_template(source), syntax, "{source}");
        }
    }
}
