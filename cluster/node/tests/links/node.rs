//! One node, as a process: it reads orders from its input, a line of JSON each, and writes what came of them.

use std::{
    io::{BufRead as _, Write as _},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_cluster_node::{
    identity::{BootId, Incarnation},
    links::{CallError, Failure, Handler, LinkInfo, Links, Observer, conformance},
    transport::{
        Options, Timing, Transport,
        tls::{ClusterTls, TlsFiles},
    },
};
use ractor::{Actor, ActorRef};
use ractor_cluster::{IncomingEncryptionMode, NodeServer, NodeServerMessage};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// Answers with what it was asked.
pub(crate) const ECHO: u32 = 1;
/// Answers after as many milliseconds as the payload says.
pub(crate) const SLOW: u32 = 2;

/// What a node is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) boot: u64,
    pub(crate) cluster: String,
    pub(crate) certificates: PathBuf,
    /// The name on the certificate that it shows.
    pub(crate) shows: String,
    pub(crate) versions: RangeInclusive<u32>,
    pub(crate) silence_ms: u64,
    /// ractor_cluster as it comes, with TLS but without what this crate adds.
    pub(crate) stock: bool,
}

/// What a node is told to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    Dial {
        address: String,
    },
    Call {
        to: String,
        kind: u32,
        payload: String,
        within_ms: u64,
    },
    /// As many messages of so many bytes as go out within the time.
    Flood {
        to: String,
        count: u64,
        bytes: usize,
        within_ms: u64,
    },
    Links,
    /// Bytes of messages that were taken in.
    Taken,
    /// Resident memory, in KiB.
    Memory,
    /// Checks what links promise, on the link to a node.
    Check {
        with: String,
    },
}

#[derive(Default)]
struct Answers {
    taken: AtomicU64,
    checked: conformance::Peer,
}

impl Handler for Answers {
    fn call(
        &self,
        from: &Incarnation,
        kind: u32,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        match kind {
            ECHO => Box::pin(async { Ok(payload) }),
            SLOW => Box::pin(async move {
                let text = std::str::from_utf8(&payload).expect("text");
                sleep(Duration::from_millis(text.parse().expect("a number"))).await;
                Ok(payload)
            }),
            kind => self.checked.call(from, kind, payload, deadline),
        }
    }

    fn cast(&self, from: &Incarnation, kind: u32, payload: Bytes) {
        self.taken.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.checked.cast(from, kind, payload);
    }
}

struct Nobody;

impl Observer for Nobody {
    fn up(&self, _link: &LinkInfo) {}
    fn down(&self, _peer: &Incarnation) {}
    fn heard(&self, _peer: &Incarnation) {}
}

/// Runs until its input ends.
pub(crate) fn run(setup: &str) {
    let setup: Setup = serde_json::from_str(setup).expect("a setup");
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async { if setup.stock { stock(setup).await } else { guarded(setup).await } });
}

async fn guarded(setup: Setup) {
    let files = files(&setup);
    let (cluster, name) = (setup.cluster.parse().expect("a name"), setup.name.parse().expect("a name"));
    // The certificate may be for somebody else on purpose: then what the node shows is not its own.
    let tls = ClusterTls::read(&files, &cluster, &setup.shows.parse().expect("a name")).expect("an identity");
    let silence = Duration::from_millis(setup.silence_ms);
    let options = Options {
        me: Incarnation { name, boot: BootId(setup.boot) },
        cluster,
        tls,
        versions: setup.versions.clone(),
        timing: Timing { silence, ..Timing::default() },
    };
    let answers = Arc::<Answers>::default();
    let listener = Transport::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let transport = Transport::start(options, listener, answers.clone(), Arc::new(Nobody)).await.expect("it starts");
    write(&json!({ "address": transport.address() }));
    let transport = Arc::new(transport);
    let mut orders = orders();
    while let Some((id, order)) = orders.recv().await {
        let (transport, answers) = (transport.clone(), answers.clone());
        tokio::spawn(async move {
            let answer = obey(&transport, &answers, order).await;
            write(&json!({ "id": id, "answer": answer }));
        });
    }
}

