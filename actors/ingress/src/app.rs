//! What every handler works with, and which handler answers what.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{Method, StatusCode},
    middleware::from_fn_with_state,
    routing::{get, post},
};
use http::{HeaderName, header};
use metrics_exporter_prometheus::PrometheusHandle;
use parlance_actors_runtime::Node;
use tokio::sync::{Semaphore, watch};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    adoption,
    api_error::ApiError,
    auth::Auth,
    chat, cluster_admin, conversations, embeddings,
    error::IngressError,
    frame::frame,
    metrics::HttpMetrics,
    model_admin, models, operations,
    options::{IngressLimits, IngressOptions},
    origin::{Origins, host_of},
    page::{self, Assets},
    responses, websocket,
};

/// The state of the public face, shared by all handlers.
pub(crate) struct App {
    pub(crate) node: Node,
    pub(crate) auth: Auth,
    pub(crate) origins: Origins,
    pub(crate) limits: IngressLimits,
    pub(crate) metrics: HttpMetrics,
    pub(crate) prometheus: Option<PrometheusHandle>,
    pub(crate) user_secret: [u8; 32],
    pub(crate) assets: Assets,
    /// Places for WebSockets.
    pub(crate) sockets: Arc<Semaphore>,
    /// Turns true at shutdown.
    pub(crate) closing: watch::Receiver<bool>,
    /// In seconds since the Unix epoch.
    pub(crate) started_at: u64,
}

pub(crate) type Shared = Arc<App>;

impl App {
    /// The state for a server at `listen`.
    pub(crate) fn new(
        options: &IngressOptions,
        node: Node,
        listen: SocketAddr,
        closing: watch::Receiver<bool>,
    ) -> Result<Shared, IngressError> {
        Ok(Arc::new(Self {
            node,
            origins: Origins::new(&options.cors_origins, listen, options.auth.is_open())?,
            auth: options.auth.clone(),
            metrics: HttpMetrics::new(ROUTES),
            prometheus: options.metrics.clone(),
            user_secret: options.user_secret,
            assets: Assets::new(),
            sockets: Arc::new(Semaphore::new(options.limits.websockets)),
            limits: options.limits.clone(),
            closing,
            started_at: models::unix_seconds(),
        }))
    }
}

/// Every route, as metrics name it.
pub(crate) const ROUTES: &[&str] = &[
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/{id}",
    "/v1/responses/{id}/cancel",
    "/v1/conversations",
    "/v1/conversations/{id}",
    "/v1/conversations/{id}/items",
    "/v1/conversations/{id}/items/{item}",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{*id}",
    "/ws",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/admin/v1/status",
    "/admin/v1/sessions",
    "/admin/v1/models",
    "/admin/v1/models/{*id}",
    "/admin/v1/nodes",
    "/admin/v1/nodes/{name}/drain",
    "/admin/v1/nodes/{name}/undrain",
    "/admin/v1/shards",
    "/admin/v1/shards/{shard}/move",
    "/admin/v1/adoption",
    "/admin/v1/adoption/compare",
];

/// The router of the public face.
pub(crate) fn router(app: Shared) -> Router {
    let cors = cors(Arc::clone(&app));
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/conversations", get(conversations::list).post(conversations::create))
        .route(
            "/v1/conversations/{id}",
            get(conversations::get).post(conversations::update).delete(conversations::delete),
        )
        .route("/v1/conversations/{id}/items", get(conversations::list_items).post(conversations::add_items))
        .route("/v1/conversations/{id}/items/{item}", get(conversations::get_item))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        // A model's name may hold slashes.
        .route("/v1/models/{*id}", get(models::get))
        .route("/ws", get(websocket::upgrade))
        .route("/healthz", get(operations::health))
        .route("/readyz", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .route("/openapi.json", get(operations::openapi))
        .route("/admin/v1/status", get(operations::status))
        .route("/admin/v1/sessions", get(operations::sessions))
        .route("/admin/v1/models", get(model_admin::list).post(model_admin::load))
        .route("/admin/v1/models/{*id}", get(model_admin::get).delete(model_admin::unload))
        .route("/admin/v1/nodes", get(cluster_admin::nodes))
        .route("/admin/v1/nodes/{name}/drain", post(cluster_admin::drain))
        .route("/admin/v1/nodes/{name}/undrain", post(cluster_admin::undrain))
        .route("/admin/v1/shards", get(cluster_admin::shards))
        .route("/admin/v1/shards/{shard}/move", post(cluster_admin::move_shard))
        .route("/admin/v1/adoption", post(adoption::adopt))
        .route("/admin/v1/adoption/compare", post(adoption::compare))
        .fallback(page::serve)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), frame))
        .layer(cors)
        .with_state(app)
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{} is not allowed here; see the header Allow.", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Lets pages of allowed origins read answers; all others are kept out by the browser.
fn cors(app: Shared) -> CorsLayer {
    let exposed = ["x-request-id", "x-session-id", "x-turn-id", "idempotency-replayed", "x-should-retry"];
    let allowed = AllowOrigin::predicate(move |origin, parts| {
        app.origins.is_allowed(origin, host_of(&parts.uri, &parts.headers))
    });
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(
            exposed.map(HeaderName::from_static).into_iter().chain([header::RETRY_AFTER]).collect::<Vec<_>>(),
        )
}
