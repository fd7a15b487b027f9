//! Conversations and their items.

use serde_json::json;

use super::{FAST, Face};

const CONVERSATIONS: &str = "/v1/conversations";

#[tokio::test]
async fn a_conversation_lives_from_creation_to_deletion() {
    let face = Face::new(FAST).await;
    let body = json!({
        "metadata": { "topic": "rust" },
        "items": [{ "type": "message", "role": "user", "content": "earlier" }],
    });
    let created = face.post(CONVERSATIONS, &[], body.to_string()).await.json();
    assert_eq!((&created["object"], &created["metadata"]["topic"]), (&json!("conversation"), &json!("rust")));
    let path = format!("{CONVERSATIONS}/{}", created["id"].as_str().expect("an id"));
    let updated = face.post(&path, &[], json!({ "metadata": { "topic": "birds" } }).to_string()).await.json();
    assert_eq!(updated["metadata"], json!({ "topic": "birds" }));
    assert_eq!(face.get(&path).await.json()["metadata"], json!({ "topic": "birds" }));
    assert_eq!(face.delete(&path).await.json()["deleted"], true);
    assert_eq!(face.get(&path).await.error().1, "session_not_found");
    assert_eq!(face.get(&format!("{path}/items")).await.status, 404);
}

#[tokio::test]
async fn items_are_added_paged_and_shown() {
    let face = Face::new(FAST).await;
    let created = face.post(CONVERSATIONS, &[], "").await.json();
    let path = format!("{CONVERSATIONS}/{}/items", created["id"].as_str().expect("an id"));
    let item = |text: &str| json!({ "role": "user", "content": text });
    let added = face.post(&path, &[], json!({ "items": [item("a"), item("b"), item("c")] }).to_string()).await.json();
    assert_eq!(added["data"].as_array().map(Vec::len), Some(3), "{added}");
    for order in ["asc", "desc"] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = face.get(&format!("{path}?limit=2&order={order}{after}")).await.json();
            let texts = page["data"].as_array().expect("items").iter();
            seen.extend(texts.map(|item| item["content"][0]["text"].as_str().expect("a text").to_owned()));
            if page["has_more"] == false {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().expect("an id"));
        }
        let expected = if order == "asc" { ["a", "b", "c"] } else { ["c", "b", "a"] };
        assert_eq!(seen, expected);
    }
    let one = face.get(&format!("{path}/{}", added["data"][1]["id"].as_str().expect("an id"))).await.json();
    assert_eq!(one, added["data"][1]);
    assert_eq!(face.get(&format!("{path}/msg_i99")).await.error().1, "item_not_found");
}

#[tokio::test]
async fn conversations_are_listed_in_pages() {
    let face = Face::new(FAST).await;
    for _ in 0..5 {
        face.post(CONVERSATIONS, &[], "{}").await;
    }
    let first = face.get(&format!("{CONVERSATIONS}?limit=3")).await.json();
    assert_eq!((first["data"].as_array().map(Vec::len), &first["has_more"]), (Some(3), &json!(true)));
    let after = first["last_id"].as_str().expect("an id");
    let second = face.get(&format!("{CONVERSATIONS}?limit=3&after={after}")).await.json();
    assert_eq!((second["data"].as_array().map(Vec::len), &second["has_more"]), (Some(2), &json!(false)));
}
