//! The responses interface.

use serde_json::{Value, json};

use super::{Answer, FAST, Face, SLOW, mark};

const RESPONSES: &str = "/v1/responses";

async fn create(face: &Face, body: Value) -> Value {
    let answer = face.post(RESPONSES, &[], body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_default()
}

fn kinds(answer: &Answer) -> Vec<String> {
    let mut kinds: Vec<String> =
        answer.events().iter().filter_map(|event| event["type"].as_str().map(str::to_owned)).collect();
    kinds.dedup();
    kinds
}

#[tokio::test]
async fn a_response_is_kept_and_continued() {
    let face = Face::new(FAST).await;
    let first = create(&face, json!({ "input": "one", "instructions": "be kind" })).await;
    assert_eq!((&first["status"], &first["object"]), (&json!("completed"), &json!("response")));
    assert!(text(&first).starts_with(&mark("one")));
    let id = first["id"].as_str().expect("an id");
    let fetched = face.get(&format!("{RESPONSES}/{id}")).await.json();
    assert_eq!(text(&fetched), text(&first));
    assert_eq!(fetched["usage"], first["usage"]);

    let second = create(&face, json!({ "input": "two", "previous_response_id": id })).await;
    assert!(second["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64(), "{second}");
    // A fork of the first one goes on from there, without the second.
    let fork = create(&face, json!({ "input": "two", "previous_response_id": id })).await;
    assert_eq!(fork["usage"]["input_tokens"], second["usage"]["input_tokens"]);
    let further = create(&face, json!({ "input": "three", "previous_response_id": fork["id"] })).await;
    assert!(further["usage"]["input_tokens"].as_u64() > fork["usage"]["input_tokens"].as_u64());
}

fn input_tokens(response: &Value) -> u64 {
    response["usage"]["input_tokens"].as_u64().expect("a count")
}

#[tokio::test]
async fn instructions_are_for_one_response_alone() {
    let face = Face::new(FAST).await;
    // The scripted model's tokens are words.
    let first = create(&face, json!({ "input": "one", "instructions": "be kind" })).await;
    assert_eq!((input_tokens(&first), &first["instructions"]), (3, &json!("be kind")));
    let said = 1 + first["usage"]["output_tokens"].as_u64().expect("a count");
    let second = create(&face, json!({ "input": "two", "previous_response_id": first["id"] })).await;
    assert_eq!(input_tokens(&second), said + 1);
    let conversation =
        face.post("/v1/conversations", &[], json!({ "system_prompt": "a b c" }).to_string()).await.json();
    let turn = |more: Value| {
        let mut body = json!({ "input": "one", "conversation": conversation["id"] });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let instructed = create(&face, turn(json!({ "instructions": "be kind" }))).await;
    assert_eq!(input_tokens(&instructed), 3, "in place of the conversation's own");
    let plain = create(&face, turn(json!({}))).await;
    assert_eq!(input_tokens(&plain), 3 + said + 1, "which stays");
}

#[tokio::test]
async fn continuations_of_one_response_do_not_see_each_other() {
    let face = Face::new(FAST).await;
    let first = create(&face, json!({ "input": "one" })).await;
    let next = |text: &str| create(&face, json!({ "input": text, "previous_response_id": first["id"] }));
    let (a, b, c) = tokio::join!(next("a"), next("b"), next("c"));
    let counts = [&a, &b, &c].map(input_tokens);
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[0], counts[2]);
    for (response, said) in [(a, "a"), (b, "b"), (c, "c")] {
        assert!(text(&response).starts_with(&mark(said)));
    }
}

#[tokio::test]
async fn a_keyed_response_is_made_once_and_continued_once() {
    let face = Face::new(FAST).await;
    let post = |key: &'static str, body: Value| {
        let face = &face;
        async move { face.post(RESPONSES, &[("idempotency-key", key)], body.to_string()).await }
    };
    let first = post("k1", json!({ "input": "one" })).await;
    let again = post("k1", json!({ "input": "one" })).await;
    assert_eq!(first.json()["id"], again.json()["id"]);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let id = first.json()["id"].clone();
    let next = post("k2", json!({ "input": "two", "previous_response_id": id })).await;
    let next_again = post("k2", json!({ "input": "two", "previous_response_id": id })).await;
    assert_eq!(next.status, 200, "{}", next.body);
    assert_eq!(next.json()["id"], next_again.json()["id"]);
    assert!(next.json()["usage"]["input_tokens"].as_u64() > first.json()["usage"]["input_tokens"].as_u64());
}

#[tokio::test]
async fn a_stream_has_the_events_that_the_clients_expect() {
    let face = Face::new(FAST).await;
    let answer = face.post(RESPONSES, &[], json!({ "input": "one", "stream": true }).to_string()).await;
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds(&answer), expected);
    for (line, event) in answer.body.lines().filter_map(|line| line.strip_prefix("event: ")).zip(answer.events()) {
        assert_eq!(event["type"], line);
    }
    let last = answer.events().pop().expect("events");
    let resumed = face
        .get(&format!("{RESPONSES}/{}?stream=true&starting_after=2", last["response"]["id"].as_str().expect("an id")))
        .await;
    assert_eq!(kinds(&resumed), expected[3..]);
    assert_eq!(text(&resumed.events().pop().expect("events")["response"]), text(&last["response"]));
}

#[tokio::test]
async fn a_turn_of_a_conversation_is_in_its_items() {
    let face = Face::new(FAST).await;
    let conversation = face.post("/v1/conversations", &[], "{}").await.json();
    let id = conversation["id"].as_str().expect("an id");
    let input = json!([{ "role": "user", "content": [{ "type": "input_text", "text": "one" }] }]);
    let response = create(&face, json!({ "input": input, "conversation": { "id": id } })).await;
    assert_eq!(response["conversation"]["id"], id);
    let items = face.get(&format!("/v1/conversations/{id}/items")).await.json();
    assert_eq!(items["data"][0]["id"], response["output"][0]["id"]);
    let message = response["output"][0]["id"].as_str().expect("an id");
    let item = face.get(&format!("/v1/conversations/{id}/items/{message}")).await.json();
    assert_eq!(item["content"][0]["text"], text(&response));
}

#[tokio::test]
async fn an_unstored_response_is_not_found_again() {
    let face = Face::new(FAST).await;
    let response = create(&face, json!({ "input": "one", "store": false })).await;
    let fetched = face.get(&format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"))).await;
    assert_eq!(fetched.error().1, "response_not_found");
}

#[tokio::test]
async fn a_cancelled_response_ends_with_what_there_is() {
    let face = Face::new(SLOW).await;
    let request =
        super::request(http::Method::POST, RESPONSES, &[], json!({ "input": "one", "stream": true }).to_string());
    let running = tower::ServiceExt::oneshot(face.router.clone(), request).await.expect("infallible");
    let turn = running.headers()["x-turn-id"].to_str().expect("text").to_owned();
    let path = format!("{RESPONSES}/resp_{turn}");
    assert_eq!(face.get(&path).await.json()["status"], "in_progress");
    let cancelled = face.post(&format!("{path}/cancel"), &[], "").await;
    assert_eq!(cancelled.json()["status"], "cancelled", "{}", cancelled.body);
    assert_eq!(face.get(&path).await.json()["status"], "cancelled");
}

#[tokio::test]
async fn a_response_can_be_deleted() {
    let face = Face::new(FAST).await;
    let response = create(&face, json!({ "input": "one" })).await;
    let path = format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"));
    assert_eq!(face.delete(&path).await.json()["deleted"], true);
    assert_eq!(face.get(&path).await.status, 404);
}
