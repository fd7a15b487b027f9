//! [`Links`] between processes: ractor_cluster's sessions over connections of our own.
//!
//! ractor_cluster carries the frames and finds the peer's front actor. Everything that it lacks is here: mutual TLS and a hello within a time
//! limit apart from accepting (`connect`, `hello`, [`tls`]), an end to silent connections (`guard`), calls that fail at once when their link
//! does, bounded bytes under way (`link`), and dialling again. A link is between incarnations: a restarted node gets a new one at once, whatever became
//! of the old.
//!
//! One transport per process: ractor's registries are the process's own.

mod connect;
mod frame;
mod front;
mod guard;
mod hello;
mod link;
mod metrics;
mod shared;
pub mod tls;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ractor::{Actor, ActorRef};
use ractor_cluster::{IncomingEncryptionMode, NodeServer, NodeServerMessage, node::NodeConnectionMode};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use self::{
    connect::{ConnectError, accept, chain, dial},
    front::{Front, FrontMessage},
    hello::{HelloError, Refusal},
    shared::{FRONTS, Sessions, Shared},
    tls::ClusterTls,
};
use crate::{
    identity::{ClusterName, Incarnation, NodeName},
    links::{
        CallError, Failure, HEARTBEAT, Handler, LinkInfo, Links, MAX_PAYLOAD_BYTES, MOST_CALLS, MOST_DIALLED,
        MOST_LINKS, MOST_PENDING, Observer, RETRY, SILENCE, WINDOW_BYTES, check_size,
    },
};

/// The versions of the frames between nodes that this build speaks.
pub const VERSIONS: RangeInclusive<u32> = 1..=1;
/// What ractor_cluster reads at most at once: the largest payload and what is around it.
const MAX_FRAME_BYTES: u64 = MAX_PAYLOAD_BYTES as u64 + 64 * 1024;

/// How fast a link notices and tries again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Connecting, TLS and hello, each.
    pub handshake: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// A link on which nothing has come for so long is over.
    pub silence: Duration,
    /// Between two attempts to reach an address: at first, and at most. It doubles, and is drawn by lot from its upper half.
    pub retry: RangeInclusive<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(3), heartbeat: HEARTBEAT, silence: SILENCE, retry: RETRY }
    }
}

/// What a node's transport is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// This start of this node.
    pub me: Incarnation,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its identity.
    pub tls: ClusterTls,
    /// The versions that it speaks: [`VERSIONS`].
    pub versions: RangeInclusive<u32>,
    /// How fast it notices and tries again.
    pub timing: Timing,
}

/// Why a transport cannot start.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error("cannot listen for nodes on {address}: choose another address or stop who uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// ractor_cluster did not start.
    #[error("the cluster's transport did not start: {0}")]
    Actors(String),
}

/// A node's links.
pub struct Transport {
    shared: Arc<Shared>,
    server: ActorRef<NodeServerMessage>,
    front: ActorRef<FrontMessage>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    /// Who keeps dialling which address. None: it has stopped.
    dialled: Mutex<Option<HashMap<String, JoinHandle<()>>>>,
}

impl Transport {
    /// Begins to listen for nodes; port 0 takes a free one. They are answered once the transport has started.
    ///
    /// # Errors
    ///
    /// [`TransportError::Listen`] with the remedy.
    pub async fn bind(address: SocketAddr) -> Result<TcpListener, TransportError> {
        TcpListener::bind(address).await.map_err(|source| TransportError::Listen { address, source })
    }

