//! One server as its clients see it: where it is, who calls, and what its errors mean.

use std::{path::PathBuf, time::Duration};

use reqwest::{RequestBuilder, Response, StatusCode, Url, header};
use serde_json::Value;

use crate::{
    auth,
    failure::{Failure, chain, one_line},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream says something at least every few seconds, if only that it is alive.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes of an answer that are read where a whole JSON document is expected.
const MAX_DOCUMENT_BYTES: usize = 64 * 1024 * 1024;

/// Which server a command talks to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Remote {
    /// The server
    #[arg(long, value_name = "URL", env = "PARLANCE_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// A file whose first key is used
    #[arg(long, value_name = "FILE", env = "PARLANCE_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// A certificate authority to trust besides the machine's own (PEM)
    #[arg(long, value_name = "FILE", env = "PARLANCE_CA_CERT")]
    ca_cert: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Remote {
    /// A server that is not the usual one.
    pub(crate) fn at(server: String, api_key_file: Option<PathBuf>, ca_cert: Option<PathBuf>) -> Self {
        Self { server, api_key_file, ca_cert, json: false }
    }
}

/// A server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: Url,
    key: Option<String>,
    ca: Option<Vec<u8>>,
    client: reqwest::Client,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum ApiFailure {
    /// No connection, or one that broke: a repetition may help.
    Lost(String),
    /// The server refuses for the moment and says when to come again.
    Busy(String, Duration),
    /// The server's answer is no.
    Refused(Failure),
}

impl Api {
    /// Reads what the command line says.
    ///
    /// # Errors
    ///
    /// Exit code 2 for what cannot be used.
    pub(crate) fn new(remote: &Remote) -> Result<Self, Failure> {
        let bad_url = || Failure::usage(format!("`{}` is no server", remote.server), "Pass --server http://HOST:PORT");
        let base = Url::parse(&remote.server).map_err(|_| bad_url())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(bad_url());
        }
        let key = remote.api_key_file.as_deref().map(auth::read_client_key).transpose()?;
        let mut builder = super::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        let mut ca = None;
        if let Some(path) = &remote.ca_cert {
            let bad = |reason: &dyn std::fmt::Display| {
                Failure::usage(
                    format!("cannot use the CA {}: {reason}", path.display()),
                    "Pass a PEM file with --ca-cert",
                )
            };
            let pem = std::fs::read(path).map_err(|error| bad(&error))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| bad(&chain(&error)))?;
            // A private authority names the servers that are meant; the machine's own would add nothing.
            builder = builder.tls_certs_only(certificates);
            ca = Some(pem);
        }
        let client = builder
            .build()
            .map_err(|error| Failure::failed(format!("cannot set up HTTPS: {}", chain(&error)), "Check --ca-cert"))?;
        Ok(Self { base, key, ca, client })
    }

    /// The key to present, if there is one.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The PEM of the authority that was named.
    pub(super) fn ca(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// The address of `path` under another pair of schemes.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }

    /// A `GET` of `path`.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.authorised(self.client.get(self.url(path)))
    }

    /// A `POST` to `path`.
    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.authorised(self.client.post(self.url(path)))
    }

    /// A `DELETE` of `path`.
    pub(crate) fn delete(&self, path: &str) -> RequestBuilder {
        self.authorised(self.client.delete(self.url(path)))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; an answer that is an error is one here.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ApiFailure> {
        let response = request.send().await.map_err(|error| ApiFailure::Lost(chain(&error)))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// Sends a request and reads its JSON, with failures as a command ends with them.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await.map_err(|failure| self.ended(failure))?;
        let bytes = read_bounded(response).await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|_| {
            Failure::failed("the server's answer is not JSON", "Check that --server names a Parlance node")
        })
    }

    /// A failure as the end of a command.
    pub(crate) fn ended(&self, failure: ApiFailure) -> Failure {
        match failure {
            ApiFailure::Lost(reason) => self.unreachable(&reason),
            ApiFailure::Busy(reason, wait) => {
                Failure::failed(reason, format!("Try again in {} s", wait.as_secs().max(1)))
            }
            ApiFailure::Refused(failure) => failure,
        }
    }

    fn unreachable(&self, reason: &str) -> Failure {
        let certificate = reason.contains("certificate") || reason.contains("UnknownIssuer");
        let remedy = match (self.base.scheme(), certificate) {
            ("https", true) => "Name the authority of the server's certificate with --ca-cert",
            _ => "Start a node with `parlance up`, or name another with --server",
        };
        Failure::unreachable(format!("cannot reach {}: {reason}", self.base), remedy)
    }
}

async fn read_bounded(mut response: Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if bytes.len() + chunk.len() > MAX_DOCUMENT_BYTES {
            return Err("the answer is too large".to_owned());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What an error answer means to whoever typed the command.
async fn refusal(response: Response) -> ApiFailure {
    let status = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body: Option<Value> = read_bounded(response).await.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let told = body.as_ref().and_then(|body| body["error"]["message"].as_str()).map(one_line);
    let message = told.unwrap_or_else(|| format!("the server answers {status}"));
    let message = message.trim_end_matches('.');
    if let (Some(seconds), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) = (retry_after, status) {
        return ApiFailure::Busy(message.to_owned(), Duration::from_secs(seconds));
    }
    let remedy = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "Pass the server's key with --api-key-file",
        StatusCode::NOT_FOUND => "Check the name, and that --server names a Parlance node",
        status if status.is_server_error() => "Look at the node's log",
        _ => "Correct the request",
    };
    ApiFailure::Refused(Failure::failed(message, remedy))
}
