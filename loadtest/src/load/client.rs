//! What a client asks of one node.

use std::{sync::Arc, time::Duration};

use reqwest::{RequestBuilder, header::RETRY_AFTER};
use serde_json::{Value, json};

use super::{
    Patience,
    recorder::Recorder,
    stream::{read_stream, read_whole, refusal, unknown},
    targets::Targets,
};
use crate::history::EventKind;

/// Connections that are kept open to each node.
const IDLE_CONNECTIONS: usize = 64;

/// A message to be answered.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) client: u32,
    pub(super) session: String,
    /// Unique in the history.
    pub(super) message: String,
    /// Whether it is sent under an idempotency key, so that it can be repeated.
    pub(super) keyed: bool,
    /// Whether the answer comes as a stream.
    pub(super) streamed: bool,
}

/// What became of sending a message once.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) seen: EventKind,
    /// The turn's id, where it was acknowledged.
    pub(super) turn: Option<String>,
    /// When a refusal asks the client to come back.
    pub(super) retry_after: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    pub(super) targets: Arc<Targets>,
    pub(super) recorder: Arc<Recorder>,
}

impl Client {
    pub(super) fn new(targets: Arc<Targets>, recorder: Arc<Recorder>, patience: &Patience) -> Self {
        // Fails where another one in this process has done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(patience.connect)
            .read_timeout(patience.silence)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build();
        Self { http: http.expect("an HTTP client can be made here"), targets, recorder }
    }

    /// Sends a message to the node of this number, once, and notes what comes of it.
    pub(super) async fn attempt(&self, ask: &Ask, node: usize) -> Attempt {
        self.note(ask, EventKind::Invoked);
        let attempt = self.send(ask, node).await;
        self.note(ask, attempt.seen.clone());
        attempt
    }

    pub(super) fn note(&self, ask: &Ask, kind: EventKind) {
        self.recorder.note(ask.client, &ask.session, &ask.message, kind);
    }

    async fn send(&self, ask: &Ask, node: usize) -> Attempt {
        let without_turn = |seen| Attempt { seen, turn: None, retry_after: None };
        let not_sent = || without_turn(EventKind::Refused { code: "no_connection".into() });
        let Some(url) = self.targets.url(node) else { return not_sent() };
        let response = match self.request(ask, &url).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return not_sent(),
            Err(error) => return without_turn(unknown(error)),
        };
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let turn = header("x-turn-id");
        let Some(turn) = turn else {
            return Attempt { seen: refusal(response).await, turn: None, retry_after };
        };
        self.note(ask, EventKind::Acknowledged { turn: turn.clone() });
        let is_stream = ask.streamed && response.status().is_success();
        let read = turn.clone();
        let seen = if is_stream { read_stream(response, read).await } else { read_whole(response, read).await };
        Attempt { seen, turn: Some(turn), retry_after }
    }

    fn request(&self, ask: &Ask, url: &str) -> RequestBuilder {
        let body = json!({
            "model": "scripted",
            "stream": ask.streamed,
            "messages": [{"role": "user", "content": ask.message}],
        });
        let request =
            self.http.post(format!("{url}/v1/chat/completions")).header("X-Session-ID", &ask.session).json(&body);
        if ask.keyed { request.header("Idempotency-Key", &ask.message) } else { request }
    }

    /// How an acknowledged turn has ended, as the node of this number tells it; nothing while it has not, or the node does not tell.
    pub(super) async fn outcome(&self, turn: &str, node: usize) -> Option<EventKind> {
        let response = self.get_json(node, &format!("/v1/responses/resp_{turn}")).await.ok()?;
        let text = || response["output"][0]["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        match response["status"].as_str()? {
            "completed" | "incomplete" | "cancelled" => {
                Some(EventKind::Replied { turn: turn.to_owned(), text: text() })
            }
            "failed" => {
                let code = response["error"]["code"].as_str().unwrap_or("failed").to_owned();
                Some(EventKind::Failed { turn: turn.to_owned(), code })
            }
            _ => None,
        }
    }

    /// What the node of this number answers to a `GET`; `null` for what is not there.
    pub(super) async fn get_json(&self, node: usize, path: &str) -> Result<Value, String> {
        let url = self.targets.url(node).ok_or("there is no node")?;
        let response = self.http.get(format!("{url}{path}")).send().await.map_err(|error| error.to_string())?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(Value::Null);
        }
        let response = response.error_for_status().map_err(|error| error.to_string())?;
        response.json().await.map_err(|error| error.to_string())
    }
}
