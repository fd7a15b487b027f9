//! `/admin/v1/models`: what the node's models take, and how an operator loads and unloads them.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, Request, State},
};
use http::{StatusCode, Uri};
use parlance_actors_runtime::{ModelOrder, ModelRefusal, ModelReport, ModelsReport};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    api_error::ApiError,
    app::{App, Shared},
    auth::{Peer, require_operator},
    body::read_json,
    generation,
    json::{Object, parse_object},
    models::ModelObject,
    query::Query,
};

/// The most replicas of a model, as in the configuration.
const MAX_REPLICAS: i64 = 64;
const MAX_LANES: i64 = 1_024;
const CONTEXT_TOKENS: std::ops::RangeInclusive<i64> = 64..=1 << 20;

/// The longest time that a model may be given to finish what it has taken on: a day.
const MAX_DEADLINE_S: u64 = 24 * 60 * 60;

/// A model as its operator sees it.
#[derive(Debug, Serialize)]
pub(crate) struct AdminModel {
    #[serde(flatten)]
    model: ModelObject,
    /// How many replicas it should have, and how many serve.
    replicas: usize,
    serving: usize,
    running: usize,
    waiting: usize,
    /// What all its replicas take at most, and what it takes of the budget now, in bytes.
    bytes: u64,
    held_bytes: u64,
    pinned: bool,
    preload: bool,
    /// Earlier loadings of it that finish what they have taken on.
    draining: usize,
    /// Since when nothing was asked of it, in seconds.
    unused_s: u64,
}

impl AdminModel {
    fn new(report: ModelReport, created: u64) -> Self {
        let listing = report.listing;
        Self {
            replicas: report.replicas,
            serving: listing.replicas,
            running: listing.load.running,
            waiting: listing.load.waiting,
            bytes: report.bytes,
            held_bytes: report.held_bytes,
            pinned: report.pinned,
            preload: report.preload,
            draining: report.draining,
            unused_s: listing.unused_for.as_secs(),
            model: ModelObject::new(listing, created),
        }
    }
}

/// Lists the models and what they take.
pub(crate) async fn list(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    let ModelsReport { budget_bytes, held_bytes, models } = app.node.report_models().await?;
    let data: Vec<_> = models.into_iter().map(|report| AdminModel::new(report, app.started_at)).collect();
    // No bound is no number.
    let budget = (budget_bytes < u64::MAX).then_some(budget_bytes);
    Ok(Json(json!({
        "object": "list", "data": data, "memory": { "budget_bytes": budget, "held_bytes": held_bytes },
    })))
}

/// Shows one model, by its name or an alias.
pub(crate) async fn get(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<AdminModel>, ApiError> {
    let name = app.node.models().canonical_name(&id).unwrap_or(id);
    find(&app, &name).await?.map(Json).ok_or_else(|| not_found(&name))
}

/// Begins to load a model.
pub(crate) async fn load(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<(StatusCode, Json<AdminModel>), ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    let (_, body) = read_json(request, &app.limits).await?;
    let mut body = parse_object(&body)?;
    let (order, reload) = order(&mut body)?;
    let name = app.node.load_model(order, reload).await?;
    let model = find(&app, &name).await?.ok_or_else(|| not_found(&name))?;
    Ok((StatusCode::ACCEPTED, Json(model)))
}

fn order(body: &mut Object) -> Result<(ModelOrder, bool), ApiError> {
    let mut count = |name: &str, range| Ok::<_, ApiError>(body.integer(name, range)?.map(|count| count as usize));
    let (replicas, lanes) = (count("replicas", 1..=MAX_REPLICAS)?, count("lanes", 1..=MAX_LANES)?);
    let context_tokens = count("context_tokens", CONTEXT_TOKENS)?;
    let order = ModelOrder {
        model: body.required_string("model")?,
        source: body.string("source")?,
        precision: body.string("precision")?,
        replicas,
        lanes,
        context_tokens,
        pinned: body.boolean("pinned")?,
    };
    let reload = body.boolean("reload")?.unwrap_or(false);
    generation::check_rest(body)?;
    Ok((order, reload))
}

/// Takes a model out of service. What of it still drains is answered; a model that was added at run time is gone behind that.
pub(crate) async fn unload(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    let deadline = Query::parse(&uri)?.integer("deadline_s")?;
    let deadline = deadline.map(|seconds| Duration::from_secs(seconds.min(MAX_DEADLINE_S)));
    let name = app.node.unload_model(&id, deadline).await?;
    let state = match find(&app, &name).await? {
        Some(model) => serde_json::to_value(model).unwrap_or_default(),
        None => json!({ "id": name, "object": "model", "state": "unloaded" }),
    };
    Ok((StatusCode::ACCEPTED, Json(state)))
}

async fn find(app: &App, name: &str) -> Result<Option<AdminModel>, ApiError> {
    let models = app.node.report_models().await?.models;
    let report = models.into_iter().find(|report| report.listing.name == name);
    Ok(report.map(|report| AdminModel::new(report, app.started_at)))
}

fn not_found(name: &str) -> ApiError {
    ApiError::not_found("model_not_found", format!("The model '{name}' does not exist.")).about("model")
}

impl From<ModelRefusal> for ApiError {
    fn from(refusal: ModelRefusal) -> Self {
        let message = crate::api_error::sentence(&refusal.to_string());
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, message.clone());
        match refusal {
            ModelRefusal::NotFound { .. } => Self::not_found("model_not_found", message).about("model"),
            ModelRefusal::Unusable(_) => Self::invalid(Some("model".into()), message),
            ModelRefusal::NoRoom(_) => conflict("insufficient_memory"),
            ModelRefusal::Busy(_) => conflict("model_busy"),
            ModelRefusal::Pinned(_) => conflict("model_pinned"),
            ModelRefusal::Unavailable => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
            },
        }
    }
}
