//! One end of a link, what is under way to it, and whom it belongs to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::pending;
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    time::Instant,
};

use crate::{
    identity::Incarnation,
    links::{CallError, Handler, LinkInfo, MOST_CALLS, Observer, WINDOW_BYTES},
};

/// What both sides speak.
const VERSION: u32 = 1;
/// What a message takes besides its payload, roughly: so that many small ones count too.
const OVERHEAD: usize = 64;

/// Names a node that has joined, or one end of a link.
pub(super) type Id = u64;

/// What is called of a node.
pub(super) struct Local {
    pub(super) me: Incarnation,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) observer: Arc<dyn Observer>,
    /// Calls from others that may still begin.
    pub(super) calls: Arc<Semaphore>,
    pub(super) killed: AtomicBool,
}

impl Local {
    pub(super) fn new(me: Incarnation, handler: Arc<dyn Handler>, observer: Arc<dyn Observer>) -> Self {
        let calls = Arc::new(Semaphore::new(MOST_CALLS));
        Self { me, handler, observer, calls, killed: AtomicBool::new(false) }
    }

    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Returns to a node that is alive. Whoever was killed never goes on.
    pub(super) async fn unless_killed<T>(&self, answer: T) -> T {
        if self.is_killed() {
            pending::<()>().await;
        }
        answer
    }
}

/// What one end sends to the other.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Heartbeat,
    Cast {
        kind: u32,
        payload: Bytes,
    },
    Call {
        id: u64,
        kind: u32,
        payload: Bytes,
        deadline: Instant,
    },
    Answer {
        id: u64,
        answer: Result<Bytes, CallError>,
    },
    /// The other end is over.
    Closed,
}

impl Message {
    /// Bytes that count against the receiver's room.
    pub(super) fn weight(&self) -> u64 {
        let payload = match self {
            Self::Heartbeat | Self::Closed => return 0,
            Self::Cast { payload, .. } | Self::Call { payload, .. } | Self::Answer { answer: Ok(payload), .. } => {
                payload.len()
            }
            Self::Answer { answer: Err(CallError::Failed(failure)), .. } => failure.reason.len(),
            Self::Answer { answer: Err(_), .. } => 0,
        };
        (payload + OVERHEAD) as u64
    }
}

/// One end of a link that is up.
pub(super) struct End {
    /// Whose end it is.
    pub(super) node: Id,
    pub(super) local: Arc<Local>,
    pub(super) peer: Incarnation,
    /// The other end, which may be over.
    pub(super) other: Id,
    pub(super) heard_at: Instant,
    /// Under way to this end, in order, and when each arrives.
    pub(super) inbox: VecDeque<(Instant, Message)>,
    /// Bytes that the other end has not taken in.
    pub(super) under_way: u64,
    pub(super) room: Arc<Notify>,
    pub(super) calls: u64,
    /// Calls without an answer.
    pub(super) waiting: BTreeMap<u64, oneshot::Sender<Result<Bytes, CallError>>>,
    /// Is dropped with this end.
    pub(super) over: watch::Sender<()>,
}

impl End {
    pub(super) fn new(node: Id, local: Arc<Local>, peer: Incarnation, other: Id, now: Instant) -> Self {
        Self {
            node,
            local,
            peer,
            other,
            heard_at: now,
            inbox: VecDeque::new(),
            under_way: 0,
            room: Arc::default(),
            calls: 0,
            waiting: BTreeMap::new(),
            over: watch::Sender::new(()),
        }
    }

    pub(super) fn info(&self) -> LinkInfo {
        LinkInfo { peer: self.peer.clone(), version: VERSION, under_way_bytes: self.under_way }
    }

    /// Whether so much more may be under way. One message always fits, however large, so that nothing waits for ever.
    pub(super) fn has_room(&self, weight: u64) -> bool {
        self.under_way == 0 || self.under_way + weight <= WINDOW_BYTES
    }

    /// The other end has taken in so much.
    pub(super) fn acknowledge(&mut self, weight: u64) {
        self.under_way -= weight;
        self.room.notify_waiters();
    }
}
