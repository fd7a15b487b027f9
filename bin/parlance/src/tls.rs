//! Certificates: those that a node shows, from files, and those that `parlance cert` makes.

mod cluster;
mod dev;
mod made;

use std::{path::Path, sync::Arc};

use parlance_cluster_node::transport::tls::ClusterTls;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

pub(crate) use self::{
    cluster::{Authority, NodeCertificates, make_authority, make_node_certificates},
    dev::make_dev_certificate,
    made::DAYS,
};
use crate::{
    config::{ClusterConfig, TlsConfig},
    failure::{Failure, chain},
};

const REMEDY: &str = "Name PEM files of a certificate chain and its key, or make a pair with `parlance cert dev`";

/// Makes rustls use ring everywhere in this process. Later calls change nothing.
pub(crate) fn install_provider() {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Reads certificate, key and client authority, and checks that they belong together.
///
/// # Errors
///
/// Exit code 2 with the file that is wrong.
pub(crate) fn server_config(files: &TlsConfig) -> Result<ServerConfig, Failure> {
    install_provider();
    let chain_of = certificates("TLS certificate", &files.cert, REMEDY)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
        Failure::usage(format!("cannot read the TLS key {}: {}", files.key.display(), chain(&error)), REMEDY)
    })?;
    let builder = match &files.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("client CA", path, REMEDY)?);
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| {
                Failure::usage(format!("the client CA {} cannot be used: {}", path.display(), chain(&error)), REMEDY)
            })?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain_of, key).map_err(|error| {
        let (cert, key) = (files.cert.display(), files.key.display());
        Failure::usage(format!("certificate {cert} and key {key} cannot be used together: {}", chain(&error)), REMEDY)
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(what: &str, path: &Path, remedy: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Failure::usage(format!("the {what} {shown} holds no certificate"), remedy)),
        Err(error) => Err(Failure::usage(format!("cannot read the {what} {shown}: {}", chain(&error)), remedy)),
    }
}

/// Reads what a node shows to the other nodes of its cluster.
///
/// # Errors
///
/// Exit code 2 with the file that is wrong, or is for another node.
pub(crate) fn cluster_identity(config: &ClusterConfig) -> Result<ClusterTls, Failure> {
    ClusterTls::read(&config.tls, &config.id, &config.node)
        .map_err(|error| Failure::usage(chain(&error), "`parlance cert node` makes a certificate and its key"))
}
