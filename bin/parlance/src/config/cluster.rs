//! What makes a node one of several: who it is to the others, where they reach it, and how soon it takes one for dead.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use parlance_cluster_node::{
    detector,
    identity::{ClusterName, InvalidName, MAX_NAME_BYTES, NodeName},
    membership,
    placement::Weight,
    transport::{Timing, tls::TlsFiles},
    zone::Zone,
};
use serde_json::{Value, json};

use super::{NodeConfig, check::Reader};
use crate::platform;

/// The name of a cluster that was given none.
pub(crate) const DEFAULT_CLUSTER: &str = "parlance";

const DEFAULT_LISTEN: &str = "0.0.0.0:7946";
/// What DNS takes.
const MAX_HOST_BYTES: usize = 253;
/// Before the path of a file that lists seeds.
const SEED_FILE: &str = "file:";
const DEFAULT_MOVES_AT_ONCE: i64 = 4;

/// How this node is one of several.
#[derive(Debug, Clone)]
pub(crate) struct ClusterConfig {
    /// The cluster's name, which all its certificates bear.
    pub(crate) id: ClusterName,
    /// This node's name: `node.name`.
    pub(crate) node: NodeName,
    /// What fails together with it: `node.zone`.
    pub(crate) zone: Option<Zone>,
    /// Where it listens for other nodes. Port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// Where other nodes reach it; port 0 stands for the port that it listens on. See [`Self::advertised`].
    advertise: HostPort,
    /// Where it looks for other nodes. None for the first node, which the others find.
    pub(crate) seeds: Vec<Seed>,
    /// Its certificate, and the authority of all.
    pub(crate) tls: TlsFiles,
    /// Its part of the work.
    pub(crate) weight: Weight,
    /// How fast a link notices that its peer is gone.
    pub(crate) timing: Timing,
    /// When a peer is suspected.
    pub(crate) detector: detector::Options,
    /// When a suspected peer counts as down.
    pub(crate) membership: membership::Options,
    /// How many shards may be on their way to another owner at once.
    pub(crate) moves_at_once: usize,
}

/// Where other nodes are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seed {
    /// Here. A name may have many addresses, and others later: each is a node.
    Address(HostPort),
    /// At the addresses in this file, one a line. It may change, and need not be there yet.
    File(PathBuf),
}

/// Where something is reached: a name or an address (IPv6 in brackets), and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT`. The port is never 0.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        is_host(host).then(|| Self { host: host.to_owned(), port })
    }

    fn of(address: SocketAddr) -> Self {
        let host = match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self { host, port: address.port() }
    }

    /// Whether it is every address of a machine, and so none that others could go to.
    fn is_unspecified(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::File(path) => write!(f, "{SEED_FILE}{}", path.display()),
        }
    }
}

fn is_host(host: &str) -> bool {
    if let Some(ip) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return ip.parse::<Ipv6Addr>().is_ok();
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    // A full stop at the end keeps search domains out.
    let mut labels = host.strip_suffix('.').unwrap_or(host).split('.');
    host.len() <= MAX_HOST_BYTES && labels.all(|label| !label.is_empty() && label.chars().all(allowed))
}

impl ClusterConfig {
    /// Where other nodes reach this one, once it listens on `port`.
    pub(crate) fn advertised(&self, port: u16) -> HostPort {
        let HostPort { host, port: configured } = self.advertise.clone();
        HostPort { host, port: if configured == 0 { port } else { configured } }
    }

    /// What is in force, for people: keys without their section.
    pub(super) fn rows(&self) -> Vec<(&'static str, Value)> {
        let millis = |duration: Duration| json!(duration.as_millis() as u64);
        let advertised = self.advertised(self.listen.port());
        vec![
            ("id", json!(self.id.as_str())),
            ("listen", json!(self.listen.to_string())),
            // Which port it will be is known once it is bound.
            ("advertise", if advertised.port == 0 { Value::Null } else { json!(advertised.to_string()) }),
            ("seeds", self.seeds.iter().map(Seed::to_string).collect()),
            ("ca", json!(self.tls.ca)),
            ("cert", json!(self.tls.cert)),
            ("key", json!(self.tls.key)),
            ("weight", json!(self.weight.get())),
            ("heartbeat_ms", millis(self.timing.heartbeat)),
            ("silence_ms", millis(self.timing.silence)),
            ("suspicion_threshold", json!(self.detector.threshold as u64)),
            ("down_after_ms", millis(self.membership.down_after)),
            ("moves_at_once", json!(self.moves_at_once)),
        ]
    }
}

