//! The links to other nodes, for whoever asks over them. They come once the cluster's actor has started.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use parlance_cluster_node::{
    identity::NodeName,
    links::{CallError, Failure, Links},
};
use parlance_cluster_protocol::peer::{self, Answer};

/// How long a message that nobody answers waits for room on its link at a time.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// Code of a failure for what cannot be read.
pub(super) const MALFORMED: u32 = 2;

/// The other nodes. One per node in a cluster.
#[derive(Default)]
pub(super) struct Peers(OnceLock<Arc<dyn Links>>);

impl Peers {
    pub(super) fn set(&self, links: Arc<dyn Links>) {
        // There is one transport per start of the cluster's actor, and one start.
        let _ = self.0.set(links);
    }

    /// The links, once they are there.
    pub(super) fn links(&self) -> Option<Arc<dyn Links>> {
        self.0.get().cloned()
    }

    /// Asks a node what is answered by an [`Answer`].
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) async fn ask(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let links = self.links().ok_or(CallError::Unreachable)?;
        let bytes = links.call(to, kind, payload, within).await?;
        peer::decode("answer between nodes", bytes)
            .map_err(|error| CallError::Failed(Failure { code: MALFORMED, reason: error.to_string() }))
    }

    /// Tells a node something in its own time. It is not heard if there is no room on the link.
    pub(super) fn cast(&self, to: &NodeName, kind: u32, payload: Bytes) {
        if let Some(links) = self.0.get() {
            tokio::spawn(links.cast(to, kind, payload, ROOM_WITHIN));
        }
    }
}

/// Tells a node something for as long as the link lives, however long there is no room on it.
///
/// # Errors
///
/// The link is over.
pub(super) async fn cast_patiently(
    links: &dyn Links,
    to: &NodeName,
    kind: u32,
    payload: Bytes,
) -> Result<(), CallError> {
    loop {
        match links.cast(to, kind, payload.clone(), ROOM_WITHIN).await {
            Err(CallError::Busy) => {}
            told => return told,
        }
    }
}
