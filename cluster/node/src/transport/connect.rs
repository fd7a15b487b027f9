//! How connections come about: accepting, dialling, TLS and hello, each within a time limit and none in another's way.

use std::{sync::Arc, time::Duration};

use ractor::ActorRef;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeServerMessage};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{CommonState, pki_types::CertificateDer},
};
use tracing::{debug, warn};

use super::{
    guard::Watched,
    hello::{HelloError, exchange},
    link::Link,
    metrics,
    shared::{Shared, label},
};

/// Handshakes of nodes that come to us, at once. What comes beyond is closed at once: it will come again.
const MOST_HANDSHAKES: usize = 64;
/// How long accepting rests when the system has no descriptor for one more connection.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// Why a connection led to no link.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("cannot connect")]
    Tcp(#[source] std::io::Error),
    #[error("cannot agree on TLS: is the peer a node of the same cluster?")]
    Tls(#[source] std::io::Error),
    #[error("no connection within {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Hello(#[from] HelloError),
}

/// A connection that both sides have agreed on, as ractor_cluster takes it.
struct LinkStream {
    label: String,
    reader: BoxRead,
    writer: BoxWrite,
}

impl ClusterBidiStream for LinkStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (self.reader, self.writer)
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// Accepts nodes for ever.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, server: ActorRef<NodeServerMessage>) {
    let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept nodes for a moment");
                sleep(AFTER_ACCEPT_ERROR).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            metrics::handshake_refused();
            continue;
        };
        let (shared, server) = (shared.clone(), server.clone());
        tokio::spawn(async move {
            if let Err(error) = welcome(stream, &shared, &server).await {
                metrics::handshake_failed("inbound");
                debug!(error = %chain(&error), "a connection from a node led to no link");
            }
            drop(permit);
        });
    }
}

async fn welcome(
    stream: TcpStream,
    shared: &Arc<Shared>,
    server: &ActorRef<NodeServerMessage>,
) -> Result<Arc<Link>, ConnectError> {
    let limit = shared.options.timing.handshake;
    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
    let acceptor = TlsAcceptor::from(shared.options.tls.server.clone());
    let stream = timeout(limit, acceptor.accept(stream)).await.map_err(|_| ConnectError::Slow(limit))?;
    let stream = stream.map_err(ConnectError::Tls)?;
    let shown = shown(stream.get_ref().1);
    agree(stream, shown, true, shared, server).await
}

/// Connects to a node once.
pub(super) async fn dial(
    address: &str,
    shared: &Arc<Shared>,
    server: &ActorRef<NodeServerMessage>,
) -> Result<Arc<Link>, ConnectError> {
    let limit = shared.options.timing.handshake;
    let connect = async {
        let stream = TcpStream::connect(address).await.map_err(ConnectError::Tcp)?;
        stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
        let connector = TlsConnector::from(shared.options.tls.client.clone());
        connector.connect(shared.options.tls.server_name(), stream).await.map_err(ConnectError::Tls)
    };
    let stream = timeout(limit, connect).await.map_err(|_| ConnectError::Slow(limit))??;
    let shown = shown(stream.get_ref().1);
    agree(stream, shown, false, shared, server).await
}

/// The certificates that the peer has shown.
fn shown(connection: &CommonState) -> Option<Vec<CertificateDer<'static>>> {
    let shown = connection.peer_certificates()?;
    Some(shown.iter().cloned().map(CertificateDer::into_owned).collect())
}

/// Exchanges hellos and hands the connection on.
async fn agree<S>(
    mut stream: S,
    shown: Option<Vec<CertificateDer<'static>>>,
    is_server: bool,
    shared: &Arc<Shared>,
    server: &ActorRef<NodeServerMessage>,
) -> Result<Arc<Link>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timing = &shared.options.timing;
    let ours = shared.hello();
    let proven = |name: &_| shared.options.tls.proves(shown.as_deref(), name);
    let judge = |theirs: &_| shared.judge(theirs, proven);
    let agreed = exchange(&mut stream, &ours, timing.handshake, judge).await?;
    let link = shared.agreed(agreed, ours.token);
    let (reader, writer) = split(stream);
    let reader = Box::new(Watched::new(reader, timing.silence));
    let stream = Box::new(LinkStream { label: label(ours.token), reader, writer: Box::new(writer) });
    if server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server }).is_err() {
        shared.ended(&link);
    }
    tokio::spawn(give_up_if_never_up(link.clone(), shared.clone()));
    Ok(link)
}

/// A session that does not become ready, because the peer stops in the middle or another connection won, leaves nothing behind.
async fn give_up_if_never_up(link: Arc<Link>, shared: Arc<Shared>) {
    if timeout(shared.options.timing.handshake, link.until_down()).await.is_err() && !link.is_up() {
        link.close("its session did not become ready");
        shared.ended(&link);
    }
}

/// An error and what is behind it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
