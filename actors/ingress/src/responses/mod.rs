//! `/v1/responses`.
//!
//! ```text
//! what a request names        what it is
//! conversation, X-Session-ID  a durable turn of that session
//! previous_response_id        a durable turn of that response's session where it was the last, else of a copy up to there
//! store: false                a generation that ends with its client; with an Idempotency-Key, a turn in the key's own session
//! nothing                     the first turn of a hidden session of its own, by which it is fetched and continued
//! ```

mod events;
mod lineage;
mod object;
mod request;
mod stored;

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use parlance_actors_runtime::{Idempotency, Refusal, TurnOutcome};
use parlance_cluster_protocol::{Item, Role, SessionKey, SessionOpened, TurnId};
use parlance_inference_gateway::FORMAT;

pub(crate) use self::stored::{cancel, delete, get};
use self::{
    events::EventRender,
    object::{Echo, ResponseObject},
    request::ResponseRequest,
};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    auth::Tenant,
    body::read_json,
    call::{self, Call, CallHeaders, DurableCall, TurnHeaders},
    format,
    frame::Caller,
    ids, models,
    reply::Reply,
    sse,
};

/// The channel of the hidden sessions of responses without a conversation.
const RESPONSE_CHANNEL: &str = "response";

/// Makes a response.
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
    let mut request = ResponseRequest::parse(&body, call_headers.model.as_deref())?;
    let idempotency = call_headers.idempotency(&parts, &body);
    let model = models::resolve(app, &request.call.options.model)?;
    let place = place(&mut request, call_headers.session)?;
    let (stream, scored) = (request.stream, request.logprobs.is_some());
    if scored && (place != Place::Unstored || idempotency.is_some()) {
        return Err(unrecorded_logprobs());
    }
    let mut echo = echo(&request, &place, model.name);
    let reply = start(app, caller, request, place, idempotency, headers).await.map_err(about_text_format)?;
    if headers.replayed {
        // The first call's place may be another one than this call's own.
        echo.previous = None;
    }
    headers.session.clone_from(&echo.conversation);
    if stream {
        let render = EventRender::new(reply.turn(), echo, None).scored(scored);
        return Ok(sse::respond(app.clone(), reply, render));
    }
    let turn = reply.turn();
    match reply.scored_outcome().await? {
        (TurnOutcome::Failed(failed), _) => Err(ApiError::from_failed(&failed)),
        (outcome, logprobs) => Ok(Json(ResponseObject::ended(turn, &echo, &outcome, &logprobs)).into_response()),
    }
}

/// A response that is fetched later must be the same, and probabilities are not in the record.
fn unrecorded_logprobs() -> ApiError {
    let message = "Unsupported value: 'include' with 'message.output_text.logprobs' goes only with 'store' set to false \
        and without an Idempotency-Key, since a durable turn's probabilities are not recorded.";
    ApiError::unsupported("include", message)
}

/// The runtime names the format as chat completions do.
fn about_text_format(error: ApiError) -> ApiError {
    if error.param.as_deref() == Some(FORMAT) { error.about(format::RESPONSES) } else { error }
}

/// Where a request's turn belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A conversation that must exist, unless the caller named it in the header.
    Conversation { id: String, create: bool },
    /// Behind another response.
    After(TurnId),
    /// A hidden session of its own.
    Own,
    /// Nowhere.
    Unstored,
}

fn place(request: &mut ResponseRequest, header: Option<String>) -> Result<Place, ApiError> {
    match (request.conversation.take(), header) {
        (Some(named), Some(header)) if named != header => Err(ApiError::invalid(
            Some("conversation".into()),
            "'conversation' and X-Session-ID name different sessions.",
        )),
        (Some(id), _) => Ok(Place::Conversation { id, create: false }),
        (None, Some(_)) if request.previous.is_some() || !request.store => {
            let message = "X-Session-ID goes neither with 'previous_response_id' nor with 'store' set to false.";
            Err(ApiError::invalid(Some("X-Session-ID".into()), message))
        }
        (None, Some(id)) => Ok(Place::Conversation { id, create: true }),
        (None, None) => Ok(match request.previous {
            Some(turn) => Place::After(turn),
            None if request.store => Place::Own,
            None => Place::Unstored,
        }),
    }
}

