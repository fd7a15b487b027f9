//! A node's configuration file.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

/// Where the nodes of a cluster keep what they share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stores {
    /// Each node in its own data directory. Such nodes are no cluster, and are configured as none.
    #[default]
    Local,
    /// In Kafka, and in Cassandra in the place of Scylla.
    Shared {
        /// Brokers, `HOST:PORT`.
        brokers: Vec<String>,
        /// What the topic's name begins with.
        topic_prefix: String,
        /// How many brokers hold the topic.
        replicas: u8,
        /// CQL servers, `HOST:PORT`. Where there is a network, nodes reach the first one through it.
        contact_points: Vec<String>,
        /// The keyspace.
        keyspace: String,
    },
}

impl Stores {
    /// A topic that is on one broker, or on three where there are so many, and a keyspace on one server, neither used by anybody before.
    pub fn fresh(brokers: &[&str], contact_points: &[&str]) -> Self {
        let fresh: u64 = rand::random();
        let owned = |list: &[&str]| list.iter().map(|&server| server.to_owned()).collect();
        Self::Shared {
            brokers: owned(brokers),
            topic_prefix: format!("test-{fresh:x}"),
            replicas: if brokers.len() < 3 { 1 } else { 3 },
            contact_points: owned(contact_points),
            keyspace: format!("test_{fresh:x}"),
        }
    }
}

/// What is written into one node's file.
#[derive(Debug)]
pub(crate) struct NodeConfig<'a> {
    pub(crate) name: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) data: PathBuf,
    pub(crate) shards: u16,
    pub(crate) stores: &'a Stores,
    pub(crate) password_file: PathBuf,
    pub(crate) cluster: Option<ClusterSection<'a>>,
    /// More, as it is.
    pub(crate) settings: &'a str,
}

/// The section `[cluster]`.
#[derive(Debug)]
pub(crate) struct ClusterSection<'a> {
    pub(crate) id: &'a str,
    pub(crate) listen: SocketAddr,
    /// Where others reach it, if not there.
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl NodeConfig<'_> {
    /// The file's text. HTTP is served on a free port.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("listen = '127.0.0.1:0'\ndata = '{}'\n", self.data.display());
        let mut add = |part: String| text.push_str(&part);
        add(format!("[node]\nname = '{}'\nzone = '{}'\n", self.name, self.zone));
        if let Some(cluster) = &self.cluster {
            add(cluster.text());
        }
        add(self.log_and_records());
        add(self.settings.to_owned());
        text
    }

    fn log_and_records(&self) -> String {
        let Stores::Shared { brokers, topic_prefix, replicas, contact_points, keyspace } = self.stores else {
            return format!("[log]\nshards = {}\n", self.shards);
        };
        format!(
            "[log]\nkind = 'kafka'\nbrokers = {}\ntopic_prefix = '{topic_prefix}'\nshards = {}\nreplication = {replicas}\n\
             [records]\nkind = 'scylla'\ncontact_points = {}\nkeyspace = '{keyspace}'\nreplication = 1\n\
             user = 'cassandra'\npassword_file = '{}'\n",
            list(brokers),
            self.shards,
            list(contact_points),
            self.password_file.display()
        )
    }
}

impl ClusterSection<'_> {
    fn text(&self) -> String {
        let mut text =
            format!("[cluster]\nid = '{}'\nlisten = '{}'\nseeds = {}\n", self.id, self.listen, list(&self.seeds));
        if let Some(advertise) = self.advertise {
            // Writing into a string does not fail.
            let _ = writeln!(text, "advertise = '{advertise}'");
        }
        for (what, file) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            let _ = writeln!(text, "{what} = '{}'", file.display());
        }
        text
    }
}

fn list(items: &[impl ToString]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("'{}'", item.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node<'a>(stores: &'a Stores, cluster: Option<ClusterSection<'a>>) -> String {
        let (data, password_file) = ("/d".into(), "/p".into());
        NodeConfig { name: "a", zone: "z", data, shards: 4, stores, password_file, cluster, settings: "[limits]\n" }
            .text()
    }

    #[test]
    fn a_node_alone_has_only_its_own() {
        let text = "listen = '127.0.0.1:0'\ndata = '/d'\n[node]\nname = 'a'\nzone = 'z'\n[log]\nshards = 4\n[limits]\n";
        assert_eq!(node(&Stores::Local, None), text);
    }

    #[test]
    fn a_node_of_a_cluster_knows_where_it_is_where_the_others_are_and_what_they_share() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let file = |name: &str| PathBuf::from(name);
        let cluster = ClusterSection {
            id: "c",
            listen: at(1),
            advertise: Some(at(2)),
            seeds: vec![at(2), at(3)],
            ca: file("ca.pem"),
            cert: file("a.pem"),
            key: file("a.key"),
        };
        let text = node(&Stores::fresh(&["k:1"], &["s:1", "s:2"]), Some(cluster));
        for part in [
            "[cluster]\nid = 'c'\nlisten = '127.0.0.1:1'\nseeds = ['127.0.0.1:2', '127.0.0.1:3']\nadvertise = '127.0.0.1:2'\nca = 'ca.pem'\n",
            "[log]\nkind = 'kafka'\nbrokers = ['k:1']\ntopic_prefix = 'test-",
            "contact_points = ['s:1', 's:2']\nkeyspace = 'test_",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}
