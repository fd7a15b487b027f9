//! The items of a conversation: list, add, get one.

use axum::{
    Extension, Json,
    extract::{Path, Request, State},
};
use http::Uri;
use parlance_actors_runtime::{ItemQuery, SessionItem};
use parlance_cluster_protocol::{ItemsAdded, SessionKey, TurnId};

use super::{
    find,
    object::{ItemObject, Page},
    refuse_rest,
};
use crate::{
    api_error::ApiError,
    app::{App, Shared},
    body::read_json,
    frame::Caller,
    json::{missing, parse_object},
    query::Query,
};

/// Items per page.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// How a reply is looked for by its turn: items per read, and reads.
const SEARCH_PAGE: usize = 256;
const MAX_SEARCH: usize = 40;

/// Lists items; the newest first unless `order=asc`.
pub(crate) async fn list_items(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<Page<ItemObject>>, ApiError> {
    let mut query = Query::parse(&uri)?;
    let limit = query.limit(PAGE, MAX_PAGE)?;
    let descending = match query.string("order").as_deref() {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(ApiError::invalid(Some("order".into()), "Invalid 'order': expected asc or desc.")),
    };
    let (session, _) = find(&app, &caller, id).await?;
    let from = match query.string("after") {
        None => None,
        Some(after) => {
            let index = index_of(&app, &session, &after, "after").await?;
            let next = if descending { index.checked_sub(1) } else { index.checked_add(1) };
            let Some(next) = next else { return Ok(Json(Page::cut(Vec::new(), limit, ItemObject::id))) };
            Some(next)
        }
    };
    let items = read(&app, &session, ItemQuery { from, descending, limit: limit + 1 }).await?;
    let objects = items.into_iter().map(ItemObject::from).collect();
    Ok(Json(Page::cut(objects, limit, ItemObject::id)))
}

/// Puts items into the history, without a turn.
pub(crate) async fn add_items(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Page<ItemObject>>, ApiError> {
    let (_, body) = read_json(request, &app.limits).await?;
    let mut body = parse_object(&body)?;
    let values = body.array("items")?.ok_or_else(|| missing("items"))?;
    if values.is_empty() {
        return Err(ApiError::invalid(Some("items".into()), "Invalid 'items': expected at least one item."));
    }
    let items = super::few_items(values)?;
    refuse_rest(&body)?;
    let session = super::key(&caller, id)?;
    let added = app.node.sessions().add_items(&session, ItemsAdded { items }, None).await?;
    let objects: Vec<ItemObject> = added.into_iter().map(ItemObject::from).collect();
    let count = objects.len();
    Ok(Json(Page::cut(objects, count, ItemObject::id)))
}

/// Shows one item.
pub(crate) async fn get_item(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((id, item)): Path<(String, String)>,
) -> Result<Json<ItemObject>, ApiError> {
    let (session, _) = find(&app, &caller, id).await?;
    let index = index_of(&app, &session, &item, "item_id").await?;
    let items = read(&app, &session, ItemQuery { from: Some(index), descending: false, limit: 1 }).await?;
    let found = items.into_iter().find(|found| found.index == index);
    found.map(|item| Json(item.into())).ok_or_else(|| unknown("item_id"))
}

async fn read(app: &App, session: &SessionKey, query: ItemQuery) -> Result<Vec<SessionItem>, ApiError> {
    Ok(app.node.sessions().items(session, query).await?.unwrap_or_default())
}

/// The place that an item's id stands for: its own number, or that of a turn's reply.
async fn index_of(app: &App, session: &SessionKey, id: &str, param: &str) -> Result<u64, ApiError> {
    let name = id.strip_prefix("msg_").ok_or_else(|| unknown(param))?;
    if let Some(number) = name.strip_prefix('i') {
        return number.parse().map_err(|_| unknown(param));
    }
    let turn = TurnId::parse(name).ok_or_else(|| unknown(param))?;
    let mut query = ItemQuery { from: None, descending: true, limit: SEARCH_PAGE };
    for _ in 0..MAX_SEARCH {
        let items = read(app, session, query).await?;
        let reply = |item: &&SessionItem| item.turn == Some(turn) && item.finish.is_some();
        if let Some(found) = items.iter().find(reply) {
            return Ok(found.index);
        }
        match items.last().and_then(|oldest| oldest.index.checked_sub(1)) {
            Some(next) => query.from = Some(next),
            None => break,
        }
    }
    Err(unknown(param))
}

fn unknown(param: &str) -> ApiError {
    ApiError::not_found("item_not_found", "The conversation has no item of this id.").about(param)
}
