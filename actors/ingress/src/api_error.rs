//! Errors as the public interface shows them: `{"error":{"message","type","param","code"}}` with the right status and headers.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use parlance_actors_runtime::Refusal;
use parlance_cluster_protocol::TurnFailed;
use parlance_inference_engine::EngineError;
use serde::Serialize;

/// How long a caller is asked to wait where nothing better is known.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request is answered with an error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether the official clients must not repeat the request by themselves.
    pub(crate) no_retry: bool,
}

/// The code of an error response, for whoever counts them.
#[derive(Debug, Clone)]
pub(crate) struct ErrorCode(pub(crate) Cow<'static, str>);

#[derive(Serialize)]
struct Envelope<'a> {
    error: ErrorObject<'a>,
}

/// The error object, as it is also sent inside event streams.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'a str,
}

impl ApiError {
    /// An error with the given status and code.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let no_retry = status == StatusCode::CONFLICT;
        Self { status, code: Cow::Borrowed(code), param: None, message: message.into(), retry_after: None, no_retry }
    }

    /// A value that cannot be used.
    pub(crate) fn invalid(param: Option<String>, message: impl Into<String>) -> Self {
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A body that is not JSON.
    pub(crate) fn bad_json(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// A feature of the interface that this server does not have.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "unsupported_value", message) }
    }

    /// Nothing of that name.
    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// The same error about the given parameter.
    pub(crate) fn about(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The error's category as the official clients know them.
    pub(crate) fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The error as an object for an event stream or a body.
    pub(crate) fn object(&self) -> ErrorObject<'_> {
        ErrorObject { message: &self.message, kind: self.kind(), param: self.param.as_deref(), code: &self.code }
    }

    /// The error as the body of a response.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&Envelope { error: self.object() }).expect("strings always serialise")
    }

    /// The error of a turn that ended without a reply.
    pub(crate) fn from_failed(failed: &TurnFailed) -> Self {
        let status = match failed.code.as_str() {
            "context_length_exceeded" | "invalid_value" | "content_blocked" => StatusCode::BAD_REQUEST,
            "model_not_found" => StatusCode::NOT_FOUND,
            "deadline_exceeded" => StatusCode::GATEWAY_TIMEOUT,
            "overloaded" | "draining" | "log_unavailable" | "records_unavailable" | "session_parked" => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { code: Cow::Owned(failed.code.clone()), ..Self::new(status, "", failed.message.clone()) }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = status(&refusal);
        let waits = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let message = sentence(&refusal.to_string());
        let error =
            Self { retry_after: waits.then_some(DEFAULT_RETRY_AFTER), ..Self::new(status, refusal.code(), message) };
        match refusal {
            Refusal::InvalidValue { param, .. } => error.about(param),
            Refusal::ContextExceeded(_) | Refusal::Engine(EngineError::ContextExceeded { .. }) => {
                error.about("messages")
            }
            Refusal::Engine(EngineError::TextTooLong { .. } | EngineError::Texts(_)) => error.about("input"),
            Refusal::ModelNotFound { .. } | Refusal::ModelUnloaded { .. } => error.about("model"),
            Refusal::Engine(EngineError::Template(_)) => Self::invalid(Some("messages".into()), error.message),
            Refusal::Overloaded { retry_after, .. }
            | Refusal::RateLimited { retry_after, .. }
            | Refusal::Engine(EngineError::QueueFull { retry_after }) => {
                Self { retry_after: Some(retry_after), ..error }
            }
            Refusal::Parked(_) => Self { retry_after: None, message: PARKED.into(), ..error },
            _ => error,
        }
    }
}