async fn obey(transport: &Transport, answers: &Answers, order: Order) -> Value {
    match order {
        Order::Dial { address } => json!(transport.dial(&address)),
        Order::Call { to, kind, payload, within_ms } => {
            let begun = Instant::now();
            let to = to.parse().expect("a name");
            let answer = transport.call(&to, kind, payload.into(), Duration::from_millis(within_ms)).await;
            let (ok, error) = (answer.as_ref().ok().map(|bytes| bytes.len()), answer.as_ref().err().map(told));
            json!({ "bytes": ok, "error": error, "ms": begun.elapsed().as_millis() as u64 })
        }
        Order::Flood { to, count, bytes, within_ms } => {
            let to = to.parse().expect("a name");
            let payload = Bytes::from(vec![7; bytes]);
            let until = Instant::now() + Duration::from_millis(within_ms);
            let mut sent = 0_u64;
            while sent < count {
                let left = until.saturating_duration_since(Instant::now());
                match transport.cast(&to, 0, payload.clone(), left).await {
                    Ok(()) => sent += 1,
                    Err(error) => return json!({ "sent": sent, "error": told(&error) }),
                }
            }
            json!({ "sent": sent })
        }
        Order::Links => json!(transport.links().iter().map(|link| {
            json!({ "peer": link.peer.name.to_string(), "boot": link.peer.boot.0, "version": link.version, "under_way": link.under_way_bytes })
        }).collect::<Vec<_>>()),
        Order::Taken => json!(answers.taken.load(Ordering::Relaxed)),
        Order::Memory => json!(memory_kib()),
        Order::Check { with } => {
            conformance::check_all(transport, &with.parse().expect("a name")).await;
            json!("kept")
        }
    }
}

/// The kind of an error, and whether it is certain that nothing was done.
fn told(error: &CallError) -> Value {
    let kind = format!("{error:?}");
    let kind = kind.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    json!({ "kind": kind, "certain": error.is_certain(), "text": error.to_string() })
}

/// ractor_cluster without anything of ours: listens, dials plainly by TLS, and tells its sessions.
async fn stock(setup: Setup) {
    let (ports, mut port) = mpsc::unbounded_channel();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(&files(&setup))));
    let (relay_name, encryption) = (setup.name.clone(), IncomingEncryptionMode::Tls(acceptor));
    // It does not tell its port: one is taken that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let server = NodeServer::new(free, setup.cluster.clone(), relay_name, "test".to_owned(), Some(encryption), None);
    let server = server.with_listen_addr(std::net::Ipv4Addr::LOCALHOST.into());
    let server = Actor::spawn(None, server, ()).await.expect("it starts").0;
    ports.send(free).expect("it is read");
    write(&json!({ "address": format!("127.0.0.1:{}", port.recv().await.expect("a port")) }));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(&files(&setup))));
    let mut orders = orders();
    while let Some((id, order)) = orders.recv().await {
        let (server, connector, cluster) = (server.clone(), connector.clone(), setup.cluster.clone());
        tokio::spawn(async move {
            let answer = match order {
                Order::Dial { address } => {
                    let name = format!("{cluster}.parlance").try_into().expect("a name");
                    json!(ractor_cluster::client_connect_enc(&server, address, connector, name).await.is_ok())
                }
                Order::Links => json!(sessions(&server).await),
                order => panic!("nothing for the stock transport: {order:?}"),
            };
            write(&json!({ "id": id, "answer": answer }));
        });
    }
}

/// The names of nodes with which there are sessions.
async fn sessions(server: &ActorRef<NodeServerMessage>) -> Vec<Value> {
    let sessions = ractor::call!(server, NodeServerMessage::GetSessions).expect("it answers");
    let names = sessions.into_values().filter_map(|session| session.peer_name).map(|name| name.name);
    names.map(|name| json!({ "peer": name.split('@').next() })).collect()
}

fn files(setup: &Setup) -> TlsFiles {
    let path = |name: &str| setup.certificates.join(name);
    TlsFiles {
        ca: path("ca.pem"),
        cert: path(&format!("{}.pem", setup.shows)),
        key: path(&format!("{}.key", setup.shows)),
    }
}

fn server_config(files: &TlsFiles) -> ServerConfig {
    let (chain, key) = pair(files);
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a pair")
}

fn client_config(files: &TlsFiles) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).expect("an authority")).expect("an authority");
    rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

fn pair(files: &TlsFiles) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = vec![CertificateDer::from_pem_file(&files.cert).expect("a certificate")];
    (chain, PrivateKeyDer::from_pem_file(&files.key).expect("a key"))
}

/// Orders with their numbers, as they come.
fn orders() -> mpsc::UnboundedReceiver<(u64, Order)> {
    let (orders, received) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(order) = line.map(|line| serde_json::from_str(&line).expect("an order")) else { break };
            if orders.send(order).is_err() {
                break;
            }
        }
    });
    received
}

fn write(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
