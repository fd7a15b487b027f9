//! `POST /v1/embeddings`. Nothing is recorded: a call ends with its client.

mod object;
mod request;

use axum::{
    Extension,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use parlance_actors_runtime::EmbedRequest;
use tokio::task::spawn_blocking;

use self::{object::EmbeddingList, request::EmbeddingsRequest};
use crate::{api_error::ApiError, app::Shared, body::read_json, call::CallHeaders, frame::Caller};

/// Embeds texts.
pub(crate) async fn create(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = read_json(request, &app.limits).await?;
    let headers = CallHeaders::read(&parts.headers)?;
    let request = EmbeddingsRequest::parse(&body, headers.model.as_deref())?;
    drop(body);
    let embedded = app
        .node
        .embed(EmbedRequest {
            tenant: caller.tenant.name.to_string(),
            model: request.model,
            inputs: request.inputs,
            dimensions: request.dimensions,
        })
        .await?;
    let encoding = request.encoding;
    // Thousands of vectors are tens of megabytes of text.
    let rendered = spawn_blocking(move || EmbeddingList::new(&embedded, encoding).to_json()).await;
    let json = rendered.map_err(|_| unrendered())?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

fn unrendered() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "The vectors could not be written.")
}
