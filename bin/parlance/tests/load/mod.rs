//! Clients under whose load nodes are killed: they note in a history what they do and see.

pub(crate) mod ordeal;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use parlance_loadtest::{
    checker::{self, RecordedItem, Report, Transcript},
    history::{Event, EventKind},
};
use serde_json::{Value, json};

/// How long a client waits before it tries a node again that is down or refuses.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Far longer than a turn takes on a loaded machine; a request that reaches it has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients that talk to one node, wherever it listens at the moment.
pub(crate) struct Load {
    port: AtomicU16,
    start: Instant,
    history: Mutex<Vec<Event>>,
    /// Messages that were acknowledged and not answered yet.
    open: Mutex<HashSet<String>>,
    stopping: AtomicBool,
    http: reqwest::Client,
}

impl Load {
    pub(crate) fn new(port: u16) -> Arc<Self> {
        // Fails where another test of this process has done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(64).build();
        Arc::new(Self {
            port: AtomicU16::new(port),
            start: Instant::now(),
            history: Mutex::default(),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
            http: http.expect("a client"),
        })
    }

    pub(crate) fn node_is_at(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// How many turns are between their acknowledgement and their reply, as the clients see it.
    pub(crate) fn open_turns(&self) -> usize {
        self.open.lock().expect("no client panicked").len()
    }

    /// Tells the clients to end with the message that they are at.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port.load(Ordering::Relaxed))
    }

    fn note(&self, client: u32, session: &str, message: &str, kind: EventKind) {
        {
            let mut open = self.open.lock().expect("no client panicked");
            match &kind {
                EventKind::Acknowledged { .. } => drop(open.insert(message.to_owned())),
                EventKind::Replied { .. } | EventKind::Failed { .. } => drop(open.remove(message)),
                _ => {}
            }
        }
        let at_us = u64::try_from(self.start.elapsed().as_micros()).expect("a test is shorter");
        let event = Event { at_us, client, session: session.to_owned(), message: message.to_owned(), kind };
        self.history.lock().expect("no client panicked").push(event);
    }

    /// Sends one message after the other to the client's own session. Even clients repeat a message under its idempotency key until it
    /// is answered; odd ones use no key and never repeat what may have been accepted.
    pub(crate) async fn client(self: Arc<Self>, client: u32) {
        let session = format!("session-{client}");
        let keyed = client.is_multiple_of(2);
        for n in 0.. {
            let message = format!("message {n} of client {client}");
            while !self.say(client, &session, &message, keyed).await {
                tokio::time::sleep(RETRY_AFTER).await;
            }
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Sends a message once. Whether the client is done with it.
    async fn say(&self, client: u32, session: &str, message: &str, keyed: bool) -> bool {
        self.note(client, session, message, EventKind::Invoked);
        let seen = self.request(client, session, message, keyed).await;
        let done = match &seen {
            EventKind::Replied { .. } | EventKind::Failed { .. } => true,
            // A refused message may be sent again in any case.
            EventKind::Refused { .. } => false,
            _ => !keyed,
        };
        self.note(client, session, message, seen);
        done
    }

    async fn request(&self, client: u32, session: &str, message: &str, keyed: bool) -> EventKind {
        let body = json!({
            "model": "scripted",
            "stream": true,
            "messages": [{"role": "user", "content": message}],
        });
        let mut request = self.http.post(self.url("/v1/chat/completions")).header("X-Session-ID", session).json(&body);
        if keyed {
            request = request.header("Idempotency-Key", message);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return EventKind::Refused { code: "no_connection".into() },
            Err(error) => return EventKind::Unknown { reason: error.to_string() },
        };
        let turn = response.headers().get("x-turn-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let Some(turn) = turn else { return refusal(response).await };
        self.note(client, session, message, EventKind::Acknowledged { turn: turn.clone() });
        read_stream(response, turn).await
    }

    /// Everything that is recorded of the clients' sessions.
    pub(crate) async fn transcripts(&self, clients: u32) -> Vec<Transcript> {
        let mut transcripts = Vec::new();
        for client in 0..clients {
            transcripts.push(self.transcript(&format!("session-{client}")).await);
        }
        transcripts
    }

    async fn transcript(&self, session: &str) -> Transcript {
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/conversations/{session}/items?order=asc&limit=100{after}");
            let response = self.http.get(self.url(&path)).send().await.expect("the node is up");
            if response.status() == 404 {
                // Nothing was ever accepted in it.
                return Transcript { session: session.to_owned(), items };
            }
            let page: Value = response.error_for_status().expect("a page of items").json().await.expect("JSON");
            items.extend(page["data"].as_array().expect("a list").iter().map(recorded));
            if page["has_more"] != json!(true) {
                return Transcript { session: session.to_owned(), items };
            }
            after = format!("&after={}", page["last_id"].as_str().expect("an id"));
        }
    }

    /// Compares everything that the clients saw with everything that is recorded.
    pub(crate) async fn check(&self, clients: u32) -> Report {
        let transcripts = self.transcripts(clients).await;
        let history = self.history.lock().expect("no client panicked").clone();
        checker::check(&history, &transcripts, checker::scripted_mark)
    }
}

async fn refusal(response: reqwest::Response) -> EventKind {
    let status = response.status();
    match response.json::<Value>().await {
        Ok(body) if !status.is_success() && body["error"]["code"].is_string() => {
            let code = body["error"]["code"].as_str().expect("a string").to_owned();
            // The log did not answer in time: it alone knows.
            if code == "log_unavailable" { EventKind::Unknown { reason: code } } else { EventKind::Refused { code } }
        }
        Ok(body) => EventKind::Unknown { reason: format!("{status}: {body}") },
        Err(error) => EventKind::Unknown { reason: error.to_string() },
    }
}

/// Reads the reply's event stream up to `[DONE]`. A stream that ends before leaves the client without the answer.
async fn read_stream(response: reqwest::Response, turn: String) -> EventKind {
    let mut bytes = response.bytes_stream();
    let mut buffer = String::new();
    let mut text = String::new();
    while let Some(chunk) = bytes.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return EventKind::Unknown { reason: error.to_string() },
        };
        buffer.push_str(std::str::from_utf8(&chunk).expect("the scripted replies are ASCII"));
        while let Some(end) = buffer.find("\n\n") {
            let frame: String = buffer.drain(..end + 2).collect();
            let Some(data) = frame.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
            if data == "[DONE]" {
                return EventKind::Replied { turn, text };
            }
            let event: Value = serde_json::from_str(data).expect("an event is JSON");
            if let Some(code) = event["error"]["code"].as_str() {
                return EventKind::Failed { turn, code: code.to_owned() };
            }
            text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    EventKind::Unknown { reason: "the stream ended before [DONE]".into() }
}

/// One listed item; the response that it belongs to bears its turn's id.
fn recorded(item: &Value) -> RecordedItem {
    let text = item["content"][0]["text"].as_str().expect("an item has text").to_owned();
    let role = item["role"].as_str().expect("an item has a role").to_owned();
    let turn = item["response_id"].as_str().and_then(|id| id.strip_prefix("resp_")).unwrap_or_default().to_owned();
    let error = item["error"].as_str().map(str::to_owned);
    RecordedItem { role, text, turn, error }
}
