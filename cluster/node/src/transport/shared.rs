//! What the parts of a node's transport share: the table of links.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ractor_cluster::{NodeEventSubscription, node::NodeServerSessionInformation};
use tracing::{info, warn};

use super::{
    Handler, LinkInfo, MOST_LINKS, Observer, Options,
    front::FrontMessage,
    hello::{Agreed, Hello, Known, Refusal, judge},
    link::Link,
    metrics,
};
use crate::identity::{BootId, Incarnation, NodeName};

/// Names whose newest start is remembered. Beyond, those without a link are forgotten, oldest start first.
const MOST_NAMES: usize = 4_096;
/// The group in which a node's front actor is found.
pub(super) const FRONTS: &str = "parlance-front";
/// How often a peer's front actor is looked for once its session is ready, and how long between.
const FRONT_LOOKS: u32 = 200;
const BETWEEN_LOOKS: std::time::Duration = std::time::Duration::from_millis(10);

/// See the module.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) observer: Arc<dyn Observer>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_token: HashMap<u64, Arc<Link>>,
    /// The links that are up.
    by_name: HashMap<NodeName, Arc<Link>>,
    newest: BTreeMap<NodeName, BootId>,
}

impl Shared {
    pub(super) fn new(options: Options, handler: Arc<dyn Handler>, observer: Arc<dyn Observer>) -> Self {
        Self { options, handler, observer, table: Mutex::default() }
    }

    /// Our hello on a new connection.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            cluster: self.options.cluster.to_string(),
            name: self.options.me.name.to_string(),
            boot: self.options.me.boot.0,
            oldest: *self.options.versions.start(),
            newest: *self.options.versions.end(),
            token: rand::random(),
        }
    }

    /// Judges a peer's hello by what is known now.
    pub(super) fn judge(&self, hello: &Hello, proven: impl FnOnce(&NodeName) -> bool) -> Result<Agreed, Refusal> {
        let table = self.table();
        let linked: Vec<Incarnation> = table.by_name.values().map(|link| link.peer.clone()).collect();
        let Options { cluster, me, versions, .. } = &self.options;
        let known = Known { cluster, me, versions, newest: &table.newest, linked: &linked, most_links: MOST_LINKS };
        judge(&known, hello, proven)
    }

    /// Both sides have agreed: the link is entered.
    pub(super) fn agreed(&self, agreed: Agreed, token: u64) -> Arc<Link> {
        let link = Arc::new(Link::new(agreed.peer.clone(), agreed.version, token, agreed.token));
        let mut table = self.table();
        table.by_token.insert(token, link.clone());
        table.saw(&agreed.peer);
        link
    }

    pub(super) fn link_of(&self, token: u64) -> Option<Arc<Link>> {
        self.table().by_token.get(&token).cloned()
    }

    /// The link to a node, if it is up.
    pub(super) fn link_to(&self, name: &NodeName) -> Option<Arc<Link>> {
        self.table().by_name.get(name).filter(|link| link.is_up()).cloned()
    }

    pub(super) fn links(&self) -> Vec<LinkInfo> {
        let mut links: Vec<_> = self.table().by_name.values().map(|link| info_of(link)).collect();
        links.sort_by(|a, b| a.peer.cmp(&b.peer));
        links
    }

    pub(super) fn each_link(&self, act: impl Fn(&Link)) {
        let links: Vec<_> = self.table().by_name.values().cloned().collect();
        links.iter().for_each(|link| act(link));
    }

    fn up(&self, link: &Arc<Link>, front: ractor::ActorRef<FrontMessage>) {
        let replaced = {
            let mut table = self.table();
            if table.newest.get(&link.peer.name).is_some_and(|newest| *newest > link.peer.boot) {
                return link.close("the node was restarted meanwhile");
            }
            if !link.ready(front) {
                return;
            }
            table.by_name.insert(link.peer.name.clone(), link.clone())
        };
        if let Some(replaced) = replaced {
            replaced.close("a later connection to the same node continues");
        }
        metrics::link_up();
        info!(peer = %link.peer, version = link.version, "linked with a node");
        self.observer.up(&info_of(link));
    }

    /// The link's connection is over, or never became one.
    pub(super) fn ended(&self, link: &Arc<Link>) {
        let was_up = link.is_up();
        if !link.ended() {
            return;
        }
        let last = {
            let mut table = self.table();
            table.by_token.remove(&link.token);
            let current = table.by_name.get(&link.peer.name).is_some_and(|current| Arc::ptr_eq(current, link));
            current.then(|| table.by_name.remove(&link.peer.name)).is_some()
        };
        if was_up {
            metrics::link_down();
        }
        if last {
            warn!(peer = %link.peer, "lost the link with a node");
            self.observer.down(&link.peer);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn saw(&mut self, peer: &Incarnation) {
        let newest = self.newest.entry(peer.name.clone()).or_insert(peer.boot);
        *newest = peer.boot.max(*newest);
        if self.newest.len() > MOST_NAMES {
            let unlinked = self.newest.iter().filter(|(name, _)| !self.by_name.contains_key(*name));
            let oldest = unlinked.min_by_key(|(_, boot)| **boot).map(|(name, _)| name.clone());
            oldest.map(|name| self.newest.remove(&name));
        }
    }
}

fn info_of(link: &Link) -> LinkInfo {
    LinkInfo { peer: link.peer.clone(), version: link.version, under_way_bytes: link.under_way() }
}

/// The label under which a link's session is known to ractor_cluster.
pub(super) fn label(token: u64) -> String {
    format!("{token:016x}")
}

/// Hears from ractor_cluster what becomes of its sessions.
pub(super) struct Sessions(pub(super) Arc<Shared>);

impl Sessions {
    fn link(&self, session: &NodeServerSessionInformation) -> Option<Arc<Link>> {
        u64::from_str_radix(&session.peer_addr, 16).ok().and_then(|token| self.0.link_of(token))
    }

    /// Its own listener hands it connections that we have not agreed on; they have no label of ours and are ended.
    fn link_or_end(&self, session: &NodeServerSessionInformation) -> Option<Arc<Link>> {
        let link = self.link(session);
        if link.is_none() {
            session.actor.stop(Some("not a link of ours".to_owned()));
        }
        link
    }
}

impl NodeEventSubscription for Sessions {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        if let Some(link) = self.link_or_end(&session) {
            link.carried_by(session.actor);
        }
    }

    fn node_session_authenticated(&self, _session: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        let Some(link) = self.link_or_end(&session) else { return };
        let (shared, node) = (self.0.clone(), session.node_id);
        tokio::spawn(async move {
            for _ in 0..FRONT_LOOKS {
                if let Some(front) = front_of(node) {
                    return shared.up(&link, front);
                }
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            link.close("the peer has no front actor");
        });
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        if let Some(link) = self.link(&session) {
            self.0.ended(&link);
        }
    }
}

/// The front actor of the node that ractor_cluster knows by that number.
fn front_of(node: u64) -> Option<ractor::ActorRef<FrontMessage>> {
    let members = ractor::pg::get_members(&FRONTS.to_owned());
    let of_node = |id| matches!(id, ractor::ActorId::Remote { node_id, .. } if node_id == node);
    members.into_iter().find(|cell| of_node(cell.get_id())).map(Into::into)
}