    /// Links with whoever comes to `listener`, which was [bound](Self::bind).
    ///
    /// # Errors
    ///
    /// [`TransportError`] with the remedy.
    pub async fn start(
        options: Options,
        listener: TcpListener,
        handler: Arc<dyn Handler>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, TransportError> {
        let address = listener
            .local_addr()
            .map_err(|source| TransportError::Listen { address: SocketAddr::from(([0, 0, 0, 0], 0)), source })?;
        let shared = Arc::new(Shared::new(options, handler, observer));
        let failed = |error: &dyn std::fmt::Display| TransportError::Actors(error.to_string());
        let front = Actor::spawn(None, Front, shared.clone()).await.map_err(|error| failed(&error))?.0;
        ractor::pg::join(FRONTS.to_owned(), vec![front.get_cell()]);
        let server = node_server(&shared.options);
        let server = Actor::spawn(None, server, ()).await.map_err(|error| failed(&error))?.0;
        let subscription = Box::new(Sessions(shared.clone()));
        let subscribe = NodeServerMessage::SubscribeToEvents { id: FRONTS.to_owned(), subscription };
        server.cast(subscribe).map_err(|error| failed(&error))?;
        let tasks = vec![
            tokio::spawn(accept(listener, shared.clone(), server.clone())),
            tokio::spawn(heartbeats(shared.clone())),
        ];
        Ok(Self { shared, server, front, address, tasks, dialled: Mutex::new(Some(HashMap::new())) })
    }

    /// Where other nodes reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn dialled(&self) -> MutexGuard<'_, Option<HashMap<String, JoinHandle<()>>>> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links for Transport {
    /// An address is a host and a port.
    fn dial(&self, address: &str) -> bool {
        let mut dialled = self.dialled();
        let Some(dialled) = dialled.as_mut() else { return false };
        if dialled.contains_key(address) {
            return true;
        }
        if dialled.len() >= MOST_DIALLED {
            return false;
        }
        let task = tokio::spawn(keep_dialling(address.to_owned(), self.shared.clone(), self.server.clone()));
        dialled.insert(address.to_owned(), task);
        true
    }

    fn forget(&self, address: &str) {
        let task = self.dialled().as_mut().and_then(|dialled| dialled.remove(address));
        task.inspect(JoinHandle::abort);
    }

    fn links(&self) -> Vec<LinkInfo> {
        self.shared.links()
    }

    fn call(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (shared, to) = (self.shared.clone(), to.clone());
        Box::pin(async move {
            check_size(&payload)?;
            let link = shared.link_to(&to).ok_or(CallError::Unreachable)?;
            link.call(kind, payload, Instant::now() + within).await
        })
    }

    fn cast(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<(), CallError>> {
        let (shared, to) = (self.shared.clone(), to.clone());
        Box::pin(async move {
            check_size(&payload)?;
            let link = shared.link_to(&to).ok_or(CallError::Unreachable)?;
            link.send(frame::Body::Cast(frame::Cast { kind, payload }), Instant::now() + within).await
        })
    }

    fn cut(&self, peer: &NodeName, why: &str) {
        if let Some(link) = self.shared.link_to(peer) {
            link.close(why);
        }
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        self.tasks.iter().for_each(JoinHandle::abort);
        let dialled = self.dialled().take().unwrap_or_default();
        dialled.into_values().for_each(|task| task.abort());
        let (server, front) = (self.server.clone(), self.front.clone());
        let limit = Some(self.shared.options.timing.handshake);
        Box::pin(async move {
            // Of actors that have stopped already it wants nothing.
            let _ = server.stop_and_wait(Some("the node stops".to_owned()), limit).await;
            let _ = front.stop_and_wait(None, limit).await;
        })
    }
}

/// ractor_cluster's server. It insists on a listener of its own: that one is on loopback, asks for certificates like ours, and whoever gets through is
/// turned away by [`Sessions`]. Its name has the boot id, so that an election of sessions never confuses two starts of a node; its cookie keeps
/// clusters apart and nothing else.
fn node_server(options: &Options) -> NodeServer {
    let encryption = IncomingEncryptionMode::Tls(TlsAcceptor::from(options.tls.server.clone()));
    let server = NodeServer::new(
        0,
        options.cluster.to_string(),
        options.me.to_string(),
        options.cluster.to_string(),
        Some(encryption),
        Some(NodeConnectionMode::Isolated),
    );
    server.with_listen_addr(std::net::Ipv4Addr::LOCALHOST.into()).with_max_inbound_frame_size(MAX_FRAME_BYTES)
}

/// Says on every link that this node is there.
async fn heartbeats(shared: Arc<Shared>) {
    let mut beats = interval(shared.options.timing.heartbeat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        shared.each_link(link::Link::heartbeat);
    }
}

/// Dials an address again and again, as long as there is no link with who is there.
async fn keep_dialling(address: String, shared: Arc<Shared>, server: ActorRef<NodeServerMessage>) {
    let (first, longest) = (*shared.options.timing.retry.start(), *shared.options.timing.retry.end());
    let mut pause = first;
    let mut said = false;
    loop {
        match dial(&address, &shared, &server).await {
            Ok(link) => {
                let begun = Instant::now();
                link.until_down().await;
                // What did not last is no success.
                pause = if begun.elapsed() > longest { first } else { pause };
                said = false;
            }
            Err(ConnectError::Hello(HelloError::Refused(Refusal::Linked(peer)))) => {
                if let Some(link) = shared.link_to(&peer.name) {
                    link.until_down().await;
                }
                pause = first;
            }
            Err(ConnectError::Hello(HelloError::Refused(Refusal::Itself))) => return,
            Err(error) => {
                metrics::handshake_failed("outbound");
                if said {
                    debug!(address, error = %chain(&error), "cannot link with a node");
                } else {
                    warn!(address, error = %chain(&error), "cannot link with a node; trying on");
                    said = true;
                }
            }
        }
        sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(longest);
    }
}
