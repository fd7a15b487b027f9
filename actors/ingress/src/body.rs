//! Reading a request's body: bounded in type, size and time, before anything looks at it.

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::{api_error::ApiError, options::IngressLimits};

/// The request's head and its whole JSON body.
pub(crate) async fn read_json(request: Request, limits: &IngressLimits) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    check_headers(&parts.headers)?;
    let bytes = read(body, limits).await?;
    Ok((parts, bytes))
}

/// The same where the body may be absent.
pub(crate) async fn read_optional_json(
    request: Request,
    limits: &IngressLimits,
) -> Result<(Parts, Option<Bytes>), ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read(body, limits).await?;
    if bytes.is_empty() {
        return Ok((parts, None));
    }
    check_headers(&parts.headers)?;
    Ok((parts, Some(bytes)))
}

/// A body of `most` bytes at most that is no text.
pub(crate) async fn read_octets(request: Request, most: usize, limits: &IngressLimits) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    if parts.headers.get(header::CONTENT_TYPE).is_none_or(|value| value != "application/octet-stream") {
        return Err(unsupported("Unsupported content type; send 'Content-Type: application/octet-stream'."));
    }
    read(body, &IngressLimits { body_bytes: most, ..limits.clone() }).await
}

fn unsupported(message: &'static str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(unsupported(
            "Compressed request bodies are not supported; send the body without Content-Encoding.",
        ));
    }
    // A type is demanded since pages of other sites can send bodies of a few other types without asking.
    let essence = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let essence = essence.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    Err(unsupported("Unsupported content type; send the body with 'Content-Type: application/json'."))
}

async fn read(body: Body, limits: &IngressLimits) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large(limits));
    }
    let whole = timeout(limits.body_timeout, Limited::new(body, limits.body_bytes).collect());
    match whole.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limits)),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            "The request body ended early or was malformed.",
        )),
        Err(_) => {
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request body came too slowly."))
        }
    }
}

fn too_large(limits: &IngressLimits) -> ApiError {
    let message = format!("The request body is larger than {} bytes.", limits.body_bytes);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}
