//! TLS to the servers.
//!
//! The driver's own TLS comes with a second provider of cryptography, which we do not ship (its crate asks for all of rustls' defaults). So the
//! driver speaks in the clear to a port of this process on loopback, one for each server, and what comes in there goes out over TLS. Only
//! this very process is served: whoever else finds the port is hung up on.

use std::{
    collections::HashMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::scylla::{
    client::session_builder::SessionBuilder,
    errors::TranslationError,
    policies::address_translator::{AddressTranslator, UntranslatedPeer},
};
use async_trait::async_trait;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{ScyllaOptions, TlsOptions};
use crate::RecordsError;

/// Servers that have had a relay, at most.
const MAX_RELAYS: usize = 1_024;
/// Connections of one relay, at most: the driver keeps a few, one for each of the server's cores.
const MAX_CONNECTIONS: usize = 256;
/// How long nothing is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The ports on loopback behind which the servers lie. They close when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Relays(Arc<Shared>);

struct Shared {
    way: Arc<Way>,
    /// The port of CQL on all servers.
    port: u16,
    open: tokio::sync::Mutex<Open>,
}

#[derive(Default)]
struct Open {
    ports: HashMap<(String, u16), SocketAddr>,
    tasks: JoinSet<()>,
}

/// How a server is reached.
struct Way {
    connector: TlsConnector,
    server_name: Option<String>,
    has_certificate: bool,
    timeout: Duration,
    last_failure: Mutex<Option<String>>,
}

impl Relays {
    pub(super) fn new(tls: &TlsOptions, options: &ScyllaOptions) -> Result<Self, RecordsError> {
        let way = Way {
            connector: TlsConnector::from(Arc::new(config(tls)?)),
            server_name: tls.server_name.clone(),
            has_certificate: tls.certificate.is_some(),
            timeout: options.request_timeout,
            last_failure: Mutex::default(),
        };
        let port = options.addresses().first().map_or(0, |(_, port)| *port);
        Ok(Self(Arc::new(Shared { way: Arc::new(way), port, open: Default::default() })))
    }

    /// Has the driver reach all servers through relays.
    pub(super) async fn connect(
        &self,
        mut builder: SessionBuilder,
        options: &ScyllaOptions,
    ) -> Result<SessionBuilder, RecordsError> {
        for (host, port) in options.addresses() {
            let relay = self.port_for(host, port).await;
            builder = builder.known_node_addr(relay.map_err(|error| RecordsError::Unavailable(error.to_string()))?);
        }
        // A server's cores have ports of their own, which the relays do not know.
        Ok(builder.disallow_shard_aware_port(true).address_translator(Arc::new(self.clone())))
    }

    /// Why the last connection failed.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.0.way.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The port behind which a server lies.
    async fn port_for(&self, host: String, port: u16) -> io::Result<SocketAddr> {
        let mut open = self.0.open.lock().await;
        if let Some(address) = open.ports.get(&(host.clone(), port)) {
            return Ok(*address);
        }
        if open.ports.len() >= MAX_RELAYS {
            return Err(io::Error::other("too many servers have come and gone"));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        open.tasks.spawn(serve(self.0.way.clone(), listener, host.clone(), port));
        open.ports.insert((host, port), address);
        Ok(address)
    }
}

#[async_trait]
impl AddressTranslator for Relays {
    #[expect(elided_lifetimes_in_paths, reason = "the trait hides it, and with it the two do not match")]
    async fn translate_address(&self, peer: &UntranslatedPeer) -> Result<SocketAddr, TranslationError> {
        let host = peer.untranslated_address().ip().to_string();
        self.port_for(host, self.0.port).await.map_err(|error| TranslationError::IoError(Arc::new(error)))
    }
}

/// Relays whoever of this process connects. The connections end with the task.
async fn serve(way: Arc<Way>, listener: TcpListener, host: String, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((near, peer)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if connections.len() >= MAX_CONNECTIONS {
            continue;
        }
        let (way, host) = (way.clone(), host.clone());
        connections.spawn(async move {
            match way.relay(near, peer, &host, port).await {
                Ok(()) => {}
                Err(error) => way.failed(&host, &error),
            }
        });
    }
}

impl Way {
    async fn relay(&self, mut near: TcpStream, peer: SocketAddr, host: &str, port: u16) -> io::Result<()> {
        let local = near.local_addr()?;
        if !spawn_blocking(move || is_own(peer, local)).await?? {
            tracing::warn!(%peer, "another process tried to reach the record store through this one");
            return Ok(());
        }
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let reached = async {
            let far = TcpStream::connect((host, port)).await?;
            far.set_nodelay(true)?;
            near.set_nodelay(true)?;
            self.connector.connect(name, far).await
        };
        let mut far = timeout(self.timeout, reached).await.map_err(|_| io::ErrorKind::TimedOut)??;
        copy_bidirectional(&mut near, &mut far).await?;
        Ok(())
    }

    fn failed(&self, host: &str, error: &io::Error) {
        tracing::debug!(host, %error, "a connection to the record store ended");
        // A server that misses a certificate hangs up, and seldom gets to say why.
        let hint = if self.has_certificate { "" } else { " (no certificate of ours is configured: it may want one)" };
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{host}: {error}{hint}"));
    }
}

/// Whether the other end of a connection on loopback belongs to this process: its socket has a number in the kernel's list, and one of our
/// descriptors is that socket.
fn is_own(peer: SocketAddr, local: SocketAddr) -> io::Result<bool> {
    let name = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    };
    let (Some(peer), Some(local)) = (name(peer), name(local)) else { return Ok(false) };
    let sockets = fs::read_to_string("/proc/self/net/tcp")?;
    let inode = sockets.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.get(1) == Some(&peer.as_str()) && fields.get(2) == Some(&local.as_str()))
            .then(|| fields.get(9).copied())?
    });
    let Some(inode) = inode.filter(|inode| *inode != "0") else { return Ok(false) };
    let socket = format!("socket:[{inode}]");
    let mut descriptors = fs::read_dir("/proc/self/fd")?;
    Ok(descriptors.any(|entry| {
        entry.and_then(|entry| fs::read_link(entry.path())).is_ok_and(|target| target == Path::new(&socket))
    }))
}

