//! The server's TLS identity from files, and the self-made one for development.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::{
    config::TlsConfig,
    failure::{Failure, chain},
    platform,
};

/// Browsers take no longer-lived server certificate of an authority that a user added (Apple HT210176: 825 days).
const DEV_VALIDITY: Duration = Duration::from_secs(800 * 24 * 60 * 60);

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
    let chain_of = certificates("TLS certificate", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
        Failure::usage(format!("cannot read the TLS key {}: {}", files.key.display(), chain(&error)), REMEDY)
    })?;
    let builder = match &files.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("client CA", path)?);
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

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Failure::usage(format!("the {what} {shown} holds no certificate"), REMEDY)),
        Err(error) => Err(Failure::usage(format!("cannot read the {what} {shown}: {}", chain(&error)), REMEDY)),
    }
}

/// The files that [`make_dev_certificate`] wrote.
#[derive(Debug, serde::Serialize)]
pub(crate) struct DevCertificate {
    /// The authority that clients must trust.
    pub(crate) ca: PathBuf,
    /// For `--tls-cert`.
    pub(crate) cert: PathBuf,
    /// For `--tls-key`.
    pub(crate) key: PathBuf,
    /// The names and addresses that the certificate is for.
    pub(crate) names: Vec<String>,
}

/// Makes an authority and a server certificate by it for this machine. The authority's key is never written: nothing else can be
/// signed with it, so trusting it risks nothing but this one server.
///
/// # Errors
///
/// Exit code 1 if a file cannot be written, or exists and `force` is not given.
pub(crate) fn make_dev_certificate(dir: &Path, extra: &[String], force: bool) -> Result<DevCertificate, Failure> {
    let names = names(extra);
    let (ca_pem, cert_pem, key_pem) = sign(&names).map_err(|error| {
        Failure::usage(
            format!("cannot make a certificate for {}: {}", names.join(", "), chain(&error)),
            "Check the names given with --host",
        )
    })?;
    let made = DevCertificate { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem"), names };
    let files = [(&made.ca, ca_pem), (&made.cert, cert_pem), (&made.key, key_pem)];
    if let Some((path, _)) = files.iter().find(|(path, _)| !force && path.exists()) {
        return Err(Failure::failed(
            format!("{} exists already", path.display()),
            "Pass --force to replace it, or choose another directory with --dir",
        ));
    }
    let written = std::fs::create_dir_all(dir).map_err(|error| (dir, error));
    written
        .and_then(|()| {
            files.iter().try_for_each(|(path, pem)| write_private(path, pem).map_err(|error| (&***path, error)))
        })
        .map_err(|(path, error)| {
            Failure::failed(format!("cannot write {}: {error}", path.display()), "Choose another directory with --dir")
        })?;
    Ok(made)
}

fn names(extra: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for name in platform::host_name().iter().chain(extra) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The PEM of the authority, of the server's certificate and of its key.
fn sign(names: &[String]) -> Result<(String, String, String), rcgen::Error> {
    let mut authority = params(Vec::new(), "Parlance development CA")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority_cert = authority.self_signed(&authority_key)?;

    let mut server = params(names.to_vec(), "Parlance development server")?;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let server_key = KeyPair::generate()?;
    let server_cert = server.signed_by(&server_key, &Issuer::new(authority, authority_key))?;
    Ok((authority_cert.pem(), server_cert.pem(), server_key.serialize_pem()))
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    // A minute back: the clocks of two machines are seldom the same.
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + DEV_VALIDITY).into();
    Ok(params)
}

fn write_private(path: &Path, pem: &str) -> std::io::Result<()> {
    // A file that existed keeps its mode, so it is written anew.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()
}
