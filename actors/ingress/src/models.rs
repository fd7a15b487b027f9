//! `GET /v1/models` and `GET /v1/models/{id}`, and which model a call names.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    extract::{Path, State},
};
use parlance_actors_runtime::Refusal;
use parlance_inference_gateway::{GatewayError, ModelListing, ModelState};
use serde::Serialize;

use crate::{
    api_error::ApiError,
    app::{App, Shared},
};

/// The model that a call will be answered by, as far as that is known beforehand.
#[derive(Debug, Clone)]
pub(crate) struct ServedModel {
    pub(crate) name: String,
    pub(crate) fingerprint: Option<String>,
}

/// Finds the model by name or alias. One that is not ready is found too: whether it may answer is decided with the turn, since a
/// repeated call can be answered from the record.
pub(crate) fn resolve(app: &App, name: &str) -> Result<ServedModel, ApiError> {
    let registry = app.node.models();
    match registry.route(name, 0) {
        Ok(replica) => {
            let info = replica.info();
            Ok(ServedModel { name: info.name.clone(), fingerprint: fingerprint(&info.digest, &info.numerics) })
        }
        Err(
            GatewayError::ModelLoading { name, .. }
            | GatewayError::ModelUnavailable { name, .. }
            | GatewayError::ModelUnloaded { name },
        ) => Ok(ServedModel { name, fingerprint: None }),
        Err(error) => Err(Refusal::from(error).into()),
    }
}

/// What replies depend on besides prompt and seed, as one short text.
pub(crate) fn fingerprint(digest: &str, numerics: &str) -> Option<String> {
    let digest = digest.get(..12).unwrap_or(digest);
    (!digest.is_empty()).then(|| format!("fp_{digest}_{numerics}"))
}

/// A model as the official clients know it, and what is good to know besides.
#[derive(Debug, Serialize)]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(flatten)]
    state: StateObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_tokens: Option<u32>,
    aliases: Vec<String>,
}

/// What becomes of a model, in words.
#[derive(Debug, Serialize)]
pub(crate) struct StateObject {
    /// `unloaded`, `loading`, `warming`, `ready`, `draining` or `failed`.
    pub(crate) state: &'static str,
    /// How much is loaded, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<u8>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl From<&ModelState> for StateObject {
    fn from(state: &ModelState) -> Self {
        let (state, progress, reason) = match state {
            ModelState::Unloaded => ("unloaded", None, None),
            ModelState::Loading { percent } => ("loading", Some(*percent), None),
            ModelState::Warming => ("warming", None, None),
            ModelState::Ready => ("ready", None, None),
            ModelState::Draining => ("draining", None, None),
            ModelState::Failed { reason } => ("failed", None, Some(reason.clone())),
        };
        Self { state, progress, reason }
    }
}

impl ModelObject {
    pub(crate) fn new(listing: ModelListing, created: u64) -> Self {
        Self {
            state: StateObject::from(&listing.state),
            id: listing.name,
            object: "model",
            created,
            owned_by: "parlance",
            context_tokens: listing.info.map(|info| info.context_tokens),
            aliases: listing.aliases,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// Lists the models.
pub(crate) async fn list(State(app): State<Shared>) -> Json<ModelList> {
    let created = app.started_at;
    let data = app.node.models().list().into_iter().map(|listing| ModelObject::new(listing, created)).collect();
    Json(ModelList { object: "list", data })
}

/// Shows one model, by its name or an alias.
pub(crate) async fn get(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<ModelObject>, ApiError> {
    let registry = app.node.models();
    let name = registry.canonical_name(&id).map_err(Refusal::from)?;
    let listing = registry.list().into_iter().find(|listing| listing.name == name);
    let gone = || ApiError::not_found("model_not_found", "The model was removed just now.").about("model");
    listing.map(|listing| Json(ModelObject::new(listing, app.started_at))).ok_or_else(gone)
}

/// Now, in seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
