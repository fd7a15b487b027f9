//! Certificates of a cluster's nodes, by an authority of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// Writes `ca.pem`, and `NAME.pem` and `NAME.key` for each node: for `CLUSTER.parlance`, which whoever dials asks for, and
/// `NAME.CLUSTER.parlance`, by which the node proves its name.
///
/// # Panics
///
/// Where the files cannot be written.
pub(crate) fn write<'a>(directory: &Path, cluster: &str, nodes: impl Iterator<Item = &'a str>) {
    let mut params = CertificateParams::new(vec![]).expect("no name is no bad name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
    fs::write(authority_file(directory), authority.pem()).expect("it is written");
    for name in nodes {
        let key = KeyPair::generate().expect("a key");
        let domains = vec![format!("{cluster}.parlance"), format!("{name}.{cluster}.parlance")];
        let mut params = CertificateParams::new(domains).expect("names of nodes are names of hosts");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        let (cert_file, key_file) = files(directory, name);
        fs::write(cert_file, certificate.pem()).expect("it is written");
        fs::write(key_file, key.serialize_pem()).expect("it is written");
    }
}

pub(crate) fn authority_file(directory: &Path) -> PathBuf {
    directory.join("ca.pem")
}

/// A node's certificate and its key.
pub(crate) fn files(directory: &Path, node: &str) -> (PathBuf, PathBuf) {
    (directory.join(format!("{node}.pem")), directory.join(format!("{node}.key")))
}
