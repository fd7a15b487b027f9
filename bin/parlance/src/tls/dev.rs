//! A self-made identity for a server on a developer's machine.

use std::path::{Path, PathBuf};

use rcgen::{DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};

use super::made::{DAYS, as_authority, as_signed, params, write_all};
use crate::{
    failure::{Failure, chain},
    platform,
};

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
    write_all(dir, &[(&made.ca, ca_pem), (&made.cert, cert_pem), (&made.key, key_pem)], force)?;
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
    let named = |name| [(DnType::CommonName, name)];
    let authority = as_authority(params(Vec::new(), &named("Parlance development CA"), DAYS)?);
    let authority_key = KeyPair::generate()?;
    let authority_cert = authority.self_signed(&authority_key)?;
    let server = params(names.to_vec(), &named("Parlance development server"), DAYS)?;
    let server_key = KeyPair::generate()?;
    let server_cert = as_signed(server, &[ExtendedKeyUsagePurpose::ServerAuth])
        .signed_by(&server_key, &Issuer::new(authority, authority_key))?;
    Ok((authority_cert.pem(), server_cert.pem(), server_key.serialize_pem()))
}
