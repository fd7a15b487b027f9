//! Mutual TLS between nodes: who may join, and that a node is who it says.
//!
//! A cluster has an authority of its own. A node's certificate by it bears two names: `CLUSTER.parlance`, which whoever dials asks for before it
//! knows whom it reaches, and `NAME.CLUSTER.parlance`, without which no other node believes the name. Both sides show one.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, verify_server_name},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};
use thiserror::Error;

use crate::identity::{ClusterName, NodeName};

/// What stands behind every name in a node's certificate.
const SUFFIX: &str = "parlance";

/// The files of a node's identity, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's authority; no public one is trusted.
    pub ca: PathBuf,
    /// The node's certificate, with those between it and the authority behind it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why a node's identity cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: check the path, its permissions and that it is PEM", file.display())]
    Unreadable {
        /// Which of the files.
        what: &'static str,
        /// Where.
        file: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not belong together.
    #[error("the certificate {} cannot be used with its key and authority: make a new pair for this node", file.display())]
    Unusable {
        /// The certificate.
        file: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate is for another node.
    #[error("the certificate {} is not for {wanted}: make one that bears this name", file.display())]
    WrongName {
        /// The certificate.
        file: PathBuf,
        /// The name that it must bear.
        wanted: String,
    },
}

/// A node's side of mutual TLS.
#[derive(Clone)]
pub struct ClusterTls {
    cluster: ClusterName,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl std::fmt::Debug for ClusterTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterTls").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterTls {
    /// Reads the identity of node `name` of `cluster`.
    ///
    /// # Errors
    ///
    /// [`TlsError`] with the file and the remedy; also if the certificate is not for this node, which the others would refuse.
    pub fn read(files: &TlsFiles, cluster: &ClusterName, name: &NodeName) -> Result<Self, TlsError> {
        let chain = certificates("certificate", &files.cert)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates("authority", &files.ca)?);
        let key = || {
            let read = PrivateKeyDer::from_pem_file(&files.key);
            read.map_err(|source| TlsError::Unreadable { what: "key", file: files.key.clone(), source })
        };
        for wanted in [cluster_domain(cluster), node_domain(cluster, name)] {
            if !is_for(&chain[0], &wanted) {
                return Err(TlsError::WrongName { file: files.cert.clone(), wanted });
            }
        }
        let unusable =
            |source: Box<dyn std::error::Error + Send + Sync>| TlsError::Unusable { file: files.cert.clone(), source };
        let (provider, roots) = (Arc::new(ring::default_provider()), Arc::new(roots));
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = clients.build().map_err(|error| unusable(error.into()))?;
        let server = server_builder(&provider).with_client_cert_verifier(clients);
        let server = server.with_single_cert(chain.clone(), key()?).map_err(|error| unusable(error.into()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
        let servers = servers.build().map_err(|error| unusable(error.into()))?;
        let client = client_builder(&provider).with_webpki_verifier(servers);
        let client = client.with_client_auth_cert(chain, key()?).map_err(|error| unusable(error.into()))?;
        Ok(Self { cluster: cluster.clone(), server: Arc::new(server), client: Arc::new(client) })
    }

    /// The name that whoever dials asks for.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(cluster_domain(&self.cluster)).expect("two labels of DNS are a name")
    }

    /// Whether a peer that showed these certificates may call itself `name`.
    pub(super) fn proves(&self, shown: Option<&[CertificateDer<'_>]>, name: &NodeName) -> bool {
        let own = shown.and_then(<[_]>::first);
        own.is_some_and(|certificate| is_for(certificate, &node_domain(&self.cluster, name)))
    }
}

/// The name that the certificates of all nodes of a cluster bear.
pub fn cluster_domain(cluster: &ClusterName) -> String {
    format!("{cluster}.{SUFFIX}")
}

/// The name that the certificate of one node bears besides.
pub fn node_domain(cluster: &ClusterName, name: &NodeName) -> String {
    format!("{name}.{cluster}.{SUFFIX}")
}

fn server_builder(provider: &Arc<CryptoProvider>) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(provider.clone());
    builder.with_protocol_versions(&[&TLS13]).expect("ring has TLS 1.3")
}

fn client_builder(provider: &Arc<CryptoProvider>) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let builder = ClientConfig::builder_with_provider(provider.clone());
    builder.with_protocol_versions(&[&TLS13]).expect("ring has TLS 1.3")
}

fn is_for(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else { return false };
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

fn certificates(what: &'static str, file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, file: file.clone(), source };
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(unreadable)? {
        certificates if certificates.is_empty() => Err(unreadable(rustls::pki_types::pem::Error::NoItemsFound)),
        certificates => Ok(certificates),
    }
}
