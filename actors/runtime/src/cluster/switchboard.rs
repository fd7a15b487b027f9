//! Where everything arrives that other nodes send: handed on at once, to the cluster's actor or to whoever answers for sessions.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_cluster_node::{
    identity::Incarnation,
    links::{Failure, Handler, LinkInfo, Observer},
};
use parlance_cluster_protocol::peer::{self, Command, Wish};
use ractor::ActorRef;
use tokio::{sync::oneshot, time::Instant};

use super::{ClusterMessage, Remote, Workers, kind};
use crate::{metrics, node::Services, sessions::Sessions};

/// Code of a failure for a kind of message that this build does not know.
const UNKNOWN_KIND: u32 = 100;
/// Code of a failure for what cannot be read.
const MALFORMED: u32 = 101;
/// Code of a failure whose reason is for an operator.
const REFUSED: u32 = 102;

/// See the module.
pub(super) struct Switchboard {
    pub(super) cluster: ActorRef<ClusterMessage>,
    pub(super) sessions: Sessions,
    pub(super) remote: Arc<Remote>,
    pub(super) workers: Arc<Workers>,
    pub(super) services: Arc<Services>,
    /// Who was heard since the actor asked last: not a message each time. Bound: as many as there are links.
    pub(super) heard: Mutex<HashSet<Incarnation>>,
}

impl Switchboard {
    /// Who was heard since this was asked last.
    pub(super) fn take_heard(&self) -> HashSet<Incarnation> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, message: ClusterMessage) {
        // A node that is stopping hears nothing any more.
        let _stopping = self.cluster.cast(message);
    }
}

impl Handler for Switchboard {
    fn call(
        &self,
        from: &Incarnation,
        kind: u32,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        match kind {
            kind::ASK => self.remote.serve(&self.sessions, from, payload, deadline),
            kind::COMMAND => command(self.cluster.clone(), payload),
            kind::GENERATE => self.workers.serve(&self.services, from, payload),
            kind::CHECK => Workers::serve_check(&self.services, payload),
            kind => {
                let reason = format!("messages of kind {kind} are not known to this version");
                Box::pin(async move { Err(Failure { code: UNKNOWN_KIND, reason }) })
            }
        }
    }

    fn cast(&self, from: &Incarnation, kind: u32, payload: Bytes) {
        match kind {
            kind::GOSSIP => self.tell(ClusterMessage::Gossip { from: from.clone(), bytes: payload }),
            kind::REPORT => match peer::decode("report of a node", payload) {
                Ok(report) => self.tell(ClusterMessage::Report { from: from.clone(), report }),
                Err(_) => metrics::peer_message_refused("report"),
            },
            kind::CHUNK => match peer::decode("text of a turn", payload) {
                Ok(chunk) => self.remote.on_chunk(from, chunk),
                Err(_) => metrics::peer_message_refused("chunk"),
            },
            kind::UNWATCH => match peer::decode("end of a stream", payload) {
                Ok(unwatch) => self.remote.on_unwatch(from, unwatch),
                Err(_) => metrics::peer_message_refused("unwatch"),
            },
            kind::GENERATED => match peer::decode("reply by another node", payload) {
                Ok(generated) => self.workers.on_generated(from, generated),
                Err(_) => metrics::peer_message_refused("generated"),
            },
            kind::UNWANTED => match peer::decode("end of a reply", payload) {
                Ok(unwatch) => self.workers.on_unwatch(from, unwatch),
                Err(_) => metrics::peer_message_refused("unwanted"),
            },
            // Of a newer version.
            _ => metrics::peer_message_refused("unknown"),
        }
    }
}

impl Observer for Switchboard {
    fn up(&self, link: &LinkInfo) {
        self.tell(ClusterMessage::LinkUp(link.peer.clone()));
    }

    fn down(&self, peer: &Incarnation) {
        self.remote.on_link_down(peer);
        self.workers.on_link_down(peer);
        self.tell(ClusterMessage::LinkDown(peer.clone()));
    }

    fn heard(&self, peer: &Incarnation) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !heard.contains(peer) {
            heard.insert(peer.clone());
        }
    }
}

/// An operator's wish that was told to another node.
fn command(cluster: ActorRef<ClusterMessage>, payload: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
    Box::pin(async move {
        let malformed = |reason: String| Failure { code: MALFORMED, reason };
        let command: Command =
            peer::decode("command between nodes", payload).map_err(|error| malformed(error.to_string()))?;
        let wish = command.wish.ok_or_else(|| malformed("no command is named".into()))?;
        obey(&cluster, wish).await.map(|()| Bytes::new()).map_err(|reason| Failure { code: REFUSED, reason })
    })
}

/// Has this node's actor fulfil a wish.
///
/// # Errors
///
/// Why it does not, for the operator.
pub(super) async fn obey(cluster: &ActorRef<ClusterMessage>, wish: Wish) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    let stopping = || "the node is stopping".to_owned();
    cluster.cast(ClusterMessage::Wish { wish, reply }).map_err(|_| stopping())?;
    answer.await.unwrap_or_else(|_| Err(stopping()))
}
