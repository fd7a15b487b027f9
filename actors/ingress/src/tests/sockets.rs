//! The listener over real sockets: bounds, time-outs, TLS, shutdown.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::FAST;
use crate::{IngressError, IngressLimits, IngressOptions, bind, serve};

/// Long enough for anything on a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A served node.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) stop: oneshot::Sender<()>,
    pub(super) task: JoinHandle<Result<(), IngressError>>,
    _data: TempDir,
}

pub(super) async fn server(script: &str, options: IngressOptions) -> Server {
    let data = tempfile::tempdir().expect("a temporary directory");
    let node = super::node(data.path(), vec![super::scripted(script)]).await;
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = listener.address();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve(listener, options, node, async move {
        let _ = stopped.await;
    }));
    Server { address, stop, task, _data: data }
}

fn limited(limits: IngressLimits) -> IngressOptions {
    IngressOptions { limits, ..IngressOptions::local([7; 32]) }
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A reset ends the reading too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_port_in_use_is_told_with_the_remedy() {
    let first = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let error = bind(first.address()).await.expect_err("the port is taken").to_string();
    assert!(error.contains("in use") && error.contains("--listen"), "{error}");
}

#[tokio::test]
async fn a_connection_beyond_the_bound_is_told_so() {
    let server = server(FAST, limited(IngressLimits { connections: 1, ..IngressLimits::default() })).await;
    let mut held = TcpStream::connect(server.address).await.expect("a connection");
    held.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    held.readable().await.expect("an answer");
    let mut refused = TcpStream::connect(server.address).await.expect("a connection");
    let answer = read_all(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Retry-After: 1"), "{answer}");
}

#[tokio::test]
async fn a_slow_or_silent_client_is_closed() {
    let limits = IngressLimits { header_timeout: Duration::from_millis(100), ..IngressLimits::default() };
    let server = server(FAST, limited(limits)).await;
    for begin in [&b""[..], b"P", b"GET /healthz HTTP/1.1\r\nHost: loc"] {
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.write_all(begin).await.expect("sent");
        let answer = read_all(&mut stream).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_slow_body_is_told_so() {
    let limits = IngressLimits {
        idle_timeout: Duration::from_millis(100),
        body_timeout: Duration::from_millis(100),
        ..IngressLimits::default()
    };
    let server = server(FAST, limited(limits)).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    let mut slow = TcpStream::connect(server.address).await.expect("a connection");
    let head = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    slow.write_all(head).await.expect("sent");
    assert!(read_all(&mut slow).await.starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn malformed_and_oversized_heads_are_refused() {
    let server = server(FAST, limited(IngressLimits::default())).await;
    let large = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-Many: 1\r\n".repeat(1_000));
    let both = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}";
    for (head, status) in [
        (large.as_str(), "431"),
        (many.as_str(), "431"),
        (both, "400"),
        ("GET /healthz HTTP/1.1\r\nHost: local\0host\r\n\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        // The server may answer and close before everything is sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let answer = read_all(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        assert!(!answer.contains("200 OK"));
    }
}

#[tokio::test]
async fn shutdown_finishes_running_responses() {
    let server = server("scripted:ttft_ms=0,token_ms=5,tokens=60,seed=0", limited(IngressLimits::default())).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    let body = r#"{"stream": true, "messages": [{"role": "user", "content": "x"}]}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    stream.readable().await.expect("the stream begins");
    server.stop.send(()).expect("the server runs");
    assert!(read_all(&mut stream).await.contains("data: [DONE]"));
    timeout(PATIENCE, server.task).await.expect("it ends").expect("no panic").expect("no error");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn tls_is_spoken_and_a_silent_handshake_disturbs_nobody() {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).expect("a key");
    let tls = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)
        .expect("they belong together");
    let limits = IngressLimits { header_timeout: Duration::from_secs(5), ..IngressLimits::default() };
    let server = server(FAST, IngressOptions { tls: Some(Arc::new(tls)), ..limited(limits) }).await;
    let mut silent = TcpStream::connect(server.address).await.expect("a connection");

    let mut roots = RootCertStore::empty();
    roots.add(identity.cert.der().clone()).expect("a certificate");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream =
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("a handshake");
    stream.write_all(HEALTH).await.expect("sent");
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert_eq!(read_all(&mut silent).await, "", "closed after the handshake's time");
}
