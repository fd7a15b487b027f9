//! How the servers are reached, and what the keyspace is like.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use crate::RecordsError;

/// The port of CQL where a node's address has none.
const CQL_PORT: u16 = 9_042;
/// What both servers take as a name.
const MAX_KEYSPACE_BYTES: usize = 48;

/// How the record store of a cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScyllaOptions {
    /// Nodes to begin with, `HOST` or `HOST:PORT` (9042); the others are found through them. One port serves all nodes.
    pub nodes: Vec<String>,
    /// The keyspace: a letter, then letters, digits and `_`, all in lower case, at most 48.
    pub keyspace: String,
    /// How often rows are kept, for a keyspace that has to be created and to check one that is there; without it, the keyspace must be
    /// there.
    pub replication: Option<Replication>,
    /// Who logs in, where the servers ask.
    pub credentials: Option<Credentials>,
    /// TLS; without it, everything travels in the clear.
    pub tls: Option<TlsOptions>,
    /// The data centre whose nodes are spoken to first. Quorums are of all data centres nevertheless.
    pub datacenter: Option<String>,
    /// How long one attempt at a request may take. A request that is sent again has all servers to choose from.
    pub request_timeout: Duration,
    /// How long a request may take with all attempts, before it fails.
    pub deadline: Duration,
    /// How long the servers are waited for at the start, with migrations.
    pub open_timeout: Duration,
}

impl ScyllaOptions {
    /// A store on these nodes: 2 s for an attempt, 10 s for a request, 30 s for the start; rows are kept three times.
    pub fn new(nodes: impl IntoIterator<Item = impl Into<String>>, keyspace: impl Into<String>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            keyspace: keyspace.into(),
            replication: Some(Replication::Everywhere(3)),
            credentials: None,
            tls: None,
            datacenter: None,
            request_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
        }
    }

    /// What cannot be used is refused before anything is sent.
    pub(super) fn check(&self) -> Result<(), RecordsError> {
        let bad = |option, reason: &str| Err(RecordsError::BadOption { option, reason: reason.to_owned() });
        if self.nodes.is_empty() || self.nodes.iter().any(|node| split(node).is_none()) {
            return bad("nodes", "write HOST or HOST:PORT, at least one");
        }
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let begins_well = self.keyspace.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins_well || !self.keyspace.chars().all(is_part) || self.keyspace.len() > MAX_KEYSPACE_BYTES {
            return bad("keyspace", "write a lower-case letter, then lower-case letters, digits and _, at most 48");
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        match &self.replication {
            Some(Replication::Everywhere(0)) => return bad("replication", "0 copies keep nothing"),
            Some(Replication::Datacenters(map)) if map.is_empty() || map.values().all(|copies| *copies == 0) => {
                return bad("replication", "0 copies keep nothing");
            }
            Some(Replication::Datacenters(map)) if !map.keys().all(|name| name.chars().all(is_word)) => {
                return bad("replication", "a data centre's name has letters, digits, _, - and .");
            }
            _ => {}
        }
        if self.request_timeout.is_zero() || self.deadline < self.request_timeout {
            return bad("request_timeout", "it must be above 0 and no longer than the deadline");
        }
        Ok(())
    }

    /// The nodes with their ports.
    pub(super) fn addresses(&self) -> Vec<(String, u16)> {
        self.nodes.iter().filter_map(|node| split(node)).collect()
    }
}

/// The host and the port of a node; IPv6 addresses with a port stand in brackets.
fn split(node: &str) -> Option<(String, u16)> {
    let (host, port) = match node.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.starts_with('[') => (host, port.parse().ok()?),
        _ => (node, CQL_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty() && !host.contains(char::is_whitespace)).then(|| (host.to_owned(), port))
}

/// How often rows are kept, by `NetworkTopologyStrategy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replication {
    /// So often in each data centre.
    Everywhere(u8),
    /// So often in these data centres, and not in others.
    Datacenters(BTreeMap<String, u8>),
}

impl Replication {
    /// The map that CQL wants.
    pub(super) fn to_cql(&self) -> String {
        let copies = match self {
            Self::Everywhere(copies) => format!("'replication_factor': {copies}"),
            Self::Datacenters(map) => {
                let entries: Vec<_> = map.iter().map(|(name, copies)| format!("'{name}': {copies}")).collect();
                entries.join(", ")
            }
        };
        format!("{{'class': 'NetworkTopologyStrategy', {copies}}}")
    }

