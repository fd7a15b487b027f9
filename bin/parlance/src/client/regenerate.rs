//! Asks for the last answer of a session to be made anew. Only the WebSocket face has a word for it; the new turn is then followed
//! as every other one.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_tungstenite::{
    Connector, connect_async_tls_with_config,
    tungstenite::{self, Message, client::IntoClientRequest as _, http::header},
};

use super::api::{Api, ApiFailure};
use crate::failure::{Failure, chain, one_line};

/// From the connection to the accepted turn.
const DEADLINE: Duration = Duration::from_secs(30);

/// Starts it and returns the response's id.
pub(super) async fn start_regeneration(api: &Api, session: &str) -> Result<String, ApiFailure> {
    let silent = |_| ApiFailure::Lost("no answer within 30 s".to_owned());
    tokio::time::timeout(DEADLINE, ask(api, session)).await.map_err(silent)?
}

async fn ask(api: &Api, session: &str) -> Result<String, ApiFailure> {
    let mut url = api.url("/ws");
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    let unusable = |reason: String| ApiFailure::Refused(Failure::usage(reason, "Check --server and --api-key-file"));
    url.set_scheme(scheme).map_err(|()| unusable("the server's address cannot be used".to_owned()))?;
    let mut request = url.as_str().into_client_request().map_err(|error| unusable(chain(&error)))?;
    if let Some(key) = api.key() {
        let value = format!("Bearer {key}").parse().map_err(|_| unusable("the API key cannot be sent".to_owned()))?;
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let connector = api.ca().map(connector);
    let (mut socket, _) = connect_async_tls_with_config(request, None, true, connector).await.map_err(refused)?;
    let wanted = json!({ "type": "regenerate", "session": session }).to_string();
    socket.send(Message::text(wanted)).await.map_err(refused)?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message.map_err(refused)? else { continue };
        let message: Value = serde_json::from_str(&text).unwrap_or_default();
        match message["type"].as_str() {
            Some("accepted") => return Ok(format!("resp_{}", message["turn"].as_str().unwrap_or_default())),
            Some("error") => {
                let told = one_line(message["message"].as_str().unwrap_or("the server refuses"));
                let told = told.trim_end_matches('.');
                return Err(ApiFailure::Refused(Failure::failed(told, "Say something first, or wait for the answer")));
            }
            _ => {}
        }
    }
    Err(ApiFailure::Lost("the connection closed".to_owned()))
}

fn refused(error: tungstenite::Error) -> ApiFailure {
    match error {
        tungstenite::Error::Http(response) => {
            let message = format!("the server answers {}", response.status());
            ApiFailure::Refused(Failure::failed(message, "Pass the server's key with --api-key-file"))
        }
        other => ApiFailure::Lost(chain(&other)),
    }
}

fn connector(ca: &[u8]) -> Connector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca).flatten());
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Connector::Rustls(Arc::new(config))
}
