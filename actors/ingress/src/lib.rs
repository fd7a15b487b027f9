//! The public face of a node: HTTP, server-sent events and WebSocket on axum, in the shape that the official OpenAI clients speak.
//!
//! ```text
//! socket ── listener (bounds, TLS, time-outs) ── frame (id, origin, key, metrics) ── handler ── runtime
//!                                                                                      │
//!                                   chat · responses · conversations · embeddings · websocket · operations · page
//! ```
//! Nothing here decides about sessions: a handler parses and checks a request, asks the runtime, and renders what it answers. A reply
//! is watched through one helper, `reply`, whatever the face, so that none of them splices two texts or shows one twice.

mod activity;
mod adoption;
mod api_error;
mod app;
mod auth;
mod body;
mod call;
mod chat;
mod cluster_admin;
mod conversations;
mod embeddings;
mod error;
mod format;
mod frame;
mod generation;
mod guarded;
mod ids;
mod json;
mod listener;
mod logprobs;
mod messages;
mod metadata;
mod metrics;
mod model_admin;
mod models;
mod operations;
mod options;
mod origin;
mod page;
mod query;
mod reply;
mod responses;
mod shown;
mod sse;
mod tools;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::Future;

use parlance_actors_runtime::Node;
use tokio::sync::watch;

pub use self::{
    auth::Auth,
    error::IngressError,
    listener::{Listener, bind},
    metrics::{DURATION_BUCKETS, REQUEST_DURATION},
    options::{IngressLimits, IngressOptions},
};

/// Serves the public face until `shutdown`, then finishes running responses up to the stated bound.
///
/// # Errors
///
/// [`IngressError::Origin`] for a bad origin in the options, [`IngressError::Accept`] if the socket fails for good.
pub async fn serve(
    listener: Listener,
    options: IngressOptions,
    node: Node,
    shutdown: impl Future<Output = ()>,
) -> Result<(), IngressError> {
    let (close, closing) = watch::channel(false);
    let app = app::App::new(&options, node, listener.address(), closing.clone())?;
    let connections = listener::Connections {
        router: app::router(app),
        tls: options.tls.map(tokio_rustls::TlsAcceptor::from),
        limits: options.limits,
        closing,
    };
    listener::accept_loop(listener, connections, close, shutdown).await
}
