//! `/v1/conversations`: durable sessions as the official clients know them. A conversation's id is its session's id.

mod items;
mod object;

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::{Path, Request, State},
};
use http::Uri;
use parlance_actors_runtime::SessionInfo;
use parlance_cluster_protocol::{Item, SessionKey, SessionOpened, SessionUpdated};
use serde_json::{Value, json};

pub(crate) use self::items::{add_items, get_item, list_items};
use self::object::{ConversationObject, Page};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    body::{read_json, read_optional_json},
    frame::Caller,
    ids,
    json::{Object, parse_object},
    messages, metadata,
    query::Query,
};

/// The most items that a conversation can be created with, or given at once: the interface's own bound.
const MAX_ITEMS: usize = 20;

/// Conversations per page.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// Creates a conversation.
pub(crate) async fn create(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<ConversationObject>, ApiError> {
    let (_, body) = read_optional_json(request, &app.limits).await?;
    let opened = match body {
        Some(body) => opened(parse_object(&body)?)?,
        None => SessionOpened::default(),
    };
    let session = SessionKey::api(&*caller.tenant.name, ids::fresh_conversation());
    let info = app.node.sessions().open(&session, opened, None).await?;
    Ok(Json(info.into()))
}

fn opened(mut body: Object) -> Result<SessionOpened, ApiError> {
    let items = body.array("items")?.map(few_items).transpose()?.unwrap_or_default();
    let metadata = metadata::take(&mut body)?.unwrap_or_default();
    let system_prompt = body.string("system_prompt")?;
    refuse_rest(&body)?;
    Ok(SessionOpened { metadata, system_prompt, items })
}

fn few_items(values: Vec<Value>) -> Result<Vec<Item>, ApiError> {
    match values.len() {
        0 => Ok(Vec::new()),
        1..=MAX_ITEMS => messages::messages(values, "items"),
        _ => Err(ApiError::invalid(Some("items".into()), format!("Invalid 'items': at most {MAX_ITEMS} at a time."))),
    }
}

fn refuse_rest(body: &Object) -> Result<(), ApiError> {
    match body.rest().next() {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("Unrecognized request argument supplied: {name}.");
            Err(ApiError { code: "unknown_parameter".into(), ..ApiError::invalid(Some(name.clone()), message) })
        }
    }
}

/// Shows a conversation.
pub(crate) async fn get(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<ConversationObject>, ApiError> {
    let (_, info) = find(&app, &caller, id).await?;
    Ok(Json(info.into()))
}

/// Changes labels and system prompt.
pub(crate) async fn update(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<ConversationObject>, ApiError> {
    let (_, body) = read_json(request, &app.limits).await?;
    let mut body = parse_object(&body)?;
    let updated = SessionUpdated { metadata: metadata::take(&mut body)?, system_prompt: body.string("system_prompt")? };
    refuse_rest(&body)?;
    let session = key(&caller, id)?;
    let info = app.node.sessions().update(&session, updated, None).await?;
    Ok(Json(info.into()))
}

/// Deletes a conversation with its history.
pub(crate) async fn delete(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let session = key(&caller, id)?;
    app.node.sessions().delete(&session, None).await?;
    Ok(Json(json!({ "id": session.chat, "object": "conversation.deleted", "deleted": true })))
}

/// Lists the tenant's conversations in the order of their ids.
pub(crate) async fn list(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Json<Page<ConversationObject>>, ApiError> {
    let mut query = Query::parse(&uri)?;
    let limit = query.limit(PAGE, MAX_PAGE)?;
    let after = query.string("after").map(|after| key(&caller, after)).transpose()?;
    let tenant = &*caller.tenant.name;
    let channel = SessionKey::api("", "").channel;
    let found = app.node.sessions().list(tenant, &channel, after.as_ref(), limit + 1).await?;
    let objects = found.into_iter().map(ConversationObject::from).collect();
    Ok(Json(Page::cut(objects, limit, |object| object.id())))
}

/// The session of a conversation's id. An id that cannot be one names nothing.
fn key(caller: &Caller, id: String) -> Result<SessionKey, ApiError> {
    ids::check_session_id(&id, "conversation_id")?;
    Ok(SessionKey::api(&*caller.tenant.name, id))
}

async fn find(app: &App, caller: &Caller, id: String) -> Result<(SessionKey, SessionInfo), ApiError> {
    let session = key(caller, id)?;
    let info = app.node.sessions().info(&session).await?;
    let unknown = || ApiError::not_found("session_not_found", "The session does not exist.").about("conversation_id");
    info.map(|info| (session, info)).ok_or_else(unknown)
}

/// Labels as they are shown.
type Metadata = BTreeMap<String, String>;
