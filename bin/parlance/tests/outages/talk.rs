//! A client that says one thing and tells what became of it.

use std::time::Duration;

use serde_json::{Value, json};

/// Longer than a node lets anybody wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of something that was said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) code: String,
    /// In seconds, as the header has it.
    pub(crate) retry_after: Option<u64>,
}

impl Said {
    pub(crate) fn is_answered(&self) -> bool {
        self.status == 200
    }

    /// Refused like this, and told when to come back.
    pub(crate) fn is_refused(&self, status: u16, code: &str) -> bool {
        (self.status, &*self.code) == (status, code) && self.retry_after.is_some_and(|seconds| seconds >= 1)
    }
}

#[derive(Clone)]
pub(crate) struct Client(reqwest::Client);

impl Client {
    pub(crate) fn new() -> Self {
        // The second call finds the first one's work done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self(reqwest::Client::builder().timeout(PATIENCE).build().expect("a client"))
    }

    /// Says something in a session and waits for the whole answer.
    ///
    /// # Panics
    ///
    /// Where there is none over HTTP.
    pub(crate) async fn say(&self, node: String, session: String) -> Said {
        let response = self.request(&node, &session, false).send().await.expect("the node answers");
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body: Value = response.json().await.expect("JSON");
        let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
        Said { status, code, retry_after: header }
    }

    /// Says something without a session: nothing is recorded.
    pub(crate) async fn ask(&self, node: &str) -> u16 {
        let body = json!({ "model": "default", "store": false, "messages": [{ "role": "user", "content": "hello" }] });
        let sent = self.0.post(format!("{node}/v1/chat/completions")).json(&body).send().await;
        sent.expect("the node answers").status().as_u16()
    }

    /// Says something and leaves once it is accepted; the turn's id.
    pub(crate) async fn begin(&self, node: String, session: String) -> Option<String> {
        let response = self.request(&node, &session, true).send().await.ok()?;
        Some(response.headers().get("x-turn-id")?.to_str().ok()?.to_owned())
    }

    fn request(&self, node: &str, session: &str, stream: bool) -> reqwest::RequestBuilder {
        let body =
            json!({ "model": "default", "stream": stream, "messages": [{ "role": "user", "content": "hello" }] });
        self.0.post(format!("{node}/v1/chat/completions")).header("x-session-id", session).json(&body)
    }
}
