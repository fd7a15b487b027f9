//! One durable turn over the public API: streamed, stopped on demand, found again after the connection or the server was lost.
//!
//! ```text
//! POST /v1/responses (X-Session-ID, Idempotency-Key) ─ events … ─ end
//!        │ lost before the response's id is known: the same call again; the key joins the first one
//!        └ lost after it: GET /v1/responses/{id}?stream=true&starting_after=N
//! ```

use std::time::{Duration, Instant};

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use super::{
    api::{Api, ApiFailure},
    regenerate::start_regeneration,
    sse::Parser,
};
use crate::failure::{Failure, one_line};

/// How long a lost server is looked for: longer than a restart with a long replay.
const RECONNECT_FOR: Duration = Duration::from_secs(120);
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What a turn's watcher is shown.
pub(crate) trait Watcher {
    /// More text.
    fn text(&mut self, text: &str);
    /// The answer begins anew: what was shown of it does not stand.
    fn restarted(&mut self);
    /// The connection is lost and looked for.
    fn lost(&mut self, reason: &str);
    /// Completes when the person wants the answer stopped. Called again after each completion.
    fn stop_wanted(&mut self) -> impl Future<Output = ()>;
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// With a whole answer.
    Complete,
    /// Stopped on demand or at a limit, for this reason.
    Incomplete(String),
    /// Without an answer.
    Failed(String),
}

/// An ended turn.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The response's id.
    pub(crate) id: String,
    /// The whole text.
    pub(crate) text: String,
    /// How it ended.
    pub(crate) end: TurnEnd,
}

/// Has `text` answered in `session`.
///
/// # Errors
///
/// The failure that ends the turn without an answer of the server's; it may still be answered in the record.
pub(crate) async fn answer(
    api: &Api,
    session: &str,
    model: Option<&str>,
    text: &str,
    watcher: &mut impl Watcher,
) -> Result<Answer, Failure> {
    let mut body = json!({ "input": text, "stream": true });
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    let key = uuid::Uuid::new_v4().to_string();
    let begin =
        || api.post("/v1/responses").header("X-Session-ID", session).header("Idempotency-Key", &key).json(&body);
    Follow::new(api, None).run(&begin, watcher).await
}

/// Has the last answer of `session` made anew.
pub(crate) async fn regenerate(api: &Api, session: &str, watcher: &mut impl Watcher) -> Result<Answer, Failure> {
    let id = start_regeneration(api, session).await.map_err(|failure| api.ended(failure))?;
    let begin = || api.get(&format!("/v1/responses/{id}?stream=true"));
    Follow::new(api, Some(id.clone())).run(&begin, watcher).await
}

/// Why a stream ended.
enum Broken {
    /// It can be taken up where it stopped.
    Lost(String),
    /// It must be read from its beginning.
    Rewound,
}

struct Follow<'a> {
    api: &'a Api,
    id: Option<String>,
    /// The number of the last event.
    seen: Option<u64>,
    text: String,
}

impl<'a> Follow<'a> {
    fn new(api: &'a Api, id: Option<String>) -> Self {
        Self { api, id, seen: None, text: String::new() }
    }

    async fn run(mut self, begin: &dyn Fn() -> RequestBuilder, watcher: &mut impl Watcher) -> Result<Answer, Failure> {
        let mut until = None;
        loop {
            let failure = match self.api.send(self.request(begin)).await {
                Ok(response) => match self.read(response, watcher).await {
                    Ok(end) => return Ok(Answer { id: self.id.unwrap_or_default(), text: self.text, end }),
                    Err(Broken::Rewound) => {
                        (self.seen, self.text) = (None, String::new());
                        watcher.restarted();
                        continue;
                    }
                    Err(Broken::Lost(reason)) => ApiFailure::Lost(reason),
                },
                Err(failure) => failure,
            };
            // A server that was never there is a failure at once; one that went away in the middle is waited for.
            let (reason, pause) = match failure {
                ApiFailure::Lost(reason) if self.id.is_some() || until.is_some() => (reason, RECONNECT_PAUSE),
                ApiFailure::Busy(reason, wait) if self.id.is_some() || until.is_some() => {
                    (reason, wait.min(RECONNECT_FOR))
                }
                other => return Err(self.api.ended(other)),
            };
            let deadline = *until.get_or_insert_with(|| {
                watcher.lost(&reason);
                Instant::now() + RECONNECT_FOR
            });
            if Instant::now() + pause > deadline {
                return Err(self.api.ended(ApiFailure::Lost(reason)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = watcher.stop_wanted() => return Err(self.api.ended(ApiFailure::Lost(reason))),
            }
        }
    }

    fn request(&self, begin: &dyn Fn() -> RequestBuilder) -> RequestBuilder {
        let Some(id) = &self.id else { return begin() };
        let after = self.seen.map_or_else(String::new, |seen| format!("&starting_after={seen}"));
        self.api.get(&format!("/v1/responses/{id}?stream=true{after}"))
    }

    async fn read(&mut self, mut response: Response, watcher: &mut impl Watcher) -> Result<TurnEnd, Broken> {
        if let Some(turn) = response.headers().get("x-turn-id").and_then(|turn| turn.to_str().ok()) {
            self.id.get_or_insert_with(|| format!("resp_{turn}"));
        }
        let mut parser = Parser::default();
        loop {
            let chunk = tokio::select! {
                chunk = response.chunk() => chunk,
                () = watcher.stop_wanted() => {
                    self.stop().await;
                    continue;
                }
            };
            let chunk = chunk.map_err(|error| Broken::Lost(crate::failure::chain(&error)))?;
            let Some(chunk) = chunk else { return Err(Broken::Lost("the stream ended early".to_owned())) };
            let events = parser.push(&chunk).map_err(|_| Broken::Lost("the stream is garbled".to_owned()))?;
            for event in events {
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                if let Some(end) = self.on_event(&data, watcher)? {
                    return Ok(end);
                }
            }
        }
    }

    fn on_event(&mut self, data: &Value, watcher: &mut impl Watcher) -> Result<Option<TurnEnd>, Broken> {
        if let Some(id) = data["response"]["id"].as_str() {
            self.id = Some(id.to_owned());
        }
        let end = match data["type"].as_str().unwrap_or_default() {
            "response.output_text.delta" => {
                let delta = data["delta"].as_str().unwrap_or_default();
                self.text.push_str(delta);
                watcher.text(delta);
                None
            }
            "response.completed" => Some(TurnEnd::Complete),
            "response.incomplete" => {
                Some(TurnEnd::Incomplete(told(&data["response"]["incomplete_details"]["reason"], "cut short")))
            }
            "response.cancelled" => Some(TurnEnd::Incomplete("cancelled".to_owned())),
            "response.failed" => Some(TurnEnd::Failed(told(&data["response"]["error"]["message"], "no reason given"))),
            "error" if data["code"] == "reply_rewound" => return Err(Broken::Rewound),
            "error" => return Err(Broken::Lost(told(&data["message"], "the server gave up the stream"))),
            _ => None,
        };
        self.seen = data["sequence_number"].as_u64().or(self.seen);
        Ok(end)
    }

    /// The stream itself tells how the turn ends, stopped or finished just before.
    async fn stop(&self) {
        if let Some(id) = &self.id {
            let _ = self.api.send(self.api.post(&format!("/v1/responses/{id}/cancel"))).await;
        }
    }
}

fn told(value: &Value, otherwise: &str) -> String {
    value.as_str().map_or_else(|| otherwise.to_owned(), one_line)
}
