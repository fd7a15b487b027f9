//! Responses that were made before: fetch, resume, cancel, delete.
//!
//! A turn that was asked for over another face is found under its id all the same, so every durable stream can be resumed here.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use http::Uri;
use parlance_actors_runtime::{ItemQuery, TurnOutcome};
use parlance_cluster_protocol::{SessionKey, TurnId};
use serde_json::json;
use tokio::time::timeout;

use super::{
    events::{EventRender, bytes_seen},
    object::{Echo, ResponseObject},
};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    frame::Caller,
    ids,
    query::Query,
    reply::{Reply, ReplyEvent},
    sse,
};

/// How long a cancelled turn may take to be recorded as such.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Shows a response, or streams it from an event on.
pub(crate) async fn get(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(&uri)?;
    let stream = query.boolean("stream")?.unwrap_or(false);
    let after = query.integer("starting_after")?;
    let (session, turn) = find(&app, &caller, &id).await?;
    let had = if stream { bytes_seen(after) } else { 0 };
    let reply = watch(&app, &session, turn, had).await?;
    let echo = recorded(&session);
    if stream {
        return Ok(sse::respond(app.clone(), reply, EventRender::new(turn, echo, after)));
    }
    Ok(now(turn, reply, &echo).await)
}

/// Ends a response with what there is of it.
pub(crate) async fn cancel(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (session, turn) = find(&app, &caller, &id).await?;
    app.node.sessions().stop(&session, Some(turn)).await?;
    let reply = watch(&app, &session, turn, 0).await?;
    let echo = recorded(&session);
    let Ok(outcome) = timeout(CANCEL_WAIT, reply.outcome()).await else {
        let reply = watch(&app, &session, turn, 0).await?;
        return Ok(now(turn, reply, &echo).await);
    };
    Ok(Json(ResponseObject::ended(turn, &echo, &outcome?, &[])).into_response())
}

/// Deletes a response that is in no conversation and was not continued.
pub(crate) async fn delete(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (session, turn) = find(&app, &caller, &id).await?;
    if is_conversation(&session) {
        let message = "This response is part of a conversation; delete that with DELETE /v1/conversations/{id}.";
        return Err(ApiError::unsupported("response_id", message));
    }
    let sessions = app.node.sessions();
    let ends = [false, true].map(|descending| ItemQuery { from: None, descending, limit: 1 });
    for query in ends {
        let items = sessions.items(&session, query).await?.unwrap_or_default();
        if items.first().is_some_and(|item| item.turn != Some(turn)) {
            let message =
                "This response is one of several that continue each other, which cannot be deleted one by one.";
            return Err(ApiError::unsupported("response_id", message));
        }
    }
    sessions.delete(&session, None).await?;
    Ok(Json(json!({ "id": ids::response_id(turn), "object": "response", "deleted": true })).into_response())
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<(SessionKey, TurnId), ApiError> {
    let unknown = || ApiError::not_found("response_not_found", "There is no response of this id.").about("response_id");
    let turn = ids::parse_response_id(id).ok_or_else(unknown)?;
    let session = app.node.sessions().find_turn(&caller.tenant.name, turn).await?.ok_or_else(unknown)?;
    Ok((session, turn))
}

async fn watch(app: &App, session: &SessionKey, turn: TurnId, had: usize) -> Result<Reply, ApiError> {
    let sessions = app.node.sessions();
    let stream = sessions.watch(session, turn).await?.ok_or_else(|| not_found(turn))?;
    Ok(Reply::durable(sessions.clone(), session.clone(), turn, stream, had))
}

/// The error for a turn that is nowhere.
pub(super) fn not_found(turn: TurnId) -> ApiError {
    let message = format!("There is no response {}.", ids::response_id(turn));
    ApiError::not_found("response_not_found", message)
}

/// Whether the session is one that callers know by its id.
fn is_conversation(session: &SessionKey) -> bool {
    session.channel == SessionKey::api("", "").channel
}

/// What the record tells about a response's request.
fn recorded(session: &SessionKey) -> Echo {
    let conversation = is_conversation(session).then(|| session.chat.clone());
    Echo { conversation, store: true, ..Echo::default() }
}

/// The response as it is at this moment.
async fn now(turn: TurnId, mut reply: Reply, echo: &Echo) -> Response {
    let mut outcome: Option<TurnOutcome> = None;
    // The first event is there at once where the turn has ended; a running turn is not waited for.
    while let Some(Some(event)) = reply.next().now_or_never() {
        if let ReplyEvent::Ended(ended) = event {
            outcome = Some(ended);
        }
    }
    match &outcome {
        Some(outcome) => Json(ResponseObject::ended(turn, echo, outcome, &[])).into_response(),
        None => Json(ResponseObject::running(turn, echo)).into_response(),
    }
}
