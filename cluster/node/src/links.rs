//! Links with other nodes: the port, and what is the same whatever carries them.
//!
//! `transport::Transport` links processes; [`Network`](network::Network) links nodes of one process, for tests.
//! `conformance` runs on both.

#[doc(hidden)]
pub mod conformance;
pub mod network;

use std::{ops::RangeInclusive, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::time::Instant;

use crate::identity::{Incarnation, NodeName};

/// Links at once.
pub const MOST_LINKS: usize = 256;
/// The largest payload of one message, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 4 * 1024 * 1024;
/// Bytes under way to one peer that it has not taken in yet.
pub const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Addresses that are dialled.
pub(crate) const MOST_DIALLED: usize = 1_024;
/// The most calls that wait for an answer on one link.
pub(crate) const MOST_PENDING: usize = 16_384;
/// Calls from other nodes that run at once.
pub(crate) const MOST_CALLS: usize = 4_096;
/// Between two heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// A link on which nothing has come for so long is over.
pub(crate) const SILENCE: Duration = Duration::from_millis(1_250);
/// Between two attempts to reach an address: at first, and at most. It doubles, and is drawn by lot from its upper half.
pub(crate) const RETRY: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(5);

/// A node's links with other nodes, at most [`MOST_LINKS`]. What two nodes say to each other over one link arrives in order, once; what was under way
/// when a link ends may be lost.
pub trait Links: Send + Sync + 'static {
    /// Keeps a link with whoever is at `address` until it is [forgotten](Self::forget). `false`: there are too many already, or it has stopped.
    fn dial(&self, address: &str) -> bool;

    /// Dials that address no more. A link that is up stays.
    fn forget(&self, address: &str);

    /// The links that are up, by name.
    fn links(&self) -> Vec<LinkInfo>;

    /// Asks a node, and waits for its answer for so long at most.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::is_certain`] tells what was certainly not done.
    ///
    /// # Cancel safety
    ///
    /// Who drops the future does not know whether it was done; nothing waits for the answer any more.
    fn call(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// Sends a message that nobody answers, as soon as the peer has room, `within` so long at most. It may get lost with its link.
    ///
    /// # Errors
    ///
    /// [`CallError`] if it was certainly not sent.
    fn cast(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<(), CallError>>;

    /// Closes the link with a node, for instance one that the failure detector has given up.
    fn cut(&self, peer: &NodeName, why: &str);

    /// Closes all links and listens no more. Again, it does nothing.
    fn stop(&self) -> BoxFuture<'static, ()>;
}

/// Answers other nodes.
pub trait Handler: Send + Sync + 'static {
    /// Answers a call from `from`, until `deadline` or never. What `kind` it does not know it fails with a code of its own.
    fn call(
        &self,
        from: &Incarnation,
        kind: u32,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>>;

    /// Takes a message that nobody answers. Must not block.
    fn cast(&self, from: &Incarnation, kind: u32, payload: Bytes);
}

/// Hears of links. Must not block.
pub trait Observer: Send + Sync + 'static {
    /// A link is up.
    fn up(&self, link: &LinkInfo);
    /// There is no link with this incarnation any more.
    fn down(&self, peer: &Incarnation);
    /// Something came from it.
    fn heard(&self, peer: &Incarnation);
}

/// A link, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The other node.
    pub peer: Incarnation,
    /// The version that both agreed on.
    pub version: u32,
    /// Bytes that it has not taken in yet.
    pub under_way_bytes: u64,
}

/// Why a handler did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason} (code {code})")]
pub struct Failure {
    /// The handler's own code, from 1.
    pub code: u32,
    /// Why, for people.
    pub reason: String,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// There is no link; nothing was sent.
    #[error("there is no link with that node")]
    Unreachable,
    /// The peer has no room; it has not begun.
    #[error("that node is busy")]
    Busy,
    /// The payload is larger than [`MAX_PAYLOAD_BYTES`]; nothing was sent.
    #[error("a payload of {bytes} bytes is more than the {MAX_PAYLOAD_BYTES} that a message may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No answer came in time; nobody knows whether it was done.
    #[error("no answer came in time")]
    TimedOut,
    /// The link was lost; nobody knows whether it was done.
    #[error("the link with that node was lost")]
    LinkLost,
    /// The peer's handler failed.
    #[error(transparent)]
    Failed(Failure),
}

impl CallError {
    /// Whether the peer has certainly not begun: it may be asked again, or somebody else.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Unreachable | Self::Busy | Self::TooLarge { .. })
    }
}

/// Whether a payload may be sent.
pub(crate) fn check_size(payload: &Bytes) -> Result<(), CallError> {
    match payload.len() {
        bytes if bytes > MAX_PAYLOAD_BYTES => Err(CallError::TooLarge { bytes }),
        _ => Ok(()),
    }
}
