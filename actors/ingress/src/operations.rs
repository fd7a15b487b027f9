//! What operators and their tools ask: health, readiness, metrics, the interface's description, the node's state.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, Uri, header};
use parlance_actors_runtime::{Dependency, SessionInfo};
use parlance_cluster_protocol::SessionKey;
use parlance_inference_gateway::ModelListing;
use serde_json::{Value, json};

use crate::{api_error::ApiError, app::Shared, cluster_admin, frame::Caller, ids, models::StateObject, query::Query};

/// Sessions per page.
const PAGE: usize = 50;
const MAX_PAGE: usize = 500;

/// The interface's description, kept by hand next to this file.
const OPENAPI: &str = include_str!("openapi.json");

/// Alive: the process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether the node may take traffic, and why not.
pub(crate) async fn ready(State(app): State<Shared>) -> Response {
    let readiness = app.node.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "status": if readiness.ready { "ready" } else { "not_ready" }, "reasons": readiness.reasons });
    (status, Json(body)).into_response()
}

/// The metrics in Prometheus' text format.
pub(crate) async fn metrics(State(app): State<Shared>) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found("metrics_disabled", "This server was started without metrics.");
    let rendered = app.prometheus.as_ref().ok_or_else(unknown)?.render();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], rendered).into_response())
}

/// The interface's description as OpenAPI 3.1.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

/// The node's state.
pub(crate) async fn status(State(app): State<Shared>) -> Json<Value> {
    let status = app.node.status();
    Json(json!({
        "node": status.node,
        "boot": status.boot,
        "ready": status.readiness.ready,
        "reasons": status.readiness.reasons,
        "draining": app.node.is_draining(),
        "shards": { "owned": status.shards_owned, "total": status.shards },
        "sessions": { "live": status.live_sessions, "parked": status.parked_sessions },
        "open_turns": status.open_turns,
        "stateless": status.stateless,
        "log": { "admits": status.log.is_none(), "reason": status.log },
        "dependencies": status.dependencies.iter().map(dependency).collect::<Vec<_>>(),
        "cluster": app.node.cluster().map(|view| cluster_admin::summary(&view)),
        "models": status.models.iter().map(model).collect::<Vec<_>>(),
        "started_at": app.started_at,
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

fn dependency(dependency: &Dependency) -> Value {
    json!({ "name": dependency.name, "up": dependency.is_up(), "reason": dependency.trouble })
}

fn model(listing: &ModelListing) -> Value {
    let StateObject { state, progress, reason } = (&listing.state).into();
    json!({
        "name": listing.name,
        "aliases": listing.aliases,
        "state": state,
        "detail": progress.map(Value::from).or(reason.map(Value::from)),
        "replicas": listing.replicas,
        "running": listing.load.running,
        "waiting": listing.load.waiting,
    })
}

/// The caller's sessions, without their content. `channel` chooses others than those of the public interface.
pub(crate) async fn sessions(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let mut query = Query::parse(&uri)?;
    let limit = query.limit(PAGE, MAX_PAGE)?;
    let channel = query.string("channel").unwrap_or_else(|| SessionKey::api("", "").channel);
    ids::check_session_id(&channel, "channel")?;
    let tenant = &*caller.tenant.name;
    let after = match query.string("after") {
        None => None,
        Some(after) => {
            ids::check_session_id(&after, "after")?;
            Some(SessionKey::in_channel(tenant, channel.as_str(), after))
        }
    };
    let mut found = app.node.sessions().list(tenant, &channel, after.as_ref(), limit + 1).await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().map(|info| info.session.chat.clone());
    let data: Vec<Value> = found.iter().map(session).collect();
    Ok(Json(json!({ "object": "list", "data": data, "last_id": last, "has_more": has_more })))
}

fn session(info: &SessionInfo) -> Value {
    json!({
        "id": info.session.chat,
        "channel": info.session.channel,
        "created_at": info.created_at.0 / 1_000,
        "updated_at": info.updated_at.0 / 1_000,
        "items": info.items,
        "open_turns": info.open_turns.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
