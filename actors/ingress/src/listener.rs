//! The listening socket and its connections.
//!
//! One task accepts and does nothing slow; every connection, its TLS handshake included, lives in a task of its own. A connection
//! beyond the bound is told so and closed. At shutdown running responses are finished until a deadline.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::{
    activity::{Activity, WatchedIo},
    auth::Peer,
    error::IngressError,
    guarded::guarded,
    metrics::connection_refused,
    options::IngressLimits,
};

/// The most headers of one request; hyper answers 431 past it.
const MAX_HEADERS: usize = 100;

/// HTTP/2 requests at once on one connection.
const MAX_STREAMS: u32 = 128;

/// HTTP/2 responses buffered per stream, in bytes, before the client has to read on.
const MAX_STREAM_BUFFER: usize = 256 * 1024;

/// How long the accept loop rests when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that was told to end may take to do so.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// What a connection beyond the bound is told.
const TOO_MANY: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n",
    "Content-Length: 114\r\nConnection: close\r\n\r\n",
    r#"{"error":{"message":"This node has too many connections.","type":"server_error","param":null,"#,
    r#""code":"overloaded"}}"#
);

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Binds the address, so that it can be told before anything is served.
///
/// # Errors
///
/// [`IngressError::Bind`] with the remedy.
pub async fn bind(address: SocketAddr) -> Result<Listener, IngressError> {
    let failed = |source| IngressError::Bind { address, source };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok(Listener { socket, address: bound })
}

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Connections {
    pub(crate) router: Router,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: IngressLimits,
    /// Turns true at shutdown.
    pub(crate) closing: watch::Receiver<bool>,
}

/// Accepts until `shutdown`, then waits for running responses up to the stated bound.
pub(crate) async fn accept_loop(
    listener: Listener,
    connections: Connections,
    close: watch::Sender<bool>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), IngressError> {
    let places = Arc::new(Semaphore::new(connections.limits.connections));
    let drain_timeout = connections.limits.drain_timeout;
    let all = u32::try_from(connections.limits.connections).unwrap_or(u32::MAX);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &connections, &places),
                Err(error) if is_passing(&error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => return Err(IngressError::Accept(error)),
            },
        }
    }
    drop(listener);
    close.send_replace(true);
    if timeout(drain_timeout, places.acquire_many(all)).await.is_err() {
        info!(timeout_s = drain_timeout.as_secs(), "connections were still open at the shutdown deadline");
    }
    Ok(())
}

/// Whether accepting may work again: the peer gave up, or descriptors ran out.
fn is_passing(error: &io::Error) -> bool {
    // EMFILE and ENFILE have no kind of their own.
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(23 | 24 | 105 | 12))
}

fn admit(stream: TcpStream, connections: &Connections, places: &Arc<Semaphore>) {
    match Arc::clone(places).try_acquire_owned() {
        Ok(place) => {
            tokio::spawn(serve_socket(stream, connections.clone(), place));
        }
        Err(_) => {
            connection_refused();
            if connections.tls.is_none() {
                // A fresh socket has room for this; whoever does not get it sees the close.
                let _ = stream.try_write(TOO_MANY.as_bytes());
            }
        }
    }
}

async fn serve_socket(stream: TcpStream, connections: Connections, _place: OwnedSemaphorePermit) {
    let peer = stream.peer_addr().ok().map(|address| Peer(address.ip()));
    // Tokens are small and must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    match connections.tls.clone() {
        None => serve_stream(stream, peer, connections).await,
        Some(acceptor) => match timeout(connections.limits.header_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve_stream(stream, peer, connections).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!("TLS handshake timed out"),
        },
    }
}

async fn serve_stream<S>(stream: S, peer: Option<Peer>, connections: Connections)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Connections { router, limits, mut closing, .. } = connections;
    let activity = Activity::new();
    let io = TokioIo::new(WatchedIo::new(stream, Arc::clone(&activity)));
    let service = service_fn({
        let activity = Arc::clone(&activity);
        move |request: Request<Incoming>| answer(router.clone(), request, peer, Arc::clone(&activity))
    });
    let builder = protocol(&limits);
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return log_end(result),
        () = expired(&activity, &limits) => debug!("closing a connection that is idle or too slow"),
        () = turned_true(&mut closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Running responses are finished: at shutdown the accept loop's deadline bounds them, on an idle connection there are none.
    let grace = if *closing.borrow() { limits.drain_timeout } else { CLOSE_GRACE };
    if let Ok(result) = timeout(grace, connection).await {
        log_end(result);
    }
}

fn log_end(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
}

/// Waits until the flag is set, or nobody is left to set it.
pub(crate) async fn turned_true(flag: &mut watch::Receiver<bool>) {
    let _closed = flag.wait_for(|set| *set).await.is_err();
}

async fn expired(activity: &Activity, limits: &IngressLimits) {
    loop {
        let remaining = activity.remaining(limits);
        if remaining.is_zero() {
            return;
        }
        sleep(remaining).await;
    }
}

fn protocol(limits: &IngressLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_buf_size(limits.header_bytes.max(8 * 1024));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_STREAM_BUFFER)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn answer(
    router: Router,
    mut request: Request<Incoming>,
    peer: Option<Peer>,
    activity: Arc<Activity>,
) -> Result<http::Response<Body>, std::convert::Infallible> {
    let running = activity.start_request(request.version() == http::Version::HTTP_2);
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let response = router.oneshot(request.map(Body::new)).await?;
    // The request runs until its body was sent, not until its headers were made.
    Ok(response.map(|body| guarded(body, running)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_of_a_connection_is_a_well_formed_response() {
        let (head, body) = TOO_MANY.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
        let error: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(error["error"]["code"], "overloaded");
    }
}
