//! Bad requests: each gets its status, code and parameter, and changes nothing.

use http::Method;

use super::{FAST, Face, request};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// Chat fields that are put next to good messages: (fields, code, param).
const CHAT_FIELDS: &[(&str, &str, &str)] = &[
    (r#""temperature": -0.1"#, "invalid_value", "temperature"),
    (r#""temperature": 2.1"#, "invalid_value", "temperature"),
    (r#""temperature": "1""#, "invalid_value", "temperature"),
    (r#""temperature": []"#, "invalid_value", "temperature"),
    (r#""top_p": 0"#, "invalid_value", "top_p"),
    (r#""top_p": 1.5"#, "invalid_value", "top_p"),
    (r#""top_k": -1"#, "invalid_value", "top_k"),
    (r#""top_k": 1.5"#, "invalid_value", "top_k"),
    (r#""min_p": -1"#, "invalid_value", "min_p"),
    (r#""min_p": true"#, "invalid_value", "min_p"),
    (r#""repetition_penalty": 0"#, "invalid_value", "repetition_penalty"),
    (r#""repetition_penalty": 3"#, "invalid_value", "repetition_penalty"),
    (r#""presence_penalty": 2.5"#, "invalid_value", "presence_penalty"),
    (r#""frequency_penalty": -3"#, "invalid_value", "frequency_penalty"),
    (r#""max_tokens": 0"#, "invalid_value", "max_tokens"),
    (r#""max_tokens": -5"#, "invalid_value", "max_tokens"),
    (r#""max_tokens": 1.5"#, "invalid_value", "max_tokens"),
    (r#""max_tokens": 18446744073709551616"#, "invalid_value", "max_tokens"),
    (r#""max_completion_tokens": "many""#, "invalid_value", "max_completion_tokens"),
    (r#""seed": 1.5"#, "invalid_value", "seed"),
    (r#""service_tier": "first""#, "invalid_value", "service_tier"),
    (r#""service_tier": 1"#, "invalid_value", "service_tier"),
    (r#""seed": 9223372036854775808"#, "invalid_value", "seed"),
    (r#""stop": 3"#, "invalid_value", "stop"),
    (r#""stop": [1]"#, "invalid_value", "stop"),
    (r#""stop": [""]"#, "invalid_value", "stop"),
    (r#""stop": ["a","b","c","d","e"]"#, "invalid_value", "stop"),
    (r#""stream": "yes""#, "invalid_value", "stream"),
    (r#""stream_options": 1"#, "invalid_value", "stream_options"),
    (r#""stream_options": {"include_usage": 1}"#, "invalid_value", "stream_options.include_usage"),
    (r#""n": 0"#, "invalid_value", "n"),
    (r#""n": 2"#, "unsupported_value", "n"),
    (r#""model": 4"#, "invalid_value", "model"),
    (r#""model": "a\u0000b""#, "invalid_value", "model"),
    (r#""model": "no-such-model""#, "model_not_found", "model"),
    (r#""user": 4"#, "invalid_value", "user"),
    (r#""tools": [{"type": "function"}]"#, "invalid_value", "tools[0].function"),
    (r#""functions": [{}]"#, "unsupported_value", "functions"),
    (r#""tool_choice": "required""#, "invalid_value", "tool_choice"),
    (r#""tool_choice": {"type": "function", "function": {"name": "f"}}"#, "invalid_value", "tool_choice"),
    (r#""logprobs": "yes""#, "invalid_value", "logprobs"),
    (r#""logprobs": true, "top_logprobs": 21"#, "invalid_value", "top_logprobs"),
    (r#""logprobs": true, "top_logprobs": -1"#, "invalid_value", "top_logprobs"),
    (r#""top_logprobs": 2"#, "invalid_value", "top_logprobs"),
    (r#""logprobs": false, "top_logprobs": 2"#, "invalid_value", "top_logprobs"),
    (r#""logit_bias": {"5": 1}"#, "unsupported_value", "logit_bias"),
    (r#""response_format": "json""#, "invalid_value", "response_format"),
    (r#""response_format": {}"#, "invalid_value", "response_format.type"),
    (r#""response_format": {"type": "xml"}"#, "invalid_value", "response_format.type"),
    (r#""response_format": {"type": "json_schema"}"#, "invalid_value", "response_format.json_schema"),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"schema": {}}}"#,
        "invalid_value",
        "response_format.json_schema.name",
    ),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}"#,
        "invalid_value",
        "response_format.json_schema.name",
    ),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"name": "a"}}"#,
        "invalid_value",
        "response_format.json_schema.schema",
    ),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": true}}"#,
        "invalid_value",
        "response_format.json_schema.schema",
    ),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}"#,
        "invalid_value",
        "response_format",
    ),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}"#,
        "invalid_value",
        "response_format",
    ),
    (r#""text": {"format": {"type": "json_object"}}"#, "unknown_parameter", "text"),
    (r#""modalities": ["audio"]"#, "unsupported_value", "modalities"),
    (r#""audio": {"voice": "x"}"#, "unsupported_value", "audio"),
    (r#""tenant_id": "other""#, "unknown_parameter", "tenant_id"),
    (r#""role": "admin""#, "unknown_parameter", "role"),
];

/// Messages: (messages, code, param).
const MESSAGES: &[(&str, &str, &str)] = &[
    ("null", "invalid_value", "messages"),
    ("[]", "invalid_value", "messages"),
    (r#""hi""#, "invalid_value", "messages"),
    (r#"["hi"]"#, "invalid_value", "messages[0]"),
    (r#"[{"content": "x"}]"#, "invalid_value", "messages[0].role"),
    (r#"[{"role": "boss", "content": "x"}]"#, "invalid_value", "messages[0].role"),
    (r#"[{"role": 1, "content": "x"}]"#, "invalid_value", "messages[0].role"),
    (r#"[{"role": "tool", "content": "x"}]"#, "invalid_value", "messages[0].tool_call_id"),
    (r#"[{"role": "user"}]"#, "invalid_value", "messages[0].content"),
    (r#"[{"role": "user", "content": 7}]"#, "invalid_value", "messages[0].content"),
    (r#"[{"role": "user", "content": []}]"#, "invalid_value", "messages[0].content"),
    (r#"[{"role": "user", "content": ["x"]}]"#, "invalid_value", "messages[0].content[0]"),
    (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, "invalid_value", "messages[0].content[0].text"),
    (
        r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]"#,
        "unsupported_value",
        "messages[0].content[0].type",
    ),
    (
        r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]"#,
        "invalid_value",
        "messages[1].tool_calls[0].type",
    ),
];

/// Path, body, status, code, param.
type BodyCase = (&'static str, &'static [u8], u16, &'static str, Option<&'static str>);

/// Headers, status, code, param.
type HeaderCase = (&'static [(&'static str, &'static str)], u16, &'static str, Option<&'static str>);

/// Whole bodies.
const BODIES: &[BodyCase] = &[
    (CHAT, b"", 400, "invalid_json", None),
    (CHAT, b"{", 400, "invalid_json", None),
    (CHAT, b"[]", 400, "invalid_value", None),
    (CHAT, b"{} x", 400, "invalid_json", None),
    (CHAT, b"{\"messages\": \"\xff\xfe\"}", 400, "invalid_json", None),
    (CHAT, b"{\"temperature\": NaN}", 400, "invalid_json", None),
    (CHAT, b"{\"temperature\": 1e400}", 400, "invalid_json", None),
    (CHAT, b"{\"stream\": true, \"stream\": false}", 400, "invalid_json", None),
    (RESPONSES, b"{}", 400, "invalid_value", Some("input")),
    (RESPONSES, b"{\"input\": 4}", 400, "invalid_value", Some("input")),
    (RESPONSES, b"{\"input\": []}", 400, "invalid_value", Some("input")),
    (RESPONSES, b"{\"input\": \"x\", \"max_output_tokens\": 0}", 400, "invalid_value", Some("max_output_tokens")),
    (RESPONSES, b"{\"input\": \"x\", \"conversation\": 4}", 400, "invalid_value", Some("conversation")),
    (RESPONSES, b"{\"input\": \"x\", \"conversation\": \"a b\"}", 400, "invalid_value", Some("conversation")),
    (RESPONSES, b"{\"input\": \"x\", \"conversation\": {}}", 400, "invalid_value", Some("conversation.id")),
    (RESPONSES, b"{\"input\": \"x\", \"conversation\": \"none\"}", 404, "session_not_found", None),
    (RESPONSES, b"{\"input\": \"x\", \"previous_response_id\": \"x\"}", 400, "invalid_value", Some("previous_response_id")),
    (
        RESPONSES,
        b"{\"input\": \"x\", \"previous_response_id\": \"resp_00000000000000000000000000000000\"}",
        404,
        "response_not_found",
        Some("previous_response_id"),
    ),
    (
        RESPONSES,
        b"{\"input\": \"x\", \"conversation\": \"a\", \"previous_response_id\": \"resp_00000000000000000000000000000000\"}",
        400,
        "invalid_value",
        Some("previous_response_id"),
    ),
    (RESPONSES, b"{\"input\": \"x\", \"conversation\": \"a\", \"store\": false}", 400, "unsupported_value", Some("store")),
    (RESPONSES, b"{\"input\": \"x\", \"background\": true}", 400, "unsupported_value", Some("background")),
    (RESPONSES, b"{\"input\": \"x\", \"metadata\": {\"a\": 1}}", 400, "invalid_value", Some("metadata.a")),
    (
        RESPONSES,
        b"{\"input\": \"x\", \"include\": [\"message.output_text.logprobs\"]}",
        400,
        "unsupported_value",
        Some("include"),
    ),
    (RESPONSES, b"{\"input\": \"x\", \"text\": {\"format\": {}}}", 400, "invalid_value", Some("text.format.type")),
    (
        RESPONSES,
        b"{\"input\": \"x\", \"text\": {\"format\": {\"type\": \"json_schema\", \"name\": \"a\", \"schema\": {\"not\": {}}}}}",
        400,
        "invalid_value",
        Some("text.format"),
    ),
    (RESPONSES, b"{\"input\": \"x\", \"instructions\": 1}", 400, "invalid_value", Some("instructions")),
    (RESPONSES, b"{\"input\": [{\"type\": \"reasoning\"}]}", 400, "unsupported_value", Some("input[0].type")),
    ("/v1/conversations", b"{\"metadata\": 4}", 400, "invalid_value", Some("metadata")),
    ("/v1/conversations", b"{\"items\": [4]}", 400, "invalid_value", Some("items[0]")),
    ("/v1/conversations", b"{\"tenant\": \"x\"}", 400, "unknown_parameter", Some("tenant")),
    ("/v1/conversations/none", b"{\"metadata\": {}}", 404, "session_not_found", None),
    ("/v1/conversations/none/items", b"{\"items\": []}", 400, "invalid_value", Some("items")),
    ("/v1/conversations/a%20b", b"{}", 400, "invalid_value", Some("conversation_id")),
];

async fn expect(face: &Face, path: &str, body: Vec<u8>, expected: (u16, &str, Option<&str>)) {
    let shown = String::from_utf8_lossy(&body).into_owned();
    let answer = face.post(path, &[], body).await;
    let (status, code, param) = answer.error();
    assert_eq!((status, code.as_str(), param.as_deref()), expected, "{path} {shown}: {}", answer.body);
    assert!(answer.header("x-turn-id").is_none(), "{shown}");
    assert!(answer.header("x-request-id").is_some(), "{shown}");
}

#[tokio::test]
async fn bad_bodies_are_refused_by_name() {
    let face = Face::new(FAST).await;
    for (fields, code, param) in CHAT_FIELDS {
        let status = if *code == "model_not_found" { 404 } else { 400 };
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "x"}}], {fields}}}"#);
        expect(&face, CHAT, body.into_bytes(), (status, code, Some(param))).await;
    }
    for (messages, code, param) in MESSAGES {
        expect(&face, CHAT, format!(r#"{{"messages": {messages}}}"#).into_bytes(), (400, code, Some(param))).await;
    }
    for (path, body, status, code, param) in BODIES {
        expect(&face, path, body.to_vec(), (*status, code, *param)).await;
    }
    let deep = [b"{\"messages\": ".to_vec(), b"[".repeat(10_000)].concat();
    expect(&face, CHAT, deep, (400, "invalid_json", None)).await;
    let page = face.get("/v1/conversations").await.json();
    assert_eq!(page["data"], serde_json::json!([]), "nothing was changed");
}

#[tokio::test]
async fn bad_headers_paths_and_methods_are_refused() {
    let face = Face::new(FAST).await;
    let good = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
    let headers: &[HeaderCase] = &[
        (&[("x-session-id", "a b")], 400, "invalid_value", Some("X-Session-ID")),
        (&[("x-session-id", "")], 400, "invalid_value", Some("X-Session-ID")),
        (&[("x-model-id", "../../etc/passwd")], 404, "model_not_found", Some("model")),
        (&[("content-type", "text/plain")], 415, "unsupported_media_type", None),
        (&[("content-encoding", "gzip")], 415, "unsupported_media_type", None),
        (&[("content-encoding", "gzip, gzip, gzip")], 415, "unsupported_media_type", None),
        (&[("host", "evil.example")], 403, "host_not_allowed", None),
        (&[("host", "localhost"), ("origin", "https://evil.example")], 403, "origin_not_allowed", None),
    ];
    for (headers, status, code, param) in headers {
        let answer = face.post(CHAT, headers, good).await;
        let (found, error, about) = answer.error();
        assert_eq!((found, error.as_str(), about.as_deref()), (*status, *code, *param), "{headers:?}");
    }
    let long = "k".repeat(256);
    let answer = face.post(CHAT, &[("idempotency-key", &long)], good).await;
    assert_eq!(answer.error(), (400, "invalid_value".into(), Some("Idempotency-Key".into())));
    let answer = face.post(CHAT, &[("x-session-id", &"s".repeat(129))], good).await;
    assert_eq!(answer.error(), (400, "invalid_value".into(), Some("X-Session-ID".into())));

    assert_eq!(face.get("/v1/nothing").await.error().0, 404);
    assert_eq!(face.get("/v1/models/none").await.error(), (404, "model_not_found".into(), Some("model".into())));
    assert_eq!(face.get("/v1/responses/resp_x").await.error().1, "response_not_found");
    assert_eq!(face.get("/v1/conversations?limit=1000").await.error().2.as_deref(), Some("limit"));
    assert_eq!(face.get("/ws").await.error().1, "websocket_expected");
    let wrong = face.get(CHAT).await;
    assert_eq!(wrong.error().1, "method_not_allowed");
    assert_eq!((wrong.status.as_u16(), wrong.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let face = Face::new(FAST).await;
    let large = vec![b' '; 1024 * 1024 + 1];
    assert_eq!(face.post(CHAT, &[], large).await.error(), (413, "request_too_large".into(), None));
    let pieces = futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])));
    let unknown_length = request(Method::POST, CHAT, &[], axum::body::Body::from_stream(pieces));
    assert_eq!(face.send(unknown_length).await.error(), (413, "request_too_large".into(), None));
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_refused() {
    let face = Face::new("scripted:ttft_ms=0,token_ms=0,tokens=4,context=64").await;
    let body = serde_json::json!({ "messages": [{ "role": "user", "content": "word ".repeat(500) }] }).to_string();
    let expected = (400, "context_length_exceeded".to_owned(), Some("messages".to_owned()));
    assert_eq!(face.post(CHAT, &[], body.clone()).await.error(), expected);
    assert_eq!(face.post(CHAT, &[("x-session-id", "s")], body).await.error(), expected);
    assert_eq!(face.get("/v1/conversations/s").await.status, 404, "nothing was made of it");
}
