//! Replies in JSON, on both faces. The scripted model says the shortest document that comes to its mind.

use serde_json::{Value, json};

use super::{FAST, Face};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": { "city": { "enum": ["Paris"] }, "people": { "type": "integer", "minimum": 20, "maximum": 29 } },
        "required": ["city", "people"],
        "additionalProperties": false,
    })
}

fn ask(format: Value) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "response_format": format })
}

fn with_schema() -> Value {
    ask(json!({ "type": "json_schema", "json_schema": { "name": "city", "strict": true, "schema": schema() } }))
}

fn content(answer: &Value) -> Value {
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_in_the_format_asked_for() {
    let face = Face::new(FAST).await;
    let expected = json!({ "city": "Paris", "people": 20 });
    for headers in [&[][..], &[("x-session-id", "s")], &[("idempotency-key", "k")]] {
        let answer = face.post(CHAT, headers, with_schema().to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(content(&answer.json()), expected, "{headers:?}");
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    let object = face.post(CHAT, &[], ask(json!({ "type": "json_object" })).to_string()).await.json();
    assert!(content(&object).is_object());
    let text = face.post(CHAT, &[], ask(json!({ "type": "text" })).to_string()).await.json();
    assert!(
        text["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.starts_with(&super::mark("hello")))
    );
}

#[tokio::test]
async fn a_stream_and_a_cut_reply_are_pieces_of_the_document() {
    let face = Face::new(FAST).await;
    let mut body = with_schema();
    body["stream"] = json!(true);
    body["logprobs"] = json!(true);
    let events = face.post(CHAT, &[], body.to_string()).await.events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value["city"] == "Paris"), "{text}");
    let mut short = with_schema();
    short["max_tokens"] = json!(5);
    let cut = face.post(CHAT, &[], short.to_string()).await.json();
    let cut = &cut["choices"][0];
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["message"]["content"], text[..5]);
}

#[tokio::test]
async fn a_response_is_made_in_its_format_and_says_so() {
    let face = Face::new(FAST).await;
    let format = json!({ "type": "json_schema", "name": "city", "schema": schema(), "strict": true });
    for store in [true, false] {
        let body = json!({ "input": "hello", "store": store, "text": { "format": format } });
        let answer = face.post(RESPONSES, &[], body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["text"]["format"], format);
        let text = answer["output"][0]["content"][0]["text"].as_str().expect("a text");
        assert_eq!(serde_json::from_str::<Value>(text).expect("JSON")["people"], 20);
    }
}

#[tokio::test]
async fn a_schema_that_cannot_be_followed_makes_no_turn() {
    let face = Face::new(FAST).await;
    let mut body = with_schema();
    body["response_format"]["json_schema"]["schema"] = json!({ "type": "array", "uniqueItems": true });
    for headers in [&[][..], &[("x-session-id", "s")], &[("idempotency-key", "k")]] {
        let answer = face.post(CHAT, headers, body.to_string()).await;
        assert_eq!(answer.error(), (400, "invalid_value".into(), Some("response_format".into())));
        assert!(answer.body.contains("uniqueItems"), "{}", answer.body);
        assert!(answer.header("x-turn-id").is_none());
    }
    assert_eq!(face.get("/v1/conversations").await.json()["data"], json!([]), "nothing was made of it");
    body["response_format"]["json_schema"]["schema"] = json!({ "description": "x".repeat(70_000) });
    let answer = face.post(CHAT, &[], body.to_string()).await;
    assert_eq!(answer.error().2.as_deref(), Some("response_format.json_schema.schema"));
}
