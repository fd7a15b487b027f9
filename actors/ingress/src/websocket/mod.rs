//! `/ws`: the web chat's line. Several turns of several sessions run over one socket.
//!
//! ```text
//! page                                              server
//!  │ auth{key}               (only with keys, first)   │
//!  │──────────────────────────────────────────────────►│ ready{}
//!  │ turn{session,text,id?,model?,…}                   │
//!  │──────────────────────────────────────────────────►│ accepted{turn,session,id,replayed}     durable from here on
//!  │◄──────────────────────────────────────────────────│ delta{turn,seq,text} …                 seq: bytes of the reply so far
//!  │◄──────────────────────────────────────────────────│ rewind{turn,seq}                       only seq bytes stand
//!  │◄──────────────────────────────────────────────────│ final{turn,session,seq,finish_reason,model,usage}
//!  │ regenerate{session,turn?,id?}  as turn            │
//!  │ resume{turn,after,session?}    as turn, from byte `after` on
//!  │ stop{session,turn?}                               │ stopped{session,stopped}; the turn's own final follows
//!  │ ping{}                                            │ pong{}
//!  │◄──────────────────────────────────────────────────│ error{code,message,param,turn?,session?,id?}
//! ```
//! A turn that is sent again with the `id` it had joins the first one, so a page that lost its line repeats what was not accepted and
//! resumes what was. Losing the line ends no turn.

mod connection;
mod message;
mod turns;

use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};

use crate::{
    api_error::ApiError,
    app::{App, Shared},
    auth::Tenant,
};

/// The subprotocol that pages ask for, next to the one that carries their key.
const SUBPROTOCOL: &str = "parlance";

/// The longest message from a page, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;

/// Bytes that may wait for the socket before the connection is given up.
const MAX_UNWRITTEN: usize = 1024 * 1024;

/// Takes a socket over.
pub(crate) async fn upgrade(
    State(app): State<Shared>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let admitted = upgrade.map_err(not_a_websocket).and_then(|upgrade| {
        let tenant = tenant(&app, &headers)?;
        let full =
            || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "This node has too many WebSockets.");
        let place = app.sockets.clone().try_acquire_owned().map_err(|_| full())?;
        Ok((upgrade, tenant, place))
    });
    match admitted {
        Err(error) => error.into_response(),
        Ok((upgrade, tenant, place)) => {
            let upgrade = upgrade.protocols([SUBPROTOCOL]).max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
            upgrade.max_write_buffer_size(MAX_UNWRITTEN).on_upgrade(move |socket| async move {
                let _open = app.metrics.websocket();
                let _place = place;
                connection::run(socket, app, tenant).await;
            })
        }
    }
}

/// The caller, if it is known already; a browser may tell its key in the first message instead.
fn tenant(app: &App, headers: &HeaderMap) -> Result<Option<Tenant>, ApiError> {
    if app.auth.is_open() || headers.contains_key(header::AUTHORIZATION) {
        return app.auth.tenant(headers).map(Some);
    }
    Ok(app.auth.tenant_of_subprotocols(headers))
}

fn not_a_websocket(rejection: WebSocketUpgradeRejection) -> ApiError {
    let status = rejection.status();
    ApiError::new(status, "websocket_expected", format!("This is a WebSocket endpoint: {}.", rejection.body_text()))
}
