//! A cluster's authority, and certificates of its nodes by it. What they must bear says `parlance_cluster_node::transport::tls`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parlance_cluster_node::{
    identity::{ClusterName, NodeName},
    transport::tls::{cluster_domain, node_domain},
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, Issuer, KeyPair, NameConstraints};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    certificates, install_provider,
    made::{as_authority, as_signed, params, write_all},
};
use crate::failure::{Failure, chain};

/// What the authority's files are called, in front of `.pem` and `.key`.
const AUTHORITY: &str = "ca";

const AUTHORITY_REMEDY: &str =
    "Make one with `parlance cert cluster`, and name its directory with --ca-dir and the cluster with --cluster";

/// The files of an authority.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Authority {
    /// The cluster that it is for.
    pub(crate) cluster: String,
    /// For every node's `cluster.ca`.
    pub(crate) ca: PathBuf,
    /// What signs: whoever has it can make nodes.
    pub(crate) key: PathBuf,
}

/// The certificates that [`make_node_certificates`] wrote.
#[derive(Debug, serde::Serialize)]
pub(crate) struct NodeCertificates {
    /// The cluster.
    pub(crate) cluster: String,
    /// For `cluster.ca`.
    pub(crate) ca: PathBuf,
    /// One for each node.
    pub(crate) nodes: Vec<NodeCertificate>,
}

/// The files of one node.
#[derive(Debug, serde::Serialize)]
pub(crate) struct NodeCertificate {
    /// The node.
    pub(crate) name: String,
    /// For `cluster.cert`.
    pub(crate) cert: PathBuf,
    /// For `cluster.key`.
    pub(crate) key: PathBuf,
}

impl Authority {
    fn in_dir(dir: &Path, cluster: &ClusterName) -> Self {
        let file = |ending: &str| dir.join(format!("{AUTHORITY}.{ending}"));
        Self { cluster: cluster.to_string(), ca: file("pem"), key: file("key") }
    }
}

/// Makes an authority for a cluster, which can sign for names of that cluster and for nothing else.
///
/// # Errors
///
/// Exit code 1 if a file cannot be written, or exists and `force` is not given.
pub(crate) fn make_authority(dir: &Path, cluster: &ClusterName, days: u32, force: bool) -> Result<Authority, Failure> {
    let made = Authority::in_dir(dir, cluster);
    let sign = || {
        let key = KeyPair::generate()?;
        Ok((authority_params(cluster, days)?.self_signed(&key)?.pem(), key.serialize_pem()))
    };
    let (ca_pem, key_pem) = sign().map_err(|error: rcgen::Error| {
        Failure::failed(format!("cannot make an authority: {}", chain(&error)), "Choose a shorter --cluster")
    })?;
    write_all(dir, &[(&made.ca, ca_pem), (&made.key, key_pem)], force)?;
    Ok(made)
}

fn authority_params(cluster: &ClusterName, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(Vec::new(), &subject("Parlance cluster authority", cluster.as_str()), days)?;
    let own_names = vec![GeneralSubtree::DnsName(cluster_domain(cluster))];
    params.name_constraints = Some(NameConstraints { permitted_subtrees: own_names, excluded_subtrees: Vec::new() });
    Ok(as_authority(params))
}

fn subject<'a>(role: &'a str, name: &'a str) -> [(DnType, &'a str); 2] {
    [(DnType::OrganizationName, role), (DnType::CommonName, name)]
}

/// Makes a certificate and a key for each node, by the authority in `ca_dir`, and checks them as other nodes will.
///
/// # Errors
///
/// Exit code 1 if a file cannot be written, or exists and `force` is not given; 2 if the authority is not there or is another cluster's, or a
/// node has the name of its files. Then nothing is written.
pub(crate) fn make_node_certificates(
    dir: &Path,
    ca_dir: &Path,
    cluster: &ClusterName,
    names: &[NodeName],
    days: u32,
    force: bool,
) -> Result<NodeCertificates, Failure> {
    let authority = Authority::in_dir(ca_dir, cluster);
    let signer = Signer::read(&authority, cluster)?;
    let mut pems = Vec::new();
    let mut nodes = Vec::new();
    for name in names {
        if name.as_str() == AUTHORITY {
            let problem = format!("the files of a node named {AUTHORITY} would be called as the authority's");
            return Err(Failure::usage(problem, "Choose another --name"));
        }
        pems.push(signer.sign(name, days)?);
        let file = |ending: &str| dir.join(format!("{name}.{ending}"));
        nodes.push(NodeCertificate { name: name.to_string(), cert: file("pem"), key: file("key") });
    }
    let files: Vec<_> =
        nodes.iter().zip(pems).flat_map(|(node, (cert, key))| [(&node.cert, cert), (&node.key, key)]).collect();
    write_all(dir, &files, force)?;
    Ok(NodeCertificates { cluster: authority.cluster, ca: authority.ca, nodes })
}

/// A cluster's authority, able to sign.
struct Signer<'a> {
    cluster: &'a ClusterName,
    ca: &'a Path,
    issuer: Issuer<'static, KeyPair>,
    /// What a node that dials this one will check, and what one that is dialled.
    verifiers: (Arc<WebPkiServerVerifier>, Arc<dyn ClientCertVerifier>),
}

