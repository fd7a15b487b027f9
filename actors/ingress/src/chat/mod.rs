//! `POST /v1/chat/completions`.
//!
//! ```text
//! X-Session-ID  Idempotency-Key   what the call is
//! no            no                a generation that ends with its client
//! no            yes               a durable turn in the key's own hidden session, on the given messages
//! yes           either            a durable turn of that session: its last user message, on the session's own history
//! ```

mod render;
mod request;

use axum::{
    Extension,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use parlance_cluster_protocol::{Item, Role, SessionKey};

use self::{
    render::{ChunkRender, completion},
    request::ChatRequest,
};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    body::read_json,
    call::{self, Call, CallHeaders, DurableCall, TurnHeaders},
    frame::Caller,
    models,
    reply::Reply,
    sse,
    tools::Calls,
};

/// Answers a chat.
pub(crate) async fn create(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    app.metrics.answer_requested();
    let mut headers = TurnHeaders::default();
    let result = answer(&app, &caller, request, &mut headers).await;
    if result.as_ref().is_err_and(|error| error.status.is_server_error()) {
        app.metrics.answer_failed();
    }
    headers.finish(result)
}

async fn answer(
    app: &Shared,
    caller: &Caller,
    request: Request,
    headers: &mut TurnHeaders,
) -> Result<Response, ApiError> {
    let (parts, body) = read_json(request, &app.limits).await?;
    let call_headers = CallHeaders::read(&parts.headers)?;
    let chat = ChatRequest::parse(&body, call_headers.model.as_deref())?;
    let model = models::resolve(app, &chat.call.options.model)?;
    let (stream, include_usage, logprobs, parallel) = (chat.stream, chat.include_usage, chat.logprobs, chat.parallel);
    let idempotency = call_headers.idempotency(&parts, &body);
    if chat.tools.is_some() && (call_headers.session.is_some() || idempotency.is_some()) {
        return Err(unrecorded_tools());
    }
    if logprobs.is_some() && (call_headers.session.is_some() || idempotency.is_some()) {
        return Err(unrecorded_logprobs());
    }
    let reply = match (call_headers.session, idempotency) {
        (None, None) => call::generate(app, &caller.tenant, chat.call, logprobs, chat.tools).await?,
        (None, Some(idempotency)) => {
            let durable = DurableCall::of_key(&caller.tenant, idempotency);
            call::submit(app, &caller.tenant, chat.call, durable, headers).await?
        }
        (Some(session), idempotency) => {
            let session_key = SessionKey::api(&*caller.tenant.name, session.as_str());
            headers.session = Some(session);
            let durable = DurableCall::next(session_key, idempotency);
            session_turn(app, caller, chat.call, durable, headers).await?
        }
    };
    if stream {
        let calls = reply.call_syntax().map(|syntax| Calls::new(syntax, reply.turn(), parallel));
        let render = ChunkRender::new(reply.turn(), model, include_usage, logprobs.is_some()).with_calls(calls);
        return Ok(sse::respond(app.clone(), reply, render));
    }
    whole(reply, logprobs.is_some(), parallel).await
}

/// The last user message is the turn; everything else is the session's own, but for the system prompt of a new one.
async fn session_turn(
    app: &App,
    caller: &Caller,
    mut call: Call,
    durable: DurableCall,
    headers: &mut TurnHeaders,
) -> Result<Reply, ApiError> {
    let prompt = call::split_system(&mut call.input);
    let last = call.input.into_iter().rev().find(|item: &Item| item.role == Role::User);
    call.input = vec![last.ok_or_else(|| call::no_user_message("messages"))?];
    if let Some(prompt) = prompt {
        call::open_with_prompt(app, &durable.session, prompt).await?;
    }
    call::submit(app, &caller.tenant, call, durable, headers).await
}

async fn whole(reply: Reply, scored: bool, parallel: bool) -> Result<Response, ApiError> {
    let turn = reply.turn();
    let calls = reply.call_syntax().map(|syntax| Calls::new(syntax, turn, parallel));
    let (outcome, logprobs) = reply.scored_outcome().await?;
    Ok(completion(turn, &outcome, scored.then_some(&*logprobs), calls)?.into_response())
}

/// A repeated call must get the first answer, and what a turn has to do with tools is not in the record.
fn unrecorded_tools() -> ApiError {
    let message = "Unsupported value: tools go neither with X-Session-ID nor with Idempotency-Key, since a durable turn's \
        calls are not recorded. Send the whole conversation with each call instead.";
    ApiError::unsupported("tools", message)
}

/// A repeated call must get the first answer, and probabilities are not in the record.
fn unrecorded_logprobs() -> ApiError {
    let message = "Unsupported value: 'logprobs' goes neither with X-Session-ID nor with Idempotency-Key, since a \
        durable turn's probabilities are not recorded.";
    ApiError::unsupported("logprobs", message)
}
