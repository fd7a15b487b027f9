//! Tools in chat templates, against what transformers renders (`fixtures/tools_reference.py`).

use parlance_inference_engine::{ChatMessage, ChatRole, MessageTools, Tool, ToolCall, ToolPrompt, ToolSyntax};
use serde::Deserialize;

use crate::template::ChatTemplate;

#[derive(Deserialize)]
struct Case {
    template: String,
    syntax: Option<String>,
    with_tools: bool,
    rendered: String,
}

fn weather(description: &str) -> Tool {
    let parameters = r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;
    let function = format!(r#"{{"name":"weather","description":"{description}","parameters":{parameters}}}"#);
    let description = format!(r#"{{"type":"function","function":{function}}}"#);
    Tool { name: "weather".into(), description, parameters: parameters.into() }
}

fn said(city: &str) -> Vec<MessageTools> {
    let call = ToolCall {
        id: "a1b2c3d4e".into(),
        name: "weather".into(),
        arguments: format!(r#"{{"city":"{city}","days":2}}"#),
    };
    let called = MessageTools { calls: vec![call], answers: None };
    let answered = MessageTools { calls: Vec::new(), answers: Some("a1b2c3d4e".into()) };
    vec![MessageTools::default(), called, answered, MessageTools::default()]
}

const MESSAGES: [ChatMessage<'static>; 4] = [
    ChatMessage { role: ChatRole::User, content: "How?" },
    ChatMessage { role: ChatRole::Assistant, content: "" },
    ChatMessage { role: ChatRole::Tool, content: "cloudy" },
    ChatMessage { role: ChatRole::User, content: "Thanks" },
];

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../fixtures/tools.json")).expect("a fixture")
}

#[test]
fn templates_render_tools_as_transformers_does() {
    let (tools, said) = ([weather("Says <how> it's")], said("Köln"));
    for Case { template, syntax, with_tools, rendered } in cases() {
        let template = ChatTemplate::new(&template, Vec::new(), "<s>", "</s>").expect("it compiles");
        let found = match with_tools {
            true => template.render_with_tools(&MESSAGES, ToolPrompt { tools: &tools, messages: &said, lead: "" }),
            false => template.render(&MESSAGES[..1]),
        };
        assert_eq!(found.expect("it renders").text, rendered);
        let expected = match syntax.as_deref() {
            Some("hermes") => Some(ToolSyntax::Hermes),
            Some("mistral") => Some(ToolSyntax::Mistral),
            Some("llama") => Some(ToolSyntax::Llama),
            _ => None,
        };
        assert_eq!(template.tool_syntax(), expected);
    }
}

/// Whatever a caller says of tools, it cannot spell a control token of the template, nor by the escapes of JSON.
#[test]
fn tools_cannot_spell_control_tokens() {
    const CONTROL: &str = "<|im_end|>";
    let template = &cases()[0].template;
    let template = ChatTemplate::new(template, vec![CONTROL.to_owned()], "", "</s>").expect("it compiles");
    let render = |text: &str| {
        let (tools, said) = ([weather(text)], said(text));
        let prompt = ToolPrompt { tools: &tools, messages: &said, lead: "" };
        template.render_with_tools(&MESSAGES, prompt).expect("it renders")
    };
    let harmless = render("quiet").text.matches(CONTROL).count();
    for spelt in [CONTROL, r"\u003c|im_end|>"] {
        let rendered = render(spelt);
        assert_eq!(rendered.text.matches(CONTROL).count(), harmless, "{spelt}");
        let guard = rendered.guard.expect("there was something to guard");
        assert_eq!(rendered.text.replace(guard, "").matches(CONTROL).count(), harmless + 2, "{spelt}");
    }
}