fn config(tls: &TlsOptions) -> Result<ClientConfig, RecordsError> {
    let bad = |option, path: &Path, error: String| RecordsError::BadOption {
        option,
        reason: format!("{}: {error}; it must be a PEM file", path.display()),
    };
    let read = |option, path: &Path| -> Result<Vec<CertificateDer<'static>>, RecordsError> {
        let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) => Err(bad(option, path, "it has no certificate".into())),
            Err(error) => Err(bad(option, path, error.to_string())),
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in read("TLS authorities", &tls.authorities)? {
        let added = roots.add(certificate);
        added.map_err(|error| bad("TLS authorities", &tls.authorities, error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| RecordsError::BadOption { option: "TLS", reason: error.to_string() })?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &tls.certificate else { return Ok(builder.with_no_client_auth()) };
    let chain = read("TLS certificate", certificate)?;
    let own = PrivateKeyDer::from_pem_file(key).map_err(|error| bad("TLS key", key, error.to_string()))?;
    builder.with_client_auth_cert(chain, own).map_err(|error| bad("TLS key", key, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_of_another_process_is_told_from_ones_own() -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let own = TcpStream::connect(address).await?;
        let (_near, peer) = listener.accept().await?;
        assert!(is_own(peer, address)?);
        drop(own);
        let script = format!("exec 3<> /dev/tcp/127.0.0.1/{}; read <&3", address.port());
        let mut stranger = tokio::process::Command::new("bash").args(["-c", &script]).kill_on_drop(true).spawn()?;
        let (near, peer) = listener.accept().await?;
        assert!(!is_own(peer, address)?);
        drop(near);
        stranger.wait().await?;
        Ok(())
    }
}