/// The runtime's own words name the session's whole key, which is not for outside.
const PARKED: &str = "The session failed repeatedly and is set aside; a restart of the node brings it back.";

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::InvalidValue { .. }
        | Refusal::ContextExceeded(_)
        | Refusal::Blocked { .. }
        | Refusal::Engine(
            EngineError::ContextExceeded { .. }
            | EngineError::TextTooLong { .. }
            | EngineError::Texts(_)
            | EngineError::Template(_)
            | EngineError::Schema(_),
        ) => StatusCode::BAD_REQUEST,
        Refusal::ModelNotFound { .. } | Refusal::ModelUnloaded { .. } | Refusal::SessionNotFound => {
            StatusCode::NOT_FOUND
        }
        Refusal::IdempotencyConflict | Refusal::SessionExists | Refusal::SessionMovedOn => StatusCode::CONFLICT,
        // The caller's own limits, as against ours below.
        Refusal::SessionBusy { .. }
        | Refusal::QueueFull { .. }
        | Refusal::RateLimited { .. }
        | Refusal::Engine(EngineError::QueueFull { .. }) => StatusCode::TOO_MANY_REQUESTS,
        Refusal::Engine(EngineError::DeadlineExceeded) => StatusCode::GATEWAY_TIMEOUT,
        Refusal::Engine(EngineError::ModelFailed(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        Refusal::ModelNotReady { .. }
        | Refusal::Overloaded { .. }
        | Refusal::LogUnavailable(_)
        | Refusal::NotHere
        | Refusal::RecordsUnavailable(_)
        | Refusal::Draining
        | Refusal::Parked(_)
        | Refusal::Engine(EngineError::Stopped) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Turns an error's text into a sentence for a person.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{}{}{end}", first.to_uppercase(), letters.as_str())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if self.no_retry {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ErrorCode(self.code));
        response
    }
}

/// Rounded up, at least one.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_told_in_whole_seconds() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1_001)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(3)), 3);
    }

    #[test]
    fn refusals_have_their_status_and_code() {
        let parked = Refusal::Parked(parlance_cluster_protocol::SessionKey::api("secret-tenant", "s"));
        let cases = [
            (Refusal::SessionBusy { queued: 8 }, 429, "session_busy"),
            (Refusal::QueueFull { open: 8 }, 429, "queue_full"),
            (
                Refusal::RateLimited { message: "too many keys".into(), retry_after: Duration::ZERO },
                429,
                "rate_limited",
            ),
            (Refusal::Overloaded { what: "turns".into(), retry_after: Duration::from_millis(1) }, 503, "overloaded"),
            (Refusal::LogUnavailable("disk full".into()), 503, "log_unavailable"),
            (Refusal::RecordsUnavailable("io".into()), 503, "records_unavailable"),
            (Refusal::Draining, 503, "draining"),
            (Refusal::IdempotencyConflict, 409, "idempotency_conflict"),
            (Refusal::SessionExists, 409, "session_exists"),
            (Refusal::SessionMovedOn, 409, "session_moved_on"),
            (Refusal::SessionNotFound, 404, "session_not_found"),
            (Refusal::ModelNotFound { model: "x".into(), available: "y".into() }, 404, "model_not_found"),
            (Refusal::ModelUnloaded { model: "x".into() }, 404, "model_not_found"),
            (Refusal::ModelNotReady { model: "x".into(), reason: "loading".into() }, 503, "overloaded"),
            (Refusal::ContextExceeded("too long".into()), 400, "context_length_exceeded"),
            (Refusal::InvalidValue { param: "top_p".into(), message: "bad".into() }, 400, "invalid_value"),
            (parked, 503, "session_parked"),
            (Refusal::Blocked { code: "content_blocked", message: "not here".into() }, 400, "content_blocked"),
            (Refusal::Engine(EngineError::DeadlineExceeded), 504, "deadline_exceeded"),
            (Refusal::Engine(EngineError::QueueFull { retry_after: Duration::ZERO }), 429, "queue_full"),
            (Refusal::Engine(EngineError::Stopped), 503, "model_failed"),
            (Refusal::Engine(EngineError::Template("roles".into())), 400, "invalid_value"),
            (Refusal::Engine(EngineError::ModelFailed("nan".into())), 500, "model_failed"),
        ];
        for (refusal, status, code) in cases {
            let error = ApiError::from(refusal.clone());
            assert_eq!((error.status.as_u16(), error.code.as_ref()), (status, code), "{refusal:?}");
            assert!(!error.message.contains("secret-tenant"));
            let response = error.into_response();
            let retry = response.headers().get(header::RETRY_AFTER).is_some();
            assert_eq!(retry, status == 429 || (status == 503 && code != "session_parked"), "{refusal:?}");
            assert_eq!(response.headers().contains_key("x-should-retry"), status == 409, "{refusal:?}");
        }
    }

    #[test]
    fn texts_become_sentences() {
        assert_eq!(sentence("the session does not exist"), "The session does not exist.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(""), "");
    }
}
