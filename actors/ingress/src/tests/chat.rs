//! Chat completions, stateless and durable.

use parlance_actors_runtime::StatelessRequest;
use parlance_cluster_protocol::{GenerationOptions, Item, Role, TurnId};
use serde_json::{Value, json};

use super::{FAST, Face, SLOW, mark};

const CHAT: &str = "/v1/chat/completions";

fn ask(text: &str) -> Value {
    json!({ "model": "scripted", "messages": [{ "role": "user", "content": text }] })
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_stateless_call_is_answered() {
    let face = Face::new(FAST).await;
    let mut body = ask("hello");
    body["metadata"] = json!({"a": "b"});
    body["logit_bias"] = json!({});
    body["n"] = json!(1);
    let answer = face.post(CHAT, &[("x-request-id", "mine-1")], body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert!(answer.header("x-turn-id").is_none() && answer.header("x-session-id").is_none());
    let json = answer.json();
    assert!(content(&json).starts_with(&mark("hello")));
    assert!(json["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert_eq!((&json["object"], &json["model"]), (&json!("chat.completion"), &json!("scripted")));
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    let usage = &json["usage"];
    let total = usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(total, usage["total_tokens"].as_u64());
    assert!(json["system_fingerprint"].is_string());
}

#[tokio::test]
async fn content_parts_are_one_text_and_the_header_names_the_model() {
    let face = Face::new(FAST).await;
    let parts = json!([{ "type": "text", "text": "hel" }, { "type": "text", "text": "lo" }]);
    let body = json!({ "model": "no-such", "messages": [{ "role": "user", "content": parts }] });
    let answer = face.post(CHAT, &[("x-model-id", "scripted")], body.to_string()).await;
    assert!(content(&answer.json()).starts_with(&mark("hello")), "{}", answer.body);
}

#[tokio::test]
async fn a_stream_is_chunks_and_an_end_mark() {
    let face = Face::new(FAST).await;
    let mut body = ask("hello");
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let answer = face.post(CHAT, &[], body.to_string()).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = answer.events();
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(text.starts_with(&mark("hello")));
    let (usage, rest) = chunks.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(rest.last().expect("a last chunk")["choices"][0]["finish_reason"], "stop");
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
}

#[tokio::test]
async fn a_session_remembers_and_takes_its_prompt_once() {
    let face = Face::new(FAST).await;
    let with_system = |system: &str, text: &str| {
        json!({ "messages": [{ "role": "system", "content": system }, { "role": "user", "content": text }] })
            .to_string()
    };
    let headers = [("x-session-id", "s1")];
    let first = face.post(CHAT, &headers, with_system("be kind", "one")).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.header("x-session-id"), Some("s1"));
    assert_eq!(first.header("x-turn-id").map(str::len), Some(32));
    let second = face.post(CHAT, &headers, with_system("be rude", "two")).await;
    assert_ne!(first.header("x-turn-id"), second.header("x-turn-id"));
    assert_eq!(face.get("/v1/conversations/s1").await.json()["system_prompt"], "be kind");
    let items = face.get("/v1/conversations/s1/items?order=asc").await.json();
    let said: Vec<&str> =
        items["data"].as_array().expect("items").iter().filter_map(|item| item["role"].as_str()).collect();
    assert_eq!(said, ["user", "assistant", "user", "assistant"]);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer() {
    let face = Face::new(FAST).await;
    for session in [None, Some("s1")] {
        let key = format!("key-{session:?}");
        let mut headers = vec![("idempotency-key", key.as_str())];
        headers.extend(session.map(|session| ("x-session-id", session)));
        let first = face.post(CHAT, &headers, ask("hello").to_string()).await;
        let again = face.post(CHAT, &headers, ask("hello").to_string()).await;
        assert_eq!(first.status, 200, "{}", first.body);
        assert_eq!(first.json(), again.json());
        assert_eq!(first.header("idempotency-replayed"), None);
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(first.header("x-turn-id"), again.header("x-turn-id"));
        let other = face.post(CHAT, &headers, ask("other").to_string()).await;
        assert_eq!(other.error().0, 409);
        assert_eq!(other.error().1, "idempotency_conflict");
        assert_eq!(other.header("x-should-retry"), Some("false"));
    }
    let items = face.get("/v1/conversations/s1/items").await.json();
    assert_eq!(items["data"].as_array().map(Vec::len), Some(2), "it ran once");
}

#[tokio::test]
async fn a_durable_stream_goes_on_without_its_client() {
    let face = Face::new("scripted:ttft_ms=0,token_ms=2,tokens=100,seed=0").await;
    let mut body = ask("hello");
    body["stream"] = json!(true);
    let request = super::request(http::Method::POST, CHAT, &[("x-session-id", "s1")], body.to_string());
    let response = tower::ServiceExt::oneshot(face.router.clone(), request).await.expect("infallible");
    let turn = response.headers()["x-turn-id"].to_str().expect("text").to_owned();
    drop(response);
    let resumed = face.get(&format!("/v1/responses/resp_{turn}?stream=true&starting_after=8")).await;
    let events = resumed.events();
    let completed = events.last().expect("events");
    assert_eq!(completed["type"], "response.completed");
    let whole = completed["response"]["output"][0]["content"][0]["text"].as_str().expect("a text").to_owned();
    let rest: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert!(whole.starts_with(&mark("hello")));
    assert_eq!(rest, whole[5..], "3 numbers before the text, so 8 stands for 5 bytes");
}

#[tokio::test]
async fn a_session_takes_a_bounded_number_of_turns_at_once() {
    let face = std::sync::Arc::new(Face::new(SLOW).await);
    let mut refused = None;
    for number in 0..40 {
        let mut body = ask(&number.to_string());
        body["stream"] = json!(true);
        let request = super::request(http::Method::POST, CHAT, &[("x-session-id", "s1")], body.to_string());
        let response = tower::ServiceExt::oneshot(face.router.clone(), request).await.expect("infallible");
        if response.status() != 200 {
            refused = Some((response.status(), response.headers().clone()));
            break;
        }
    }
    let (status, headers) = refused.expect("the queue is bounded");
    assert_eq!(status, 429);
    assert_eq!(headers["retry-after"], "1");
    assert!(!headers.contains_key("x-turn-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_room_refuses_with_a_time_and_accepts_nothing() {
    let face = Face::new("scripted:ttft_ms=90000,tokens=1,lanes=1,queue=1").await;
    let mut taken = Vec::new();
    for id in 0..2 {
        let request = StatelessRequest {
            id: TurnId(id),
            tenant: "default".into(),
            input: vec![Item { role: Role::User, text: "first".into() }],
            options: GenerationOptions::default(),
            seed: None,
            logprobs: None,
            tools: None,
        };
        taken.push(face.node.generate(request).await.expect("there is room"));
    }
    let calls: [&[(&str, &str)]; 2] = [&[], &[("x-session-id", "crowded")]];
    for headers in calls {
        let answer = face.post(CHAT, headers, ask("late").to_string()).await;
        assert_eq!(answer.error(), (429, "queue_full".into(), None));
        assert_eq!(answer.header("retry-after"), Some("90"), "a reply takes a lane for 90 s");
        assert_eq!((answer.header("x-turn-id"), answer.header("x-should-retry")), (None, None));
    }
}