fn echo(request: &ResponseRequest, place: &Place, model: String) -> Echo {
    Echo {
        instructions: request.instructions.clone(),
        options: request.call.options.clone(),
        previous: request.previous.map(ids::response_id),
        conversation: match place {
            Place::Conversation { id, .. } => Some(id.clone()),
            _ => None,
        },
        metadata: request.metadata.clone(),
        store: request.store,
        model,
        user: request.call.user.clone(),
    }
}

async fn start(
    app: &App,
    caller: &Caller,
    request: ResponseRequest,
    place: Place,
    idempotency: Option<Idempotency>,
    headers: &mut TurnHeaders,
) -> Result<Reply, ApiError> {
    let ResponseRequest { mut call, instructions, logprobs, .. } = request;
    let tenant = &caller.tenant;
    let durable = match (place, idempotency) {
        (Place::Conversation { id, create }, idempotency) => {
            check_turn(&call)?;
            DurableCall { create, ..DurableCall::next(SessionKey::api(&*tenant.name, id), idempotency) }
        }
        // A repeated call must find its first turn, so with a key the place depends on the key alone.
        (Place::After(previous), Some(idempotency)) => {
            let origin = lineage::session_of(app, &tenant.name, previous).await?;
            call.input.splice(..0, lineage::history(app, &origin, previous).await?);
            DurableCall::of_key(tenant, idempotency)
        }
        (Place::Own | Place::Unstored, Some(idempotency)) => DurableCall::of_key(tenant, idempotency),
        (Place::After(previous), None) => {
            return continued(app, tenant, call, instructions, previous, headers).await;
        }
        (Place::Own, None) => DurableCall::next(own_session(tenant), None),
        (Place::Unstored, None) => {
            let instructions = instructions.map(|text| Item { role: Role::System, text });
            call.input.splice(..0, instructions);
            return call::generate(app, tenant, call, logprobs, None).await;
        }
    };
    call::submit(app, tenant, call, DurableCall { instructions, ..durable }, headers).await
}

/// A hidden session of its own.
fn own_session(tenant: &Tenant) -> SessionKey {
    SessionKey::in_channel(&*tenant.name, RESPONSE_CHANNEL, ids::fresh_turn().to_string())
}

/// Answers behind `previous`: in its session if nothing else came behind it first, else on a copy of the history up to it.
async fn continued(
    app: &App,
    tenant: &Tenant,
    call: Call,
    instructions: Option<String>,
    previous: TurnId,
    headers: &mut TurnHeaders,
) -> Result<Reply, ApiError> {
    let origin = lineage::session_of(app, &tenant.name, previous).await?;
    if let Some(turns) = lineage::turns_if_last(app, &origin, previous).await? {
        let next = DurableCall { create: false, behind: Some(turns), ..DurableCall::next(origin.clone(), None) };
        let durable = DurableCall { instructions: instructions.clone(), ..next };
        match call::submit(app, tenant, call.clone(), durable, headers).await {
            Err(error) if error.code == Refusal::SessionMovedOn.code() => {}
            submitted => return submitted,
        }
    }
    let items = lineage::history(app, &origin, previous).await?;
    let session = copied(app, own_session(tenant), items).await?;
    let durable = DurableCall { create: false, instructions, ..DurableCall::next(session, None) };
    call::submit(app, tenant, call, durable, headers).await
}

/// Opens a session that begins with another one's history.
async fn copied(app: &App, session: SessionKey, items: Vec<Item>) -> Result<SessionKey, ApiError> {
    let opened = SessionOpened { items, ..SessionOpened::default() };
    app.node.sessions().open(&session, opened, None).await?;
    Ok(session)
}

fn check_turn(call: &Call) -> Result<(), ApiError> {
    let said = call.input.iter().any(|item| item.role == Role::User);
    if said { Ok(()) } else { Err(call::no_user_message("input")) }
}
