//! The real model held to JSON: what it says is what was asked for, and its tokenizer's pieces fit the grammar.

mod support;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use parlance_inference_engine::{
    ChatMessage, ChatRole, Engine, EngineOptions, Finish, GenerateEvent, GenerateRequest, PromptBudget, Replica,
};
use parlance_inference_model::Precision;
use serde_json::{Value, json};

const CONTEXT: u32 = 512;

/// What the model answers, greedily, and whether it ended by itself.
fn ask(replica: &dyn Replica, text: &str, schema: Option<&Value>) -> (String, Finish) {
    let messages = [ChatMessage { role: ChatRole::User, content: text }];
    let prompt = replica.prepare(&messages, PromptBudget { reserve: 128, drop_oldest: false }).expect("it fits");
    let request = GenerateRequest {
        logprobs: Some(2),
        grammar: schema.map(|schema| replica.compile(&schema.to_string()).expect("a good schema")),
        ..GenerateRequest::greedy("t", prompt, 128)
    };
    let (told, events) = mpsc::channel();
    replica.submit(request, Box::new(move |event| told.send(event).is_ok())).expect("taken");
    let (mut whole, mut bytes) = (String::new(), Vec::new());
    for event in events {
        match event {
            GenerateEvent::Tokens { text, logprobs, .. } => {
                whole.push_str(&text);
                assert!(logprobs.iter().all(|token| token.token.logprob <= 0.0 && token.top.len() == 2));
                bytes.extend(logprobs.into_iter().flat_map(|token| token.token.bytes));
            }
            GenerateEvent::Finished { finish, .. } => {
                assert_eq!(String::from_utf8_lossy(&bytes), whole);
                return (whole, finish);
            }
            GenerateEvent::Failed(error) => panic!("{error}"),
        }
    }
    panic!("the engine died");
}

#[test]
fn the_model_answers_in_the_shape_asked_for() {
    let loaded = support::model(2, CONTEXT, Precision::Auto);
    let replica = Engine::start(Box::new(loaded.model), loaded.codec, EngineOptions::default());
    let begun = Instant::now();
    replica.compile("{}").expect("any JSON");
    assert!(begun.elapsed() < Duration::from_secs(10), "the vocabulary takes too long: {:?}", begun.elapsed());

    let colour = json!({ "enum": ["rouge", "grün", "青い"] });
    let (answer, finish) = ask(&replica, "Which colour has the sky?", Some(&colour));
    assert!(finish == Finish::Stop && ["\"rouge\"", "\"grün\"", "\"青い\""].contains(&&*answer), "{answer}");

    let person = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 20 }, "age": { "type": "integer", "minimum": 30, "maximum": 49 } },
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let (answer, finish) = ask(&replica, "Tom is 42 years old. Give me name and age.", Some(&person));
    let value: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!((&value["name"], &value["age"], finish), (&json!("Tom"), &json!(42), Finish::Stop), "{answer}");

    let (free, _) = ask(&replica, "Tom is 42 years old. Give me name and age.", None);
    assert!(serde_json::from_str::<Value>(&free).is_err(), "it is the grammar that makes the JSON: {free}");
}
