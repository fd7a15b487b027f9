//! What every request passes on its way in and out: request id, origin, credential, metrics, access log.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Body as _;
use tracing::{Instrument, info, info_span};

use crate::{
    api_error::{ApiError, ErrorCode},
    app::{App, Shared},
    auth::Tenant,
    guarded::guarded,
    metrics::OTHER_ROUTE,
};

/// The header that names a request.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// The longest request id that is taken over from a caller, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) tenant: Tenant,
}

/// Runs a request between the checks that all have in common.
pub(crate) async fn frame(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut end = RequestEnd {
        app: Arc::clone(&app),
        started: Instant::now(),
        method: request.method().clone(),
        route,
        tenant: None,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        id: id.clone(),
    };
    let span = info_span!("request", id = id.to_str().unwrap_or_default());
    let mut response = match admit(&app, &request) {
        Err(error) => error.into_response(),
        Ok(tenant) => {
            if let Some(tenant) = tenant {
                end.tenant = Some(Arc::clone(&tenant.tag));
                request.extensions_mut().insert(Caller { tenant });
            }
            next.run(request).instrument(span).await
        }
    };
    finish(&app, &mut response, id);
    end.status = response.status();
    // A body of known size is as good as sent; a stream ends when it ends.
    if response.body().size_hint().exact().is_none() { response.map(|body| guarded(body, end)) } else { response }
}

/// Checks names and credential. The tenant is absent on what needs no credential.
fn admit(app: &App, request: &Request) -> Result<Option<Tenant>, ApiError> {
    app.origins.check(request.method(), request.uri(), request.headers())?;
    let path = request.uri().path();
    let guarded = path.starts_with("/v1/") || path.starts_with("/admin/") || path == "/metrics";
    guarded.then(|| app.auth.tenant(request.headers())).transpose()
}

fn finish(app: &App, response: &mut Response, id: HeaderValue) {
    if let Some(ErrorCode(code)) = response.extensions().get() {
        app.metrics.error(code);
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// The caller's id where it is sane, else a fresh one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    let sane = |id: &&HeaderValue| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(allowed);
    headers.get(REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let fresh = format!("req_{:032x}", rand::random::<u128>());
        HeaderValue::from_str(&fresh).expect("hexadecimal digits are a header value")
    })
}

/// Counts and logs a request when it is dropped.
struct RequestEnd {
    app: Shared,
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    tenant: Option<Arc<str>>,
    status: StatusCode,
    id: HeaderValue,
}

impl Drop for RequestEnd {
    fn drop(&mut self) {
        let route = self.route.as_ref().map_or(OTHER_ROUTE, MatchedPath::as_str);
        let duration = self.started.elapsed();
        self.app.metrics.request(route, self.status, duration);
        info!(
            target: "parlance::access",
            id = self.id.to_str().unwrap_or_default(),
            method = self.method.as_str(),
            route,
            status = self.status.as_u16(),
            latency_ms = duration.as_secs_f64() * 1_000.0,
            tenant = self.tenant.as_deref(),
            "request"
        );
    }
}
