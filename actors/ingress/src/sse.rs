//! Server-sent events: a reply rendered into frames as it grows.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::stream;
use http::{HeaderValue, header};
use parlance_actors_runtime::TurnOutcome;
use parlance_inference_engine::TokenLogprob;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    api_error::ApiError,
    app::Shared,
    reply::{Reply, ReplyEvent},
};

/// How often a silent stream shows that it lives; proxies close silent connections after 30 to 60 seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A comment, which clients skip.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// How one face renders a reply into frames. Everything is appended to `out`.
pub(crate) trait Render: Send + 'static {
    /// Before any text.
    fn begin(&mut self, out: &mut Frames);
    /// More text, which ends at byte `end` of the reply, and the tokens whose text began to come out, where they were asked for.
    fn delta(&mut self, end: usize, text: &str, logprobs: &[TokenLogprob], out: &mut Frames);
    /// The end; `text` is all of the reply.
    fn end(&mut self, outcome: &TurnOutcome, text: &str, out: &mut Frames);
    /// The stream breaks off with an error.
    fn broken(&mut self, error: &ApiError, out: &mut Frames);
}

/// Frames that are ready to be sent.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// An event without a name.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        self.json(value);
    }

    /// An event with a name.
    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\ndata: ");
        self.json(value);
    }

    /// The end mark of chat completions.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn json(&mut self, value: &impl Serialize) {
        // serde_json escapes line breaks inside strings, so one value is one line.
        serde_json::to_writer(&mut self.0, value).expect("values with string keys serialise into memory");
        self.0.extend_from_slice(b"\n\n");
    }

    fn take(&mut self) -> Option<Bytes> {
        let frames = std::mem::take(&mut self.0);
        (!frames.is_empty()).then(|| frames.into())
    }
}

/// The response that streams `reply` as `render` renders it. Its headers go out before the first token.
pub(crate) fn respond(app: Shared, reply: Reply, render: impl Render) -> Response {
    let source = Source { app, reply, render, frames: Frames::default(), phase: Phase::Begin };
    let body = stream::unfold(source, |mut source| async move {
        source.next().await.map(|frames| (Ok::<_, Infallible>(frames), source))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    // Proxies of the nginx family hold back streams otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    Running,
    Over,
}

struct Source<R> {
    app: Shared,
    reply: Reply,
    render: R,
    frames: Frames,
    phase: Phase,
}

impl<R: Render> Source<R> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.phase {
                Phase::Begin => {
                    self.render.begin(&mut self.frames);
                    self.phase = Phase::Running;
                }
                Phase::Running => match timeout(KEEP_ALIVE, self.reply.next()).await {
                    Err(_) => return Some(Bytes::from_static(COMMENT)),
                    Ok(event) => self.on_event(event),
                },
                Phase::Over => return None,
            }
            if let Some(frames) = self.frames.take() {
                return Some(frames);
            }
        }
    }

    fn on_event(&mut self, event: Option<ReplyEvent>) {
        match event {
            Some(ReplyEvent::Delta { end, text, logprobs }) => {
                self.render.delta(end, &text, &logprobs, &mut self.frames);
            }
            Some(ReplyEvent::Ended(outcome)) => {
                if let TurnOutcome::Failed(failed) = &outcome {
                    self.count(&ApiError::from_failed(failed));
                }
                self.render.end(&outcome, self.reply.text(), &mut self.frames);
                self.phase = Phase::Over;
            }
            Some(ReplyEvent::Rewound { .. }) => self.break_off(&diverged()),
            Some(ReplyEvent::Lost(error)) => self.break_off(&error),
            None => self.phase = Phase::Over,
        }
    }

    fn break_off(&mut self, error: &ApiError) {
        self.count(error);
        self.render.broken(error, &mut self.frames);
        self.phase = Phase::Over;
    }

    fn count(&self, error: &ApiError) {
        self.app.metrics.error(&error.code);
        if error.status.is_server_error() {
            self.app.metrics.answer_failed();
        }
    }
}

/// What was sent cannot be taken back in this format, so the stream ends instead of splicing two texts.
fn diverged() -> ApiError {
    ApiError::new(
        http::StatusCode::INTERNAL_SERVER_ERROR,
        "reply_rewound",
        "The turn was answered anew after a failure and its text departs from what was sent; fetch the whole reply by its id.",
    )
}

#[cfg(test)]
impl Frames {
    /// What was written so far.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("frames are text")
    }
}
