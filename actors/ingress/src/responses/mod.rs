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
use parlance_actors_runtime::{Idempotency, ItemQuery, Sessions, TurnOutcome};
use parlance_cluster_protocol::{History, Item, Role, SessionKey, SessionOpened, SessionUpdated, TurnId};

pub(crate) use self::stored::{cancel, delete, get};
use self::{
    events::EventRender,
    object::{Echo, ResponseObject},
    request::ResponseRequest,
};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    body::read_json,
    call::{self, Call, CallHeaders, DurableCall, TurnHeaders},
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
    let stream = request.stream;
    let mut echo = echo(&request, &place, model.name);
    let reply = start(app, caller, request, place, idempotency, headers).await?;
    if headers.replayed {
        // The first call's place may be another one than this call's own.
        echo.previous = None;
    }
    headers.session.clone_from(&echo.conversation);
    if stream {
        let render = EventRender::new(reply.turn(), echo, None);
        return Ok(sse::respond(app.clone(), reply, render));
    }
    let turn = reply.turn();
    match reply.outcome().await? {
        TurnOutcome::Failed(failed) => Err(ApiError::from_failed(&failed)),
        outcome => Ok(Json(ResponseObject::ended(turn, &echo, &outcome)).into_response()),
    }
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
    let ResponseRequest { mut call, instructions, .. } = request;
    let tenant = &caller.tenant;
    let turn = ids::fresh_turn();
    let own = || SessionKey::in_channel(&*tenant.name, RESPONSE_CHANNEL, turn.to_string());
    let by_key = idempotency.as_ref().map(|idempotency| Sessions::key_session(&tenant.name, &idempotency.key));
    let (session, history, create) = match (place, by_key) {
        (Place::Conversation { id, create }, _) => {
            let session = SessionKey::api(&*tenant.name, id);
            check_turn(&call)?;
            instruct(app, &session, instructions, create).await?;
            (session, History::Session, create)
        }
        // A repeated call must find its first turn, so with a key the place depends on the key alone.
        (Place::After(previous), Some(keys)) => {
            let origin = lineage::session_of(app, &tenant.name, previous).await?;
            let before = lineage::history(app, &origin, previous).await?;
            put_first(&mut call, instructions);
            call.input.splice(..0, before);
            (keys, History::Given, true)
        }
        (Place::After(previous), None) => {
            let session = match lineage::continuable(app, &tenant.name, previous).await? {
                Ok(session) => session,
                Err(items) => copied(app, own(), items).await?,
            };
            instruct(app, &session, instructions, false).await?;
            (session, History::Session, false)
        }
        (Place::Own | Place::Unstored, Some(keys)) => {
            put_first(&mut call, instructions);
            (keys, History::Given, true)
        }
        (Place::Own, None) => {
            put_first(&mut call, instructions);
            (own(), History::Session, true)
        }
        (Place::Unstored, None) => {
            put_first(&mut call, instructions);
            return call::generate(app, tenant, call).await;
        }
    };
    call::submit(app, tenant, call, DurableCall { session, history, create, idempotency, turn }, headers).await
}

/// Opens a session that begins with another one's history.
async fn copied(app: &App, session: SessionKey, items: Vec<Item>) -> Result<SessionKey, ApiError> {
    let opened = SessionOpened { items, ..SessionOpened::default() };
    app.node.sessions().open(&session, opened, None).await?;
    Ok(session)
}

/// Instructions of a prompt that is given whole, or begins a history, are its first message.
fn put_first(call: &mut Call, instructions: Option<String>) {
    if let Some(text) = instructions {
        call.input.insert(0, Item { role: Role::System, text });
    }
}

fn check_turn(call: &Call) -> Result<(), ApiError> {
    let said = call.input.iter().any(|item| item.role == Role::User);
    if said { Ok(()) } else { Err(call::no_user_message("input")) }
}

/// Makes instructions the session's system prompt, unless they are already what the session was told.
async fn instruct(app: &App, session: &SessionKey, text: Option<String>, create: bool) -> Result<(), ApiError> {
    let Some(text) = text else { return Ok(()) };
    if create {
        call::open_with_prompt(app, session, text.clone()).await?;
    }
    let sessions = app.node.sessions();
    let Some(info) = sessions.info(session).await? else { return Ok(()) };
    if info.system_prompt.as_ref() == Some(&text) {
        return Ok(());
    }
    if info.system_prompt.is_none() {
        let first = ItemQuery { from: Some(0), descending: false, limit: 1 };
        let items = sessions.items(session, first).await?.unwrap_or_default();
        if items.first().is_some_and(|item| item.role == Role::System && item.text == text) {
            return Ok(());
        }
    }
    let updated = SessionUpdated { system_prompt: Some(text), ..SessionUpdated::default() };
    sessions.update(session, updated, None).await?;
    Ok(())
}
