//! What a page's requests do: each runs in a task of its own and says what comes of it.

use axum::extract::ws::Message;
use parlance_actors_runtime::{Idempotency, RegenerateRequest, TurnOutcome};
use parlance_cluster_protocol::{FinishReason, Item, Origin, Role, SessionKey, TurnId};
use tokio::sync::mpsc;

use super::message::{self, ClientMessage, RegenerateMessage, ServerMessage, Subject, TurnMessage};
use crate::{
    api_error::ApiError,
    app::Shared,
    auth::Tenant,
    call::{self, Call, DurableCall, TurnHeaders},
    ids,
    reply::{Reply, ReplyEvent},
};

/// A socket as its requests see it.
pub(super) struct Line {
    pub(super) app: Shared,
    pub(super) tenant: Tenant,
    pub(super) queue: mpsc::Sender<Message>,
}

/// The page is gone; nothing that it asked for matters to anybody here.
struct Gone;

/// Does what a message asks for.
pub(super) async fn perform(line: Line, message: ClientMessage) {
    let mut subject = subject(&message);
    let result = match message {
        ClientMessage::Turn(turn) => line.turn(turn, &mut subject).await,
        ClientMessage::Regenerate(wish) => line.regenerate(wish, &mut subject).await,
        ClientMessage::Resume { turn, after } => line.resume(turn, after, &mut subject).await,
        ClientMessage::Stop { session, turn } => line.stop(&session, turn).await,
        ClientMessage::Auth { .. } | ClientMessage::Ping => Ok(()),
    };
    if let Err(error) = result {
        line.app.metrics.error(&error.code);
        if error.status.is_server_error() {
            line.app.metrics.answer_failed();
        }
        let _gone = line.say(message::error(&error, &subject)).await;
    }
}

/// What a message is about.
pub(super) fn subject(message: &ClientMessage) -> Subject {
    match message {
        ClientMessage::Turn(turn) => Subject { session: Some(turn.session.clone()), id: turn.id.clone(), turn: None },
        ClientMessage::Regenerate(wish) => {
            Subject { session: Some(wish.session.clone()), id: wish.id.clone(), turn: wish.turn }
        }
        ClientMessage::Stop { session, turn } => Subject { session: Some(session.clone()), turn: *turn, id: None },
        ClientMessage::Resume { turn, .. } => Subject { turn: Some(*turn), ..Subject::default() },
        ClientMessage::Auth { .. } | ClientMessage::Ping => Subject::default(),
    }
}

impl Line {
    async fn turn(&self, message: TurnMessage, subject: &mut Subject) -> Result<(), ApiError> {
        self.app.metrics.answer_requested();
        let TurnMessage { session, text, id, options, seed } = message;
        let idempotency = id.as_deref().map(|id| idempotency("turn", &session, id, &options.model, &text));
        let input = vec![Item { role: Role::User, text }];
        let call = Call { input, options: *options, seed, user: None, origin: Origin::WebSocket };
        let durable = DurableCall::next(SessionKey::api(&*self.tenant.name, session.as_str()), idempotency);
        let mut headers = TurnHeaders::default();
        let reply = call::submit(&self.app, &self.tenant, call, durable, &mut headers).await?;
        self.follow(reply, &session, headers.replayed, subject).await
    }

    async fn regenerate(&self, wish: RegenerateMessage, subject: &mut Subject) -> Result<(), ApiError> {
        self.app.metrics.answer_requested();
        let RegenerateMessage { session, turn, id, options, seed } = wish;
        let replaced = turn.map(|turn| turn.to_string()).unwrap_or_default();
        let request = RegenerateRequest {
            turn: ids::fresh_turn(),
            idempotency: id.as_deref().map(|id| idempotency("regenerate", &session, id, &options.model, &replaced)),
            replaces: turn,
            options: Some(*options),
            seed,
            origin: Origin::WebSocket,
            user: None,
        };
        let key = SessionKey::api(&*self.tenant.name, session.as_str());
        let sessions = self.app.node.sessions();
        let accepted = sessions.regenerate(&key, request).await?;
        let reply = Reply::durable(sessions.clone(), key, accepted.turn, accepted.stream, 0);
        self.follow(reply, &session, accepted.replayed, subject).await
    }

    async fn resume(&self, turn: TurnId, after: usize, subject: &mut Subject) -> Result<(), ApiError> {
        let unknown = || ApiError::not_found("turn_not_found", "There is no such turn.").about("turn");
        let sessions = self.app.node.sessions();
        let session = sessions.find_turn(&self.tenant.name, turn).await?.ok_or_else(unknown)?;
        let stream = sessions.watch(&session, turn).await?.ok_or_else(unknown)?;
        let shown = session.chat.clone();
        let reply = Reply::durable(sessions.clone(), session, turn, stream, after);
        self.follow(reply, &shown, true, subject).await
    }

    async fn stop(&self, session: &str, turn: Option<TurnId>) -> Result<(), ApiError> {
        let key = SessionKey::api(&*self.tenant.name, session);
        let stopped = self.app.node.sessions().stop(&key, turn).await?;
        let _gone = self.say(ServerMessage::Stopped { session, stopped }.encode()).await;
        Ok(())
    }

    /// Tells the page everything about a turn until its end.
    async fn follow(
        &self,
        mut reply: Reply,
        session: &str,
        replayed: bool,
        subject: &mut Subject,
    ) -> Result<(), ApiError> {
        let turn = reply.turn().to_string();
        subject.turn = Some(reply.turn());
        let accepted = ServerMessage::Accepted { turn: &turn, session, id: subject.id.as_deref(), replayed };
        let mut told = self.say(accepted.encode()).await;
        while told.is_ok() {
            let message = match reply.next().await {
                None => return Ok(()),
                Some(ReplyEvent::Delta { end, text, .. }) => {
                    ServerMessage::Delta { turn: &turn, seq: end, text: &text }.encode()
                }
                Some(ReplyEvent::Rewound { to }) => ServerMessage::Rewind { turn: &turn, seq: to }.encode(),
                Some(ReplyEvent::Ended(TurnOutcome::Failed(failed))) => return Err(ApiError::from_failed(&failed)),
                Some(ReplyEvent::Ended(TurnOutcome::Replied(replied))) => ServerMessage::Final {
                    turn: &turn,
                    session,
                    seq: replied.text.len(),
                    finish_reason: finish_reason(replied.finish),
                    model: &replied.model.name,
                    usage: replied.usage.into(),
                }
                .encode(),
                Some(ReplyEvent::Lost(error)) => return Err(error),
            };
            told = self.say(message).await;
        }
        Ok(())
    }

    async fn say(&self, message: Message) -> Result<(), Gone> {
        self.queue.send(message).await.map_err(|_| Gone)
    }
}

/// A page's own message id counts within its session.
fn idempotency(kind: &str, session: &str, id: &str, model: &str, text: &str) -> Idempotency {
    let body_hash = call::body_hash(&["WS", kind, session, model], text.as_bytes());
    Idempotency { key: format!("ws:{session}:{id}"), body_hash }
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
