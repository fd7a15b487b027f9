//! One link to one incarnation of one node: what is under way on it, and how much may be.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use prost::Message as _;
use ractor::ActorRef;
use ractor_cluster::NodeSessionMessage;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    CallError, MOST_PENDING, WINDOW_BYTES,
    frame::{Body, Call, Frame},
    front::FrontMessage,
};
use crate::identity::Incarnation;

type Waiting = oneshot::Sender<Result<Bytes, CallError>>;

/// A link, from the moment at which both sides have agreed on it.
pub(super) struct Link {
    pub(super) peer: Incarnation,
    pub(super) version: u32,
    /// What the peer's frames bear.
    pub(super) token: u64,
    /// What ours bear.
    theirs: u64,
    /// The peer's front actor, once its session is ready.
    front: OnceLock<ActorRef<FrontMessage>>,
    /// The session that carries it.
    session: OnceLock<ActorRef<NodeSessionMessage>>,
    /// Bytes that we have sent, and that the peer has taken in.
    sent: AtomicU64,
    acknowledged: AtomicU64,
    room: Notify,
    /// Bytes that we have taken in, and of how many the peer knows.
    taken: AtomicU64,
    told: AtomicU64,
    calls: Mutex<Calls>,
    closed: AtomicBool,
    down: Notify,
}

#[derive(Default)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// No call begins on a link that is down.
    over: bool,
}

impl Link {
    pub(super) fn new(peer: Incarnation, version: u32, token: u64, theirs: u64) -> Self {
        Self {
            peer,
            version,
            token,
            theirs,
            front: OnceLock::new(),
            session: OnceLock::new(),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            room: Notify::new(),
            taken: AtomicU64::new(0),
            told: AtomicU64::new(0),
            calls: Mutex::default(),
            closed: AtomicBool::new(false),
            down: Notify::new(),
        }
    }

    pub(super) fn carried_by(&self, session: ActorRef<NodeSessionMessage>) {
        if let Err(session) = self.session.set(session) {
            session.stop(Some("a link has one session".to_owned()));
        }
    }

    /// `false`: it was ready before.
    pub(super) fn ready(&self, front: ActorRef<FrontMessage>) -> bool {
        self.front.set(front).is_ok()
    }

    pub(super) fn is_up(&self) -> bool {
        self.front.get().is_some() && !self.closed.load(Ordering::Acquire)
    }

    /// Ends the session, and with it the link.
    pub(super) fn close(&self, why: &str) {
        if let Some(session) = self.session.get() {
            session.stop(Some(why.to_owned()));
        }
    }

    /// The session is over: whoever waits for an answer or for room hears it now. `false`: it was known.
    pub(super) fn ended(&self) -> bool {
        if self.closed.swap(true, Ordering::AcqRel) {
            return false;
        }
        let waiting = {
            let mut calls = self.calls();
            calls.over = true;
            std::mem::take(&mut calls.waiting)
        };
        waiting.into_values().for_each(|waiting| drop(waiting.send(Err(CallError::LinkLost))));
        self.room.notify_waiters();
        self.down.notify_waiters();
        true
    }

    /// Waits until it has ended.
    pub(super) async fn until_down(&self) {
        loop {
            let down = self.down.notified();
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            down.await;
        }
    }

    /// Asks, and waits for the answer until `deadline`.
    pub(super) async fn call(&self, kind: u32, payload: Bytes, deadline: Instant) -> Result<Bytes, CallError> {
        let (waiting, answer) = oneshot::channel();
        let id = self.begin(waiting)?;
        // Whatever happens, also that the caller gives up, the call is not waited for any more.
        let _ended = Forget { link: self, id };
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let within_ms = u32::try_from(left).unwrap_or(u32::MAX);
        self.send(Body::Call(Call { id, kind, within_ms, payload }), deadline).await?;
        timeout_at(deadline, answer).await.map_err(|_| CallError::TimedOut)?.unwrap_or(Err(CallError::LinkLost))
    }

    fn begin(&self, waiting: Waiting) -> Result<u64, CallError> {
        let mut calls = self.calls();
        if calls.over {
            return Err(CallError::Unreachable);
        }
        if calls.waiting.len() >= MOST_PENDING {
            return Err(CallError::Busy);
        }
        let id = calls.next;
        calls.next += 1;
        calls.waiting.insert(id, waiting);
        Ok(id)
    }

    /// An answer has come. Nobody may wait for it any more.
    pub(super) fn answer(&self, id: u64, answer: Result<Bytes, CallError>) {
        let waiting = self.calls().waiting.remove(&id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    /// Sends as soon as the peer has room.
    ///
    /// # Errors
    ///
    /// [`CallError::Busy`] if it has none until `deadline`, [`CallError::Unreachable`] if the link is not up: then nothing was sent.
    pub(super) async fn send(&self, body: Body, deadline: Instant) -> Result<(), CallError> {
        let weight = body.weight();
        loop {
            let room = self.room.notified();
            if !self.is_up() {
                return Err(CallError::Unreachable);
            }
            if self.reserve(weight) {
                return self.put(Some(body));
            }
            timeout_at(deadline, room).await.map_err(|_| CallError::Busy)?;
        }
    }

    /// Sends if the peer has room now; else the message is dropped.
    pub(super) fn send_now(&self, body: Body) {
        if self.is_up() && self.reserve(body.weight()) {
            let _ = self.put(Some(body));
        }
    }

    fn reserve(&self, weight: u64) -> bool {
        let fits = |sent: u64| {
            let under_way = sent.saturating_sub(self.acknowledged.load(Ordering::Acquire));
            // One message always fits, however large, so that nothing waits for ever.
            (under_way == 0 || under_way + weight <= WINDOW_BYTES).then_some(sent + weight)
        };
        self.sent.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    /// Says that we are there, and how much we have taken in.
    pub(super) fn heartbeat(&self) {
        let _ = self.put(None);
    }

    fn put(&self, body: Option<Body>) -> Result<(), CallError> {
        let front = self.front.get().ok_or(CallError::Unreachable)?;
        let taken = self.taken.load(Ordering::Acquire);
        self.told.store(taken, Ordering::Release);
        let frame = Frame { token: self.theirs, taken, body };
        front.cast(FrontMessage::Frame(frame.encode_to_vec())).map_err(|_| CallError::Unreachable)
    }

    /// The peer has taken in so much.
    pub(super) fn acknowledge(&self, taken: u64) {
        // A peer that claims more than it was sent gains nothing.
        let taken = taken.min(self.sent.load(Ordering::Acquire));
        if self.acknowledged.fetch_max(taken, Ordering::AcqRel) < taken {
            self.room.notify_waiters();
        }
    }

    /// We have taken in so much more; the peer is told before it has to wait.
    pub(super) fn took(&self, weight: u64) {
        let taken = self.taken.fetch_add(weight, Ordering::AcqRel) + weight;
        if taken - self.told.load(Ordering::Acquire) >= WINDOW_BYTES / 4 {
            self.heartbeat();
        }
    }

    /// Bytes under way to the peer.
    pub(super) fn under_way(&self) -> u64 {
        self.sent.load(Ordering::Acquire).saturating_sub(self.acknowledged.load(Ordering::Acquire))
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a call when it goes out of scope.
struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.calls().waiting.remove(&self.id);
    }
}
