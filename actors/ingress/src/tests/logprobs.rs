//! Probabilities of the tokens of stateless chat completions and responses.

use serde_json::{Value, json};

use super::{FAST, Face, mark};

const CHAT: &str = "/v1/chat/completions";

fn ask(top: Value) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "logprobs": true, "top_logprobs": top })
}

fn text_of(tokens: &[Value]) -> String {
    tokens.iter().filter_map(|token| token["token"].as_str()).collect()
}

#[tokio::test]
async fn tokens_come_with_their_probabilities() {
    let face = Face::new(FAST).await;
    let answer = face.post(CHAT, &[], ask(json!(2)).to_string()).await.json();
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().expect("a count"));
    assert_eq!(text_of(tokens), choice["message"]["content"]);
    assert_eq!(tokens[0]["token"], mark("hello"));
    assert_eq!(tokens[0]["bytes"], json!(mark("hello").as_bytes()));
    assert_eq!(tokens[0]["logprob"], 0.0, "the script is certain");
    assert_eq!(tokens[0]["top_logprobs"][0]["token"], tokens[0]["token"]);
    let plain = face.post(CHAT, &[], ask(Value::Null).to_string()).await.json();
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn a_streams_probabilities_are_those_of_its_text() {
    let face = Face::new("scripted:ttft_ms=0,token_ms=1,tokens=6,seed=0").await;
    let mut body = ask(json!(0));
    body["stream"] = json!(true);
    let events = face.post(CHAT, &[], body.to_string()).await.events();
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
    let mut tokens = Vec::new();
    for delta in &deltas {
        let own = delta["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        assert_eq!(text_of(&own), delta["delta"]["content"].as_str().unwrap_or_default());
        tokens.extend(own);
    }
    assert_eq!(tokens.len(), 6);
}

#[tokio::test]
async fn a_durable_turn_has_none() {
    let face = Face::new(FAST).await;
    for header in [("x-session-id", "s"), ("idempotency-key", "k")] {
        let answer = face.post(CHAT, &[header], ask(json!(1)).to_string()).await;
        assert_eq!(answer.error(), (400, "unsupported_value".into(), Some("logprobs".into())));
        assert!(answer.header("x-turn-id").is_none());
    }
    assert_eq!(face.get("/v1/conversations").await.json()["data"], json!([]), "nothing was made of it");
}

const RESPONSES: &str = "/v1/responses";

fn response(more: Value) -> Value {
    let mut asked =
        json!({ "input": "hello", "store": false, "include": ["message.output_text.logprobs"], "top_logprobs": 2 });
    asked.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    asked
}

#[tokio::test]
async fn an_unstored_response_comes_with_them() {
    let face = Face::new(FAST).await;
    let answer = face.post(RESPONSES, &[], response(json!({})).to_string()).await.json();
    let content = &answer["output"][0]["content"][0];
    let tokens = content["logprobs"].as_array().expect("tokens");
    assert_eq!(tokens.len() as u64, answer["usage"]["output_tokens"].as_u64().expect("a count"));
    assert_eq!(text_of(tokens), content["text"]);
    assert_eq!(tokens[0]["token"], mark("hello"));
    assert_eq!(tokens[0]["top_logprobs"][0]["token"], tokens[0]["token"]);
    let plain = face.post(RESPONSES, &[], json!({ "input": "hello", "store": false, "include": [] }).to_string()).await;
    assert_eq!(plain.json()["output"][0]["content"][0]["logprobs"], json!([]));
}

#[tokio::test]
async fn a_response_streams_them_with_its_text() {
    let face = Face::new("scripted:ttft_ms=0,token_ms=1,tokens=6,seed=0").await;
    let events = face.post(RESPONSES, &[], response(json!({ "stream": true })).to_string()).await.events();
    let of_kind = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let mut streamed = Vec::new();
    for delta in of_kind("response.output_text.delta") {
        let own = delta["logprobs"].as_array().expect("tokens").clone();
        assert_eq!(text_of(&own), delta["delta"]);
        streamed.extend(own);
    }
    assert_eq!(streamed.len(), 6);
    let streamed = Value::Array(streamed);
    assert_eq!(of_kind("response.output_text.done")[0]["logprobs"], streamed);
    assert_eq!(of_kind("response.content_part.done")[0]["part"]["logprobs"], streamed);
    assert_eq!(of_kind("response.output_item.done")[0]["item"]["content"][0]["logprobs"], streamed);
    assert_eq!(of_kind("response.completed")[0]["response"]["output"][0]["content"][0]["logprobs"], streamed);
}

#[tokio::test]
async fn a_stored_response_has_none() {
    let face = Face::new(FAST).await;
    for (headers, more) in [
        (&[][..], json!({ "store": true })),
        (&[("idempotency-key", "k")], json!({})),
        (&[("x-session-id", "s")], json!({ "store": true })),
    ] {
        let answer = face.post(RESPONSES, headers, response(more).to_string()).await;
        assert_eq!(answer.error(), (400, "unsupported_value".into(), Some("include".into())), "{headers:?}");
        assert!(answer.header("x-turn-id").is_none());
    }
    let alone = face.post(RESPONSES, &[], r#"{"input": "x", "store": false, "top_logprobs": 1}"#).await;
    assert_eq!(alone.error(), (400, "invalid_value".into(), Some("top_logprobs".into())));
    let wrong = face.post(RESPONSES, &[], r#"{"input": "x", "store": false, "include": [1]}"#).await;
    assert_eq!(wrong.error(), (400, "invalid_value".into(), Some("include".into())));
}
