//! One socket: reads messages, starts what they ask for, writes what comes of it.
//!
//! Everything written goes through one bounded queue. A page that does not read fills it, the watchers of its turns wait, and after a
//! while the socket is closed; the turns themselves wait for nobody.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::debug;

use super::{
    message::{self, ClientMessage, ServerMessage, Subject},
    turns::{self, Line},
};
use crate::{
    api_error::ApiError,
    app::Shared,
    auth::{Tenant, wrong_key},
    listener::turned_true,
};

/// Messages that may wait to be written.
const QUEUE: usize = 64;

/// Requests of one socket that run at once.
const MAX_RUNNING: usize = 32;

/// Messages of a page per second; beyond, the socket is closed.
const MAX_PER_SECOND: u32 = 100;

/// How often a silent peer is asked whether it lives, and how long it may stay silent.
const PING_EVERY: Duration = Duration::from_secs(20);
const SILENT_FOR: Duration = Duration::from_secs(60);

/// How long one message may take to be written.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// How long a page may take to tell its key.
const AUTH_WITHIN: Duration = Duration::from_secs(10);

/// Why a socket is closed (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy)]
enum Close {
    Normal = 1000,
    GoingAway = 1001,
    Unsupported = 1003,
    Policy = 1008,
    TooBig = 1009,
    Protocol = 1002,
}

/// Serves a socket until it ends.
pub(super) async fn run(socket: WebSocket, app: Shared, tenant: Option<Tenant>) {
    let (sink, mut incoming) = socket.split();
    let (queue, queued) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(write(sink, queued));
    let mut session = Session { app, queue, running: JoinSet::new(), received: 0 };
    let why = match session.authenticate(tenant, &mut incoming).await {
        Ok(tenant) => session.read(tenant, &mut incoming).await,
        Err(why) => why,
    };
    debug!(?why, "closing a websocket");
    session.running.abort_all();
    // Behind what is queued; where the queue is stuck, the writer's own bound ends it.
    let frame = CloseFrame { code: why as u16, reason: Utf8Bytes::from_static("") };
    let _gone = timeout(WRITE_WITHIN, session.queue.send(Message::Close(Some(frame)))).await;
    drop(session);
    let _ended = timeout(WRITE_WITHIN, writer).await;
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut queued: mpsc::Receiver<Message>) {
    while let Some(message) = queued.recv().await {
        let last = matches!(message, Message::Close(_));
        match timeout(WRITE_WITHIN, sink.send(message)).await {
            Ok(Ok(())) if !last => {}
            _ => return,
        }
    }
}

type Incoming = futures_util::stream::SplitStream<WebSocket>;

struct Session {
    app: Shared,
    queue: mpsc::Sender<Message>,
    /// What the page's requests started. Bound: [`MAX_RUNNING`].
    running: JoinSet<()>,
    /// Messages within the present second.
    received: u32,
}

impl Session {
    /// The tenant, from the first message where the headers did not tell.
    async fn authenticate(&mut self, known: Option<Tenant>, incoming: &mut Incoming) -> Result<Tenant, Close> {
        let tenant = match known {
            Some(tenant) => tenant,
            None => {
                let first = timeout(AUTH_WITHIN, next_text(incoming)).await.map_err(|_| Close::Policy)??;
                let key = match ClientMessage::parse(&first) {
                    Ok(ClientMessage::Auth { key }) => key,
                    _ => return Err(self.refuse_key().await),
                };
                match self.app.auth.tenant_of_key(key.as_bytes()) {
                    Some(tenant) => tenant,
                    None => return Err(self.refuse_key().await),
                }
            }
        };
        self.say(ServerMessage::Ready {}.encode()).await?;
        Ok(tenant)
    }

    async fn refuse_key(&self) -> Close {
        let error = wrong_key();
        self.app.metrics.error(&error.code);
        let _gone = self.say(message::error(&error, &Subject::default())).await;
        Close::Policy
    }

    async fn read(&mut self, tenant: Tenant, incoming: &mut Incoming) -> Close {
        let mut ticks = interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = self.app.closing.clone();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = incoming.next() => {
                    heard = Instant::now();
                    if let Err(why) = self.on_message(&tenant, message).await {
                        return why;
                    }
                }
                _ = self.running.join_next(), if !self.running.is_empty() => {}
                _ = second.tick() => self.received = 0,
                _ = ticks.tick() => {
                    if heard.elapsed() > SILENT_FOR {
                        return Close::GoingAway;
                    }
                    // A full queue shows that the peer has enough to answer.
                    let _full = self.queue.try_send(Message::Ping(Default::default()));
                }
                () = turned_true(&mut closing) => return Close::GoingAway,
            }
        }
    }

    async fn on_message(
        &mut self,
        tenant: &Tenant,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<(), Close> {
        self.received += 1;
        if self.received > MAX_PER_SECOND {
            return Err(Close::Policy);
        }
        match text_of(message)? {
            None => Ok(()),
            Some(text) => match ClientMessage::parse(&text) {
                Ok(message) => self.on_request(tenant, message).await,
                Err(refused) => {
                    let (error, subject) = *refused;
                    self.app.metrics.error(&error.code);
                    self.say(message::error(&error, &subject)).await
                }
            },
        }
    }

    async fn on_request(&mut self, tenant: &Tenant, message: ClientMessage) -> Result<(), Close> {
        match message {
            ClientMessage::Ping => return self.say(ServerMessage::Pong {}.encode()).await,
            // The key was told already.
            ClientMessage::Auth { .. } => return self.say(ServerMessage::Ready {}.encode()).await,
            _ => {}
        }
        if self.running.len() >= MAX_RUNNING {
            let text = format!("This line has {MAX_RUNNING} requests running, which is its limit.");
            let error = ApiError::new(http::StatusCode::TOO_MANY_REQUESTS, "rate_limited", text);
            self.app.metrics.error(&error.code);
            return self.say(message::error(&error, &turns::subject(&message))).await;
        }
        let line = Line { app: self.app.clone(), tenant: tenant.clone(), queue: self.queue.clone() };
        self.running.spawn(turns::perform(line, message));
        Ok(())
    }

    async fn say(&self, message: Message) -> Result<(), Close> {
        match timeout(WRITE_WITHIN, self.queue.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Close::GoingAway),
        }
    }
}

async fn next_text(incoming: &mut Incoming) -> Result<Utf8Bytes, Close> {
    loop {
        if let Some(text) = text_of(incoming.next().await)? {
            return Ok(text);
        }
    }
}

/// The text of a message; `None` for what the protocol itself handles.
fn text_of(message: Option<Result<Message, axum::Error>>) -> Result<Option<Utf8Bytes>, Close> {
    match message {
        Some(Ok(Message::Text(text))) => Ok(Some(text)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Ok(Message::Binary(_))) => Err(Close::Unsupported),
        Some(Ok(Message::Close(_))) | None => Err(Close::Normal),
        // The kind of error is not told in any other way.
        Some(Err(error)) if error.to_string().contains("too long") => Err(Close::TooBig),
        Some(Err(_)) => Err(Close::Protocol),
    }
}