impl<'a> Signer<'a> {
    fn read(authority: &'a Authority, cluster: &'a ClusterName) -> Result<Self, Failure> {
        install_provider();
        let (ca, key) = (&authority.ca, &authority.key);
        let unusable = |path: &Path, reason: &dyn std::fmt::Display| {
            Failure::usage(format!("cannot use the authority's {}: {reason}", path.display()), AUTHORITY_REMEDY)
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates("authority's certificate", ca, AUTHORITY_REMEDY)?);
        let roots = Arc::new(roots);
        let servers = WebPkiServerVerifier::builder(roots.clone()).build();
        let clients = WebPkiClientVerifier::builder(roots).build();
        let verifiers = servers.and_then(|servers| Ok((servers, clients?)));
        let verifiers = verifiers.map_err(|error| unusable(ca, &chain(&error)))?;
        let pem = std::fs::read_to_string(key).map_err(|error| unusable(key, &error))?;
        let signing = KeyPair::from_pem(&pem).map_err(|error| unusable(key, &chain(&error)))?;
        // Of the authority's certificate only its names and key matter here, and whether they are these is checked with each signature.
        let params = authority_params(cluster, 1).map_err(|error| unusable(ca, &chain(&error)))?;
        Ok(Self { cluster, ca, issuer: Issuer::new(params, signing), verifiers })
    }

    /// The PEM of a certificate and of its key.
    fn sign(&self, name: &NodeName, days: u32) -> Result<(String, String), Failure> {
        let domains = [cluster_domain(self.cluster), node_domain(self.cluster, name)];
        let make = || {
            let key = KeyPair::generate()?;
            let params = params(domains.to_vec(), &subject("Parlance node", name.as_str()), days)?;
            let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let signed = as_signed(params, &purposes).signed_by(&key, &self.issuer)?;
            Ok((signed, key.serialize_pem()))
        };
        let (signed, key) = make().map_err(|error: rcgen::Error| {
            Failure::failed(format!("cannot make a certificate for {name}: {}", chain(&error)), "Try again")
        })?;
        self.check(signed.der(), &domains).map_err(|error| {
            let (ca, cluster) = (self.ca.display(), self.cluster);
            let problem =
                format!("the authority {ca} and its key do not sign for cluster {cluster}: {}", chain(&error));
            Failure::usage(problem, AUTHORITY_REMEDY)
        })?;
        Ok((signed.pem(), key))
    }

    fn check(&self, signed: &CertificateDer<'_>, domains: &[String]) -> Result<(), rustls::Error> {
        let now = UnixTime::now();
        let (servers, clients) = &self.verifiers;
        for domain in domains {
            let name = ServerName::try_from(&**domain).map_err(|error| rustls::Error::General(error.to_string()))?;
            servers.verify_server_cert(signed, &[], &name, &[], now)?;
        }
        clients.verify_client_cert(signed, &[], now).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use parlance_cluster_node::transport::tls::{ClusterTls, TlsError, TlsFiles};

    use super::*;

    fn named<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> T {
        name.parse().expect("a name")
    }

    #[test]
    fn a_node_takes_its_own_certificate_and_no_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster: ClusterName = named("c");
        make_authority(dir.path(), &cluster, 10, false).expect("an authority");
        let made = make_node_certificates(dir.path(), dir.path(), &cluster, &[named("a"), named("b")], 10, false);
        let made = made.expect("certificates");
        let files =
            |node: &NodeCertificate| TlsFiles { ca: made.ca.clone(), cert: node.cert.clone(), key: node.key.clone() };
        for node in &made.nodes {
            ClusterTls::read(&files(node), &cluster, &named(&node.name)).expect(&node.name);
        }
        let a = files(&made.nodes[0]);
        for (cluster, name) in [("c", "b"), ("d", "a")] {
            let refused = ClusterTls::read(&a, &named(cluster), &named(name)).expect_err("another's");
            assert!(matches!(refused, TlsError::WrongName { .. }), "{refused}");
        }
        let mixed = TlsFiles { key: made.nodes[1].key.clone(), ..a };
        let refused = ClusterTls::read(&mixed, &cluster, &named("a")).expect_err("another's key");
        assert!(matches!(refused, TlsError::Unusable { .. }), "{refused}");
    }

    #[test]
    fn an_authority_signs_for_its_own_cluster_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_authority(dir.path(), &named("c"), 10, false).expect("an authority");
        let make =
            |cluster: &str| make_node_certificates(dir.path(), dir.path(), &named(cluster), &[named("a")], 10, false);
        let told = make("d").expect_err("another cluster").lines.remove(0);
        assert!(told.contains("do not sign for cluster d") && told.contains("--cluster"), "{told}");
        // The very name of the authority's cluster would not help: it may not sign for others.
        let authority = Authority::in_dir(dir.path(), &named("c"));
        let (c, d) = (named("c"), named("d"));
        let signer = Signer { cluster: &d, ..Signer::read(&authority, &c).expect("it can sign") };
        let told = signer.sign(&named("a"), 10).expect_err("another cluster's names").lines.remove(0);
        assert!(told.contains("NameConstraint"), "{told}");
        assert!(!dir.path().join("a.pem").exists());
        make("c").expect("its own");
    }
}
