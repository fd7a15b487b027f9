//! Tools of stateless chat completions. The scripted model writes the call that it is told to write.

use serde_json::{Value, json};

use super::{FAST, Face, mark};

const CHAT: &str = "/v1/chat/completions";
const TELLS: &str = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}</tool_call>";

fn tool(name: &str) -> Value {
    let city = json!({ "$ref": "#/$defs/city" });
    let parameters = json!({
        "type": "object",
        "properties": { "city": city, "days": { "type": "integer", "minimum": 1, "maximum": 3 } },
        "required": ["city", "days"],
        "additionalProperties": false,
        "$defs": { "city": { "enum": ["Paris", "Köln"] } },
    });
    json!({ "type": "function", "function": { "name": name, "description": "Says how it is", "parameters": parameters } })
}

fn ask(said: &str, more: Value) -> Value {
    let mut asked =
        json!({ "messages": [{ "role": "user", "content": said }], "tools": [tool("weather"), tool("time")] });
    asked.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    asked
}

#[tokio::test]
async fn the_model_decides_and_its_call_is_shown_as_one() {
    let face = Face::new(FAST).await;
    let answer = face.post(CHAT, &[], ask(TELLS, json!({})).to_string()).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], format!("{} ", mark(TELLS)));
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    assert_eq!(call["function"]["arguments"], r#"{"city":"Köln"}"#);
    assert_eq!(call["id"].as_str().map(str::len), Some(9));
    let plain = face.post(CHAT, &[], ask("hello", json!({ "tool_choice": "auto" })).to_string()).await.json();
    assert_eq!(plain["choices"][0]["finish_reason"], "stop");
    assert!(plain["choices"][0]["message"].get("tool_calls").is_none(), "{plain}");
}

#[tokio::test]
async fn a_stream_has_the_same_calls() {
    let two = format!("{TELLS}\n{TELLS}");
    for script in [FAST, "scripted:ttft_ms=0,token_ms=1,tokens=6,seed=0"] {
        let face = Face::new(script).await;
        for (parallel, count) in [(true, 2), (false, 1)] {
            let asked = ask(&two, json!({ "stream": true, "parallel_tool_calls": parallel }));
            let events = face.post(CHAT, &[], asked.to_string()).await.events();
            let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
            let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
            assert_eq!(text, format!("{} ", mark(&two)));
            let calls: Vec<&Value> =
                deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
            assert_eq!(calls.len(), count, "{events:?}");
            for (index, call) in calls.iter().enumerate() {
                assert_eq!((&call["index"], &call["function"]["name"]), (&json!(index), &json!("weather")));
                assert_eq!(call["function"]["arguments"], r#"{"city":"Köln"}"#);
            }
            let finish = events.iter().rev().find_map(|event| event["choices"][0]["finish_reason"].as_str());
            assert_eq!(finish, Some("tool_calls"));
        }
    }
}

#[tokio::test]
async fn a_required_call_is_held_to_the_schemas() {
    let face = Face::new(FAST).await;
    for (choice, names) in [
        (json!("required"), &["weather", "time"][..]),
        (json!({ "type": "function", "function": { "name": "time" } }), &["time"]),
    ] {
        let answer = face.post(CHAT, &[], ask("hello", json!({ "tool_choice": choice })).to_string()).await.json();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert!(names.contains(&function["name"].as_str().expect("a name")), "{answer}");
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().expect("text")).expect("JSON");
        assert!(["Paris", "Köln"].contains(&arguments["city"].as_str().expect("a city")), "{arguments}");
        assert!((1..=3).contains(&arguments["days"].as_i64().expect("a number")), "{arguments}");
    }
}

#[tokio::test]
async fn results_go_back_to_the_model_and_no_choice_means_no_call() {
    let face = Face::new(FAST).await;
    let call = json!({ "id": "a1b2c3d4e", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } });
    let messages = json!([
        { "role": "user", "content": "How is it?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "a1b2c3d4e", "content": "cloudy" },
    ]);
    let asked = json!({ "messages": messages, "tools": [tool("weather")] });
    let answer = face.post(CHAT, &[], asked.to_string()).await.json();
    assert!(answer["choices"][0]["message"]["content"].as_str().expect("text").starts_with(&mark("cloudy")));
    let without = json!({ "messages": messages });
    assert_eq!(face.post(CHAT, &[], without.to_string()).await.status, 200, "a history alone is understood");
    let answer = face.post(CHAT, &[], ask(TELLS, json!({ "tool_choice": "none" })).to_string()).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], format!("{} {TELLS}", mark(TELLS)), "it is text then");
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_named() {
    let face = Face::new(FAST).await;
    for (more, code, param) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "unsupported_value", "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "invalid_value", "tools[0].function"),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }),
            "invalid_value",
            "tools[0].function.name",
        ),
        (json!({ "tool_choice": "sometimes" }), "invalid_value", "tool_choice"),
        (
            json!({ "tool_choice": { "type": "function", "function": { "name": "other" } } }),
            "invalid_value",
            "tool_choice",
        ),
        (json!({ "tools": [], "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "response_format": { "type": "json_object" } }), "invalid_value", "response_format"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "invalid_value", "messages[0].tool_call_id"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] }] }),
            "invalid_value",
            "messages[0].tool_calls",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "[]" } }] }] }),
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "not": {} } } }], "tool_choice": "required" }),
            "invalid_value",
            "tools",
        ),
    ] {
        let answer = face.post(CHAT, &[], ask("hello", more.clone()).to_string()).await;
        assert_eq!(answer.error(), (400, code.into(), Some(param.into())), "{more}");
    }
    for header in [("x-session-id", "s"), ("idempotency-key", "k")] {
        let refused = face.post(CHAT, &[header], ask("hello", json!({})).to_string()).await;
        assert_eq!(refused.error(), (400, "unsupported_value".into(), Some("tools".into())), "{header:?}");
        assert!(refused.header("x-turn-id").is_none());
    }
}
