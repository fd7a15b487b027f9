//! `parlance cert`: certificates for development, and for the nodes of a cluster.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, value_parser};
use parlance_cluster_node::identity::{ClusterName, NodeName};

use crate::{
    config::DEFAULT_CLUSTER,
    failure::Failure,
    output,
    tls::{self, Authority, NodeCertificates},
};

/// How many days a cluster's authority is valid unless asked otherwise: longer than the nodes' certificates, which are easily replaced.
const AUTHORITY_DAYS: u32 = 3_650;

/// A century: what is valid for longer, somebody mistyped.
const MOST_DAYS: i64 = 36_500;

/// Make certificates
#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// Make a development CA and a server certificate for this machine
    Dev {
        /// Where to write ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// One more host name or IP address that clients use; can be repeated
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Cluster(ClusterCert),
    Node(NodeCert),
}

/// Make the authority of a cluster, which signs for its nodes
#[derive(Debug, Args)]
pub(super) struct ClusterCert {
    /// Where to write ca.pem and ca.key
    #[arg(long, value_name = "DIR", default_value = "cluster-certs")]
    dir: PathBuf,
    /// The cluster's name, as in cluster.id
    #[arg(long, value_name = "ID", default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    /// How long it is valid
    #[arg(long, value_name = "DAYS", default_value_t = AUTHORITY_DAYS, value_parser = value_parser!(u32).range(1..=MOST_DAYS))]
    days: u32,
    /// Replace files that exist: no certificate of the old authority is good any more
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make certificates for nodes of a cluster, signed by its authority
#[derive(Debug, Args)]
pub(super) struct NodeCert {
    /// A node's name, as in node.name; can be repeated
    #[arg(long, value_name = "NAME", required = true)]
    name: Vec<NodeName>,
    /// Where to write NAME.pem and NAME.key
    #[arg(long, value_name = "DIR", default_value = "cluster-certs")]
    dir: PathBuf,
    /// Where `parlance cert cluster` wrote ca.pem and ca.key [default: the same]
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// The cluster's name, as in cluster.id
    #[arg(long, value_name = "ID", default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    /// How long they are valid
    #[arg(long, value_name = "DAYS", default_value_t = tls::DAYS, value_parser = value_parser!(u32).range(1..=MOST_DAYS))]
    days: u32,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Cert {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Dev { dir, host, force, json } => dev(&dir, &host, force, json),
            Self::Cluster(cluster) => cluster.run(),
            Self::Node(node) => node.run(),
        }
    }
}

fn dev(dir: &Path, host: &[String], force: bool, json: bool) -> Result<(), Failure> {
    let made = tls::make_dev_certificate(dir, host, force)?;
    if json {
        output::json(&made);
        return Ok(());
    }
    let (ca, cert, key) = (made.ca.display(), made.cert.display(), made.key.display());
    output::line(format!("Made a certificate for {}.", made.names.join(", ")));
    output::line("Serve with it:");
    output::line(format!("  parlance up --tls-cert {cert} --tls-key {key}"));
    output::line("Let clients trust it:");
    output::line(format!("  parlance chat --server https://localhost:8080 --ca-cert {ca}"));
    output::line(format!("  curl --cacert {ca} https://localhost:8080/readyz"));
    Ok(())
}

impl ClusterCert {
    fn run(self) -> Result<(), Failure> {
        let made = tls::make_authority(&self.dir, &self.cluster, self.days, self.force)?;
        if self.json {
            output::json(&made);
            return Ok(());
        }
        let Authority { cluster, ca, key } = &made;
        output::line(format!("Made the authority of cluster {cluster}: {}", ca.display()));
        output::line(format!("Keep {} off the nodes: whoever has it can make nodes.", key.display()));
        output::line("Make the nodes' certificates:");
        output::line(format!("  parlance cert node --dir {} --cluster {cluster} --name NAME", self.dir.display()));
        Ok(())
    }
}

impl NodeCert {
    fn run(self) -> Result<(), Failure> {
        let ca_dir = self.ca_dir.as_deref().unwrap_or(&self.dir);
        let made = tls::make_node_certificates(&self.dir, ca_dir, &self.cluster, &self.name, self.days, self.force)?;
        if self.json {
            output::json(&made);
        } else {
            tell(&made);
        }
        Ok(())
    }
}

fn tell(made: &NodeCertificates) {
    for node in &made.nodes {
        output::line(format!("Made a certificate for {}. Give the node {} and these:", node.name, made.ca.display()));
        output::line(format!("  {} and {}", node.cert.display(), node.key.display()));
    }
    output::line("In the configuration of each:");
    output::line(format!("  [cluster]\n  id = \"{}\"", made.cluster));
    output::line("  ca = \"…/ca.pem\"\n  cert = \"…/NAME.pem\"\n  key = \"…/NAME.key\"");
}
