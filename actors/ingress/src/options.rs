//! How the public face is set up.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use rustls::ServerConfig;

use crate::auth::Auth;

/// Everything that [`serve`](crate::serve) needs besides the node.
#[derive(Clone)]
pub struct IngressOptions {
    /// Who may call.
    pub auth: Auth,
    /// TLS, or plain text where absent. Its ALPN names decide whether HTTP/2 is spoken.
    pub tls: Option<Arc<ServerConfig>>,
    /// The bounds.
    pub limits: IngressLimits,
    /// Origins of other sites whose pages may call, for example `https://chat.example.org`. The server's own page always may.
    pub cors_origins: Vec<String>,
    /// Renders `/metrics`; absent, there is none.
    pub metrics: Option<PrometheusHandle>,
    /// The secret under which the names of users are hashed. The same on every start and every node.
    pub user_secret: [u8; 32],
}

impl IngressOptions {
    /// Without keys, TLS and metrics: for loopback alone.
    pub fn local(user_secret: [u8; 32]) -> Self {
        Self {
            auth: Auth::open(),
            tls: None,
            limits: IngressLimits::default(),
            cors_origins: Vec::new(),
            metrics: None,
            user_secret,
        }
    }
}

/// The bounds of the public face. Past a bound a caller is refused at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressLimits {
    /// Connections at once; the next one is told 503 and closed.
    pub connections: usize,
    /// WebSockets at once.
    pub websockets: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's line and headers together.
    pub header_bytes: usize,
    /// From a connection's or a request's first byte to the end of its headers, TLS handshake included.
    pub header_timeout: Duration,
    /// From the headers to the end of the body.
    pub body_timeout: Duration,
    /// How long a connection may idle between requests.
    pub idle_timeout: Duration,
    /// How long a client may refuse to take a response's next bytes.
    pub stall_timeout: Duration,
    /// How long running responses are waited for at shutdown.
    pub drain_timeout: Duration,
}

impl Default for IngressLimits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            websockets: 2_048,
            body_bytes: 1024 * 1024,
            header_bytes: 32 * 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            // Longer than the clients' own pools keep a connection, so that they close first.
            idle_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
