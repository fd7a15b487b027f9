//! Keys, health, metrics, the description, the operator's view.

use std::{net::IpAddr, time::Duration};

use http::Method;
use serde_json::Value;

use super::{Answer, FAST, Face, request};
use crate::{Auth, IngressOptions, auth::Peer};

#[tokio::test]
async fn keys_separate_tenants() {
    let auth = Auth::from_key_file("one key-of-tenant-one-1\ntwo key-of-tenant-two-2").expect("good keys");
    let face = Face::with(FAST, IngressOptions { auth, ..IngressOptions::local([7; 32]) }).await;
    let call = async |method: Method, path: &str, key: &str| {
        let key = format!("Bearer {key}");
        let headers: &[(&str, &str)] = if key.len() > 8 { &[("authorization", &key)] } else { &[] };
        face.send(request(method, path, headers, if path == "/v1/conversations" { "{}" } else { "" })).await
    };
    let created = call(Method::POST, "/v1/conversations", "key-of-tenant-one-1").await.json();
    let path = format!("/v1/conversations/{}", created["id"].as_str().expect("an id"));
    assert_eq!(call(Method::GET, &path, "key-of-tenant-one-1").await.status, 200);
    assert_eq!(call(Method::GET, &path, "key-of-tenant-two-2").await.status, 404);
    for path in ["/v1/models", "/admin/v1/status", "/metrics", path.as_str(), "/v1/unknown"] {
        assert_eq!(call(Method::GET, path, "").await.error(), (401, "invalid_api_key".into(), None), "{path}");
        assert_eq!(call(Method::GET, path, "' OR '1'='1").await.status, 401, "{path}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(call(Method::GET, path, "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn models_are_listed() {
    let face = Face::new(FAST).await;
    let list = face.get("/v1/models").await.json();
    assert_eq!(list["data"][0]["id"], "scripted");
    assert_eq!(list["data"][0]["state"], "ready");
    assert_eq!(face.get("/v1/models/default").await.json()["id"], "scripted");
}

#[tokio::test]
async fn readiness_tells_why_not() {
    let face = Face::new(FAST).await;
    assert_eq!(face.get("/readyz").await.json()["status"], "ready");
    face.node.drain(Duration::ZERO).await;
    let answer = face.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("draining"), "{}", answer.body);
    let refused = face.post("/v1/chat/completions", &[], r#"{"messages": [{"role": "user", "content": "x"}]}"#).await;
    assert_eq!(refused.error().1, "draining");
    assert_eq!(refused.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn the_operator_sees_the_node_and_its_sessions() {
    let face = Face::new(FAST).await;
    face.post("/v1/chat/completions", &[("x-session-id", "s1")], r#"{"messages": [{"role": "user", "content": "x"}]}"#)
        .await;
    let status = face.get("/admin/v1/status").await.json();
    assert_eq!((status["node"].as_str(), status["ready"].as_bool()), (Some("test"), Some(true)));
    assert_eq!(status["dependencies"], serde_json::json!([]), "what is in this process is no dependency");
    let sessions = face.get("/admin/v1/sessions").await.json();
    assert_eq!(sessions["data"][0]["id"], "s1");
}

/// Every route is described, and everything described is a route.
#[tokio::test]
async fn the_description_fits_the_router() {
    let face = Face::new(FAST).await;
    let description: Value = face.get("/openapi.json").await.json();
    assert!(description["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let paths = description["paths"].as_object().expect("paths");
    let described: Vec<String> = paths.keys().map(|path| path.replace("/v1/models/{id}", "/v1/models/{*id}")).collect();
    for route in crate::app::ROUTES {
        assert!(described.iter().any(|path| path == route), "{route} is not described");
    }
    for path in &described {
        assert!(crate::app::ROUTES.contains(&path.as_str()), "{path} is not a route");
    }
    for (path, operations) in paths {
        for (method, operation) in
            operations.as_object().expect("operations").iter().filter(|(name, _)| *name != "parameters")
        {
            assert!(operation["responses"].is_object(), "{method} {path}");
            let concrete =
                path.replace("{id}", "x").replace("{item}", "x").replace("{name}", "x").replace("{shard}", "0");
            let method = method.to_uppercase().parse().expect("a method");
            let answer = face.send(request(method, &concrete, &[], "")).await;
            assert_ne!(answer.status, 405, "{path}");
        }
    }
}

async fn call_from(face: &Face, peer: Option<&str>, method: Method, path: &str, body: &'static str) -> Answer {
    let mut request = request(method, path, &[], body);
    if let Some(peer) = peer {
        let address: IpAddr = peer.parse().expect("an address");
        request.extensions_mut().insert(Peer(address));
    }
    face.send(request).await
}

#[tokio::test]
async fn models_are_changed_from_the_nodes_own_machine_alone() {
    let face = Face::new(FAST).await;
    let reload = r#"{"model": "default", "reload": true}"#;
    for peer in [None, Some("192.0.2.7"), Some("::ffff:192.0.2.7"), Some("fe80::1")] {
        for (method, path) in [(Method::POST, "/admin/v1/models"), (Method::DELETE, "/admin/v1/models/scripted")] {
            let refused = call_from(&face, peer, method, path, reload).await;
            assert_eq!(refused.error(), (403, "operator_only".into(), None), "{peer:?}");
        }
        assert_eq!(call_from(&face, peer, Method::GET, "/admin/v1/models", "").await.status, 200);
    }
    for peer in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
        let begun = call_from(&face, Some(peer), Method::POST, "/admin/v1/models", reload).await;
        assert!(begun.status == 202 || begun.error().1 == "model_busy", "{}", begun.body);
    }
}

#[tokio::test]
async fn orders_for_models_are_checked_by_name() {
    let face = Face::new(FAST).await;
    let post = async |body| call_from(&face, Some("127.0.0.1"), Method::POST, "/admin/v1/models", body).await.error();
    let invalid = |param: &str| (400, "invalid_value".to_owned(), Some(param.to_owned()));
    assert_eq!(post(r#"{"model": "scripted", "replicas": 0}"#).await, invalid("replicas"));
    assert_eq!(post(r#"{"model": "scripted", "pinned": "yes"}"#).await, invalid("pinned"));
    assert_eq!(post(r#"{"model": "scripted", "lane": 3}"#).await.1, "unknown_parameter");
    assert_eq!(post(r#"{"model": "other"}"#).await, (404, "model_not_found".into(), Some("model".into())));
    let unload = call_from(&face, Some("127.0.0.1"), Method::DELETE, "/admin/v1/models/other", "").await;
    assert_eq!(unload.error(), (404, "model_not_found".into(), Some("model".into())));
}

#[tokio::test]
async fn the_operator_sees_what_models_take() {
    let face = Face::new(FAST).await;
    let list = face.get("/admin/v1/models").await.json();
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["state"], &model["serving"]), (&"scripted".into(), &"ready".into(), &1.into()));
    assert_eq!(list["memory"], serde_json::json!({ "budget_bytes": null, "held_bytes": 0 }));
    assert_eq!(face.get("/admin/v1/models/default").await.json()["id"], "scripted");
    assert_eq!(face.get("/admin/v1/models/other").await.error().1, "model_not_found");
    let path = "/admin/v1/models/scripted?deadline_s=1";
    let unloaded = call_from(&face, Some("127.0.0.1"), Method::DELETE, path, "").await;
    assert_eq!(unloaded.status, 202, "{}", unloaded.body);
    let refused = face.post("/v1/chat/completions", &[], r#"{"messages": [{"role": "user", "content": "x"}]}"#).await;
    let code = refused.error().1;
    assert!(code == "model_not_found" || code == "overloaded", "{}", refused.body);
}

#[tokio::test]
async fn a_node_that_is_alone_lists_itself_and_moves_nothing() {
    let face = Face::new(FAST).await;
    let nodes = face.get("/admin/v1/nodes").await.json();
    assert_eq!((&nodes["data"][0]["name"], &nodes["data"][0]["self"]), (&"test".into(), &true.into()));
    let shards = face.get("/admin/v1/shards").await.json();
    let all = shards["data"].as_array().expect("a list");
    assert!(!all.is_empty() && all.iter().all(|shard| shard["owner"] == "test"), "{shards}");
    for (path, body) in [("/admin/v1/nodes/test/drain", ""), ("/admin/v1/shards/0/move", r#"{"to": "other"}"#)] {
        assert_eq!(call_from(&face, None, Method::POST, path, body).await.error().1, "operator_only");
        let refused = call_from(&face, Some("127.0.0.1"), Method::POST, path, body).await.error();
        assert_eq!((refused.0, &*refused.1), (409, "not_in_a_cluster"), "{path}");
    }
    let post = async |path, body| call_from(&face, Some("127.0.0.1"), Method::POST, path, body).await.error();
    let invalid = |param: &str| (400, "invalid_value".to_owned(), Some(param.to_owned()));
    assert_eq!(post("/admin/v1/shards/x/move", r#"{"to": "a"}"#).await, invalid("shard"));
    assert_eq!(post("/admin/v1/shards/0/move", r#"{"to": 5}"#).await, invalid("to"));
}

#[tokio::test]
async fn sessions_are_adopted_from_the_nodes_own_machine_alone() {
    let face = Face::new(FAST).await;
    let (part, compare) = ("/admin/v1/adoption", "/admin/v1/adoption/compare");
    for path in [part, compare] {
        assert_eq!(call_from(&face, Some("192.0.2.7"), Method::POST, path, "{}").await.error().1, "operator_only");
    }
    let here = async |path, body| call_from(&face, Some("127.0.0.1"), Method::POST, path, body).await;
    assert_eq!(here(part, "{}").await.error().1, "unsupported_media_type");
    let invalid = (400, "invalid_value".to_owned(), Some("session".to_owned()));
    assert_eq!(here(compare, r#"{"session": "xy"}"#).await.error(), invalid);
    assert_eq!(here(compare, r#"{"session": "00", "more": 1}"#).await.error().1, "unknown_parameter");
    // api:x of tenant `default`.
    let known = r#"{"session": "000764656661756c74000361706900000001780000"}"#;
    let found = here(compare, known).await.json();
    assert_eq!((&found["adopted"], &found["items"], &found["changed"]), (&Value::Null, &0.into(), &false.into()));
}