    /// Where a keyspace with this replication, as its server tells it, keeps fewer copies than wanted.
    pub(super) fn shortfall(&self, found: &BTreeMap<String, String>) -> Option<String> {
        let copies = |name: &str| found.get(name).and_then(|copies| copies.parse::<u8>().ok());
        match self {
            Self::Everywhere(wanted) => {
                let least =
                    found.iter().filter(|(name, _)| *name != "class").map(|(name, _)| copies(name).unwrap_or(0));
                let least = least.min().unwrap_or(0);
                (least < *wanted).then(|| format!("{least} copies instead of {wanted}"))
            }
            Self::Datacenters(map) => map.iter().find_map(|(name, wanted)| {
                let found = copies(name).unwrap_or(0);
                (found < *wanted).then(|| format!("{found} copies in {name} instead of {wanted}"))
            }),
        }
    }
}

/// Who logs in.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// TLS 1.2 or 1.3 to the servers. Files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The authorities that sign the servers' certificates.
    pub authorities: PathBuf,
    /// Our certificate with what stands between it and the authority, and its key, where the servers ask for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name that all servers' certificates bear; without it, each bears the name or address that it is reached at.
    pub server_name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_a_port_or_get_one() {
        let split = |node| split(node).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(split("a").as_deref(), Some("a 9042"));
        assert_eq!(split("a:1").as_deref(), Some("a 1"));
        assert_eq!(split("::1").as_deref(), Some("::1 9042"));
        assert_eq!(split("[::1]:7").as_deref(), Some("::1 7"));
        for bad in ["", ":1", "a:", "a:port", "a b", "a:70000"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_option() {
        let good = || ScyllaOptions::new(["a"], "parlance");
        assert!(good().check().is_ok());
        let datacenters = |name: &str, copies| Some(Replication::Datacenters([(name.to_owned(), copies)].into()));
        let bad = [
            ("nodes", ScyllaOptions { nodes: vec![], ..good() }),
            ("nodes", ScyllaOptions { nodes: vec!["a:x".into()], ..good() }),
            ("keyspace", ScyllaOptions { keyspace: "Records".into(), ..good() }),
            ("keyspace", ScyllaOptions { keyspace: "a; DROP".into(), ..good() }),
            ("keyspace", ScyllaOptions { keyspace: "a".repeat(49), ..good() }),
            ("replication", ScyllaOptions { replication: Some(Replication::Everywhere(0)), ..good() }),
            ("replication", ScyllaOptions { replication: datacenters("a'b", 3), ..good() }),
            ("replication", ScyllaOptions { replication: datacenters("a", 0), ..good() }),
            ("request_timeout", ScyllaOptions { request_timeout: Duration::ZERO, ..good() }),
            ("request_timeout", ScyllaOptions { deadline: Duration::from_secs(1), ..good() }),
        ];
        for (named, options) in bad {
            match options.check() {
                Err(RecordsError::BadOption { option, .. }) => assert_eq!(option, named, "{options:?}"),
                other => panic!("{options:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_few_copies_are_seen() {
        let map = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let everywhere = Replication::Everywhere(3);
        let simple = map(&[("class", "org.apache.cassandra.locator.SimpleStrategy"), ("replication_factor", "1")]);
        assert_eq!(everywhere.shortfall(&simple).as_deref(), Some("1 copies instead of 3"));
        let topology = map(&[("class", "NetworkTopologyStrategy"), ("one", "3"), ("two", "2")]);
        assert_eq!(everywhere.shortfall(&topology).as_deref(), Some("2 copies instead of 3"));
        assert_eq!(Replication::Everywhere(2).shortfall(&topology), None);
        let two = |copies| Replication::Datacenters([("two".to_owned(), copies)].into());
        assert_eq!(two(2).shortfall(&topology), None);
        assert_eq!(two(3).shortfall(&topology).as_deref(), Some("2 copies in two instead of 3"));
        assert_eq!(two(1).shortfall(&simple).as_deref(), Some("0 copies in two instead of 1"));
    }

    #[test]
    fn the_password_is_not_shown() {
        let credentials = Some(Credentials { user: "someone".into(), password: "secret".into() });
        let shown = format!("{:?}", ScyllaOptions { credentials, ..ScyllaOptions::new(["a"], "k") });
        assert!(shown.contains("someone") && !shown.contains("secret"), "{shown}");
    }
}