impl Reader {
    /// The cluster that any key of `[cluster]` makes this node part of. What is wrong is noted, and `None` as well.
    pub(super) fn cluster(&mut self, node: &NodeConfig) -> Option<ClusterConfig> {
        let set = self.any_set_in("cluster")?;
        self.need_shared_stores(&set);
        let id = self.text("cluster.id").unwrap_or_else(|| DEFAULT_CLUSTER.to_owned());
        let id = self.label("cluster.id", &id);
        let name = self.label("node.name", &node.name);
        let zone = node.zone.as_deref().and_then(|zone| self.label("node.zone", zone));
        let listen = self.address("cluster.listen", DEFAULT_LISTEN, "0.0.0.0:7946 or [::]:7946");
        let advertise = listen.and_then(|listen| self.advertise(listen));
        let seeds = self.seeds();
        let tls = self.cluster_tls();
        let weight = self.integer("cluster.weight", 1, 1..=i64::from(Weight::MAX));
        let timing = self.timing();
        let detector = self.detector(timing.heartbeat);
        let membership = self.membership();
        let moves_at_once = self.integer("cluster.moves_at_once", DEFAULT_MOVES_AT_ONCE, 1..=64) as usize;
        Some(ClusterConfig {
            id: id?,
            node: name?,
            zone,
            listen: listen?,
            advertise: advertise?,
            seeds,
            tls: tls?,
            weight: u32::try_from(weight).ok().and_then(Weight::new)?,
            timing,
            detector,
            membership,
            moves_at_once,
        })
    }

    fn need_shared_stores(&mut self, set: &str) {
        for (key, shared) in [("log.kind", "kafka"), ("records.kind", "scylla")] {
            // A kind that there is not is told of elsewhere.
            if self.text(key).is_none_or(|kind| kind == "local") {
                let problem = format!("is one node's own, and {set} makes this node one of several");
                let remedy = format!("Set {key} = \"{shared}\", or nothing of [cluster]");
                self.wrong(key, "\"local\"", &problem, &remedy);
            }
        }
    }

    /// A name that certificates bear.
    fn label<T: FromStr<Err = InvalidName>>(&mut self, key: &str, text: &str) -> Option<T> {
        let name = text.parse().ok();
        if name.is_none() {
            let remedy = format!(
                "Use 1 to {MAX_NAME_BYTES} lower-case letters, digits and hyphens, with no hyphen at either end"
            );
            self.wrong(key, format!("\"{text}\""), "is not a name in a cluster", &remedy);
        }
        name
    }

    fn advertise(&mut self, listen: SocketAddr) -> Option<HostPort> {
        const REMEDY: &str = "Write HOST:PORT as other nodes reach this one, for example one.example:7946";
        if let Some(text) = self.text("cluster.advertise") {
            let address = HostPort::parse(&text).filter(|address| !address.is_unspecified());
            if address.is_none() {
                self.wrong("cluster.advertise", format!("\"{text}\""), "is not where a node can be reached", REMEDY);
            }
            return address;
        }
        if !listen.ip().is_unspecified() {
            return Some(HostPort::of(listen));
        }
        let host = platform::host_name().filter(|host| is_host(host));
        if host.is_none() {
            let problem = "is not set, and this machine has no name to be reached by";
            self.wrong("cluster.advertise", "\"\"", problem, REMEDY);
        }
        host.map(|host| HostPort { host, port: listen.port() })
    }

    fn seeds(&mut self) -> Vec<Seed> {
        let mut seeds = Vec::new();
        for text in self.list("cluster.seeds") {
            let seed = match text.strip_prefix(SEED_FILE) {
                Some(path) => (!path.is_empty()).then(|| Seed::File(path.into())),
                None => HostPort::parse(&text).map(Seed::Address),
            };
            match seed {
                Some(seed) => seeds.push(seed),
                None => {
                    let remedy = "Write HOST:PORT, for example one.example:7946, or file:PATH of a list of these";
                    self.wrong("cluster.seeds", format!("\"{text}\""), "is not where nodes can be found", remedy);
                }
            }
        }
        seeds
    }

    fn cluster_tls(&mut self) -> Option<TlsFiles> {
        let keys = ["cluster.ca", "cluster.cert", "cluster.key"];
        let missing: Vec<_> = keys.into_iter().filter(|key| self.text(key).is_none()).collect();
        let files = keys.map(|key| self.text(key).map(PathBuf::from));
        if let [Some(ca), Some(cert), Some(key)] = files {
            return Some(TlsFiles { ca, cert, key });
        }
        self.problems.push(format!(
            "{} must be set, since nodes prove to each other who they are. Name PEM files, which `parlance cert cluster` and \
             `parlance cert node` make",
            missing.join(" and ")
        ));
        None
    }

    fn timing(&mut self) -> Timing {
        let default = Timing::default();
        let heartbeat = self.millis("cluster.heartbeat_ms", default.heartbeat, 10..=10_000);
        let silence = self.millis("cluster.silence_ms", default.silence, 30..=60_000);
        if silence <= heartbeat * 2 {
            let (silence, two) = (silence.as_millis(), heartbeat.as_millis() * 2);
            let problem = format!("is not longer than two heartbeats, {two} ms");
            self.wrong("cluster.silence_ms", silence, &problem, "Set it higher, or cluster.heartbeat_ms lower");
        }
        Timing { heartbeat, silence, ..default }
    }

    fn detector(&mut self, interval: Duration) -> detector::Options {
        let default = detector::Options::default();
        let threshold = self.integer("cluster.suspicion_threshold", default.threshold as i64, 1..=100) as f64;
        detector::Options { interval, threshold, ..default }
    }

    fn membership(&mut self) -> membership::Options {
        let default = membership::Options::default();
        let down_after = self.millis("cluster.down_after_ms", default.down_after, 500..=600_000);
        membership::Options { down_after, ..default }
    }
}
