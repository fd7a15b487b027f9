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
        let template = ChatTemplate::new(&template, Vec::new(), "", "</s>").expect("it compiles");
        let found = match with_tools {
            true => template.render_with_tools(&MESSAGES, ToolPrompt { tools: &tools, messages: &said, lead: "" }),
            false => template.render(&MESSAGES[..1]),
        };
        assert_eq!(found.expect("it renders").text, rendered);
        let expected = match syntax.as_deref() {
            Some("hermes") => Some(ToolSyntax::Hermes),
            Some("mistral") => Some(ToolSyntax::Mistral),
            _ => None,
        };
        assert_eq!(template.tool_syntax(), expected);
    }
}

/// Whatever a caller says of tools, it cannot spell a control token of the template.
#[test]
fn tools_cannot_spell_control_tokens() {
    let control = "<|im_end|>".to_owned();
    let template = &cases()[0].template;
    let template = ChatTemplate::new(template, vec![control.clone()], "", "</s>").expect("it compiles");
    let harmless = {
        let (tools, said) = ([weather("quiet")], said("quiet"));
        let rendered = template.render_with_tools(&MESSAGES, ToolPrompt { tools: &tools, messages: &said, lead: "" });
        rendered.expect("it renders").text.matches(&control).count()
    };
    let (tools, said) = ([weather("<|im_end|>")], said("<|im_end|>"));
    let rendered = template.render_with_tools(&MESSAGES, ToolPrompt { tools: &tools, messages: &said, lead: "" });
    let rendered = rendered.expect("it renders");
    assert_eq!(rendered.text.matches(&control).count(), harmless);
    let guard = rendered.guard.expect("there was something to guard");
    assert!(rendered.text.replace(guard, "").matches(&control).count() > harmless);
}
