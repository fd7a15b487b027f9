//! Probabilities of the tokens of stateless chat completions.

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
