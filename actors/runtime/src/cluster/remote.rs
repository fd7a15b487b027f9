//! Sessions that live on other nodes: asking their owners, and answering for our own.
//!
//! ```text
//! Sessions ── ask ──▶ Remote ══ Ask ══▶ Remote::serve ──▶ Sessions of the owner's node ──▶ shard
//!      TurnStream ◀── TurnWriter ◀══ Chunk … ══ a task per watched turn ◀── TurnStream
//! ```
//!
//! The text of a turn is written into a [`TurnWriter`] on the asking node, so that its watchers notice nothing of the way. Chunks wait for
//! room on the link; what comes meanwhile comes with the next one. When the link is lost the writer is dropped, and watchers look for the turn
//! anew.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parlance_cluster_node::{
    identity::{Incarnation, NodeName},
    links::{CallError, Failure, Links},
};
use parlance_cluster_protocol::{
    SessionKey, ShardId,
    peer::{self, Accepted, Answer, Answered, Ask, AskSettle, Asked, Chunk, Done, End, Unwatch},
};
use prost::Message as _;
use tokio::{
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, sleep},
};

use super::{
    kind,
    peers::{MALFORMED, Peers, cast_patiently},
    wire,
};
use crate::{
    AcceptedTurn, Refusal, TurnEvent, TurnStream,
    request::{SessionAnswer, SessionRequest},
    sessions::{Attempt, Sessions},
    turn::TurnWriter,
};

/// Turns of other nodes that are watched here, and turns of this node that are watched elsewhere, each. Past it watchers are told to look again.
const MOST_STREAMS: usize = 100_000;
/// Bytes of requests to other nodes that are not answered, at once. Past it further ones are refused, so that a slow node costs others no memory.
const MOST_BYTES_UNDER_WAY: usize = 64 * 1024 * 1024;
/// When a refused request is likely to find room.
const ROOM_IN: Duration = Duration::from_secs(1);
/// The pause before a stream that could not begin is looked for anew.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Code of a failure after which nobody knows whether it was done.
const UNKNOWN: u32 = 1;

/// The way to other nodes' sessions. One per node in a cluster.
pub(crate) struct Remote {
    peers: Arc<Peers>,
    next_stream: AtomicU64,
    /// Bytes that further requests may have.
    room: Semaphore,
    /// By the number of the stream: what comes from other nodes.
    incoming: Mutex<HashMap<u64, Incoming>>,
    /// By receiver and number: the tasks that send.
    outgoing: Mutex<HashMap<(Incarnation, u64), AbortHandle>>,
}

struct Incoming {
    from: Incarnation,
    writer: TurnWriter,
}

impl Remote {
    pub(super) fn new(peers: Arc<Peers>) -> Self {
        Self {
            peers,
            // 0 means none.
            next_stream: AtomicU64::new(1),
            room: Semaphore::new(MOST_BYTES_UNDER_WAY),
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
        }
    }

    /// Asks the owner of a session.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        owner: &Incarnation,
        session: &SessionKey,
        request: &SessionRequest,
        at: parlance_cluster_protocol::TimestampMs,
        within: Duration,
    ) -> Attempt {
        let asked = wire::encode_request(session, request, at);
        let streamed = matches!(request, SessionRequest::Submit(_) | SessionRequest::Watch { .. });
        let expected = if streamed { self.expect(owner) } else { None };
        if streamed && expected.is_none() {
            return full("turns that are watched on other nodes");
        }
        let (stream, watched) = expected.map_or((0, None), |(stream, watched)| (stream, Some(watched)));
        let ask = Ask { stream, asked: Some(asked) };
        let bytes = u32::try_from(ask.encoded_len()).unwrap_or(u32::MAX);
        let Ok(_room) = self.room.try_acquire_many(bytes) else {
            self.incoming().remove(&stream);
            return full("bytes for other nodes");
        };
        let attempt = match self.call(&owner.name, ask, within).await {
            Ok(answer) => self.read(answer, watched),
            // To ask again at once what adds to its load would keep it busy; who asks comes back in a while.
            Err(CallError::Busy) if request.makes_records() => full("the session's node has no room"),
            Err(error) if error.is_certain() => Attempt::NotBegun,
            Err(_) => Attempt::Unknown,
        };
        if !matches!(&attempt, Attempt::Answered(Ok(SessionAnswer::Accepted(_) | SessionAnswer::Watching(Some(_))))) {
            self.incoming().remove(&stream);
        }
        attempt
    }

    /// Has a node write what it committed into the record store: for one shard, or for all that it owns.
    ///
    /// # Errors
    ///
    /// Why it did not; [`Refusal::NotHere`] if the shard is not its own.
    pub(crate) async fn settle(
        &self,
        owner: &NodeName,
        shard: Option<ShardId>,
        within: Duration,
    ) -> Result<(), Refusal> {
        let asked = Asked::Settle(AskSettle { shard: shard.map(|shard| u32::from(shard.0)) });
        let answer = self.call(owner, Ask { stream: 0, asked: Some(asked) }, within).await;
        match answer.map(|answer| answer.answered) {
            Ok(Some(Answered::Done(_))) => Ok(()),
            Ok(Some(Answered::Refused(refused))) => Err(wire::decode_refusal(refused)),
            Ok(_) | Err(CallError::Unreachable | CallError::LinkLost) => Err(Refusal::NotHere),
            Err(error) => Err(Refusal::RecordsUnavailable(error.to_string())),
        }
    }

    async fn call(&self, to: &NodeName, ask: Ask, within: Duration) -> Result<Answer, CallError> {
        self.peers.ask(to, kind::ASK, ask.encode_to_vec().into(), within).await
    }

    /// A stream that a node will be asked for.
    fn expect(&self, from: &Incarnation) -> Option<(u64, TurnStream)> {
        let mut incoming = self.incoming();
        if incoming.len() >= MOST_STREAMS {
            // Those that nobody watches any more, and whose next chunk would find that out.
            incoming.retain(|_, known| known.writer.has_watchers());
        }
        if incoming.len() >= MOST_STREAMS {
            return None;
        }
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let writer = TurnWriter::new();
        let watched = writer.watch();
        incoming.insert(stream, Incoming { from: from.clone(), writer });
        Some((stream, watched))
    }

    fn read(&self, answer: Answer, watched: Option<TurnStream>) -> Attempt {
        let wrong = || Attempt::Unknown;
        match (answer.answered, watched) {
            (Some(Answered::Accepted(Accepted { turn, replayed })), Some(stream)) => match wire::turn_id(&turn) {
                Ok(turn) => Attempt::Answered(Ok(SessionAnswer::Accepted(AcceptedTurn { turn, replayed, stream }))),
                Err(_) => wrong(),
            },
            (Some(Answered::Watching(running)), stream) => {
                Attempt::Answered(Ok(SessionAnswer::Watching(stream.filter(|_| running))))
            }
            (Some(Answered::Bound(bound)), _) => match wire::decode_bound(&bound) {
                Ok(bound) => Attempt::Answered(Ok(SessionAnswer::Bound(bound))),
                Err(_) => wrong(),
            },
            (Some(Answered::Done(_)), _) => Attempt::Answered(Ok(SessionAnswer::Done)),
            (Some(Answered::Stopped(was_open)), _) => Attempt::Answered(Ok(SessionAnswer::Stopped(was_open))),
            (Some(Answered::Refused(refused)), _) => Attempt::Answered(Err(wire::decode_refusal(refused))),
            (Some(Answered::NotOwner(_)), _) => Attempt::NotBegun,
            (Some(Answered::Accepted(_) | Answered::Fits(_)) | None, _) => wrong(),
        }
    }

    /// More of a turn that is watched here.
    pub(super) fn on_chunk(&self, from: &Incarnation, chunk: Chunk) {
        let Chunk { stream, text, end } = chunk;
        let mut incoming = self.incoming();
        let Some(known) = incoming.get(&stream).filter(|known| known.from == *from) else { return };
        known.writer.push(&text);
        if end.is_none() && known.writer.has_watchers() {
            return;
        }
        let Some(Incoming { writer, .. }) = incoming.remove(&stream) else { return };
        drop(incoming);
        match end {
            // A writer that is dropped before the end interrupts its watchers.
            Some(End::Interrupted(_)) => {}
            Some(End::Outcome(outcome)) => {
                if let Ok(outcome) = wire::decode_outcome(outcome, writer.text()) {
                    writer.end(outcome);
                }
            }
            None => self.peers.cast(&from.name, kind::UNWATCH, Unwatch { stream }.encode_to_vec().into()),
        }
    }

    /// A node does not watch a turn of ours any more.
    pub(super) fn on_unwatch(&self, from: &Incarnation, unwatch: Unwatch) {
        if let Some(task) = self.outgoing().remove(&(from.clone(), unwatch.stream)) {
            task.abort();
        }
    }

    /// The link is lost: what came over it comes no more, and nothing is sent.
    pub(super) fn on_link_down(&self, peer: &Incarnation) {
        self.incoming().retain(|_, known| known.from != *peer);
        self.outgoing().retain(|(to, _), task| {
            if to == peer {
                task.abort();
            }
            to != peer
        });
    }

    /// Answers another node.
    pub(super) fn serve(
        self: &Arc<Self>,
        sessions: &Sessions,
        from: &Incarnation,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let (remote, sessions, from) = (self.clone(), sessions.clone(), from.clone());
        Box::pin(async move {
            let malformed = |reason: String| Failure { code: MALFORMED, reason };
            let Ask { stream, asked } =
                peer::decode("request between nodes", payload).map_err(|e| malformed(e.to_string()))?;
            let answered = match asked.ok_or_else(|| malformed("nothing is asked".into()))? {
                Asked::Settle(ask) => settled(sessions.settle_here(ask.shard).await),
                asked => {
                    let (session, request) = wire::decode_request(asked).map_err(|e| malformed(e.to_string()))?;
                    let within = deadline.saturating_duration_since(Instant::now());
                    let attempt = sessions.ask_here(&session, request, within).await;
                    remote.answer(attempt, &from, stream)?
                }
            };
            Ok(Answer { answered: Some(answered) }.encode_to_vec().into())
        })
    }

    fn answer(self: Arc<Self>, attempt: Attempt, from: &Incarnation, stream: u64) -> Result<Answered, Failure> {
        let answer = match attempt {
            Attempt::Answered(answer) => answer,
            Attempt::NotBegun => return Ok(Answered::NotOwner(Done {})),
            Attempt::Unknown => return Err(Failure { code: UNKNOWN, reason: "nobody knows what became of it".into() }),
        };
        Ok(match answer {
            Ok(SessionAnswer::Accepted(AcceptedTurn { turn, replayed, stream: text })) => {
                self.send(from, stream, text);
                Answered::Accepted(Accepted { turn: wire::accepted_turn(turn), replayed })
            }
            Ok(SessionAnswer::Watching(text)) => {
                let running = text.is_some();
                text.into_iter().for_each(|text| self.clone().send(from, stream, text));
                Answered::Watching(running)
            }
            Ok(SessionAnswer::Bound(bound)) => wire::encode_bound(&bound),
            Ok(SessionAnswer::Done) => Answered::Done(Done {}),
            Ok(SessionAnswer::Stopped(was_open)) => Answered::Stopped(was_open),
            Err(refusal) => Answered::Refused(wire::encode_refusal(&refusal)),
        })
    }

    /// Sends the text of a turn until its end, or until nobody there wants it.
    fn send(self: Arc<Self>, to: &Incarnation, stream: u64, text: TurnStream) {
        if stream == 0 {
            return;
        }
        let key = (to.clone(), stream);
        let remote = Arc::downgrade(&self);
        let mut outgoing = self.outgoing();
        if outgoing.len() >= MOST_STREAMS {
            let end = Some(End::Interrupted(Done {}));
            return self.peers.cast(
                &to.name,
                kind::CHUNK,
                Chunk { stream, text: String::new(), end }.encode_to_vec().into(),
            );
        }
        let links = self.peers.links();
        let task = tokio::spawn({
            let key = key.clone();
            async move {
                if let Some(links) = links {
                    pump(&*links, &key.0.name, stream, text).await;
                }
                if let Some(remote) = remote.upgrade() {
                    remote.outgoing().remove(&key);
                }
            }
        });
        outgoing.insert(key.clone(), task.abort_handle());
        if task.is_finished() {
            outgoing.remove(&key);
        }
    }

    fn incoming(&self) -> MutexGuard<'_, HashMap<u64, Incoming>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outgoing(&self) -> MutexGuard<'_, HashMap<(Incarnation, u64), AbortHandle>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn full(what: &'static str) -> Attempt {
    Attempt::Answered(Err(Refusal::Overloaded { what: what.into(), retry_after: ROOM_IN }))
}

fn settled(settled: Result<(), Refusal>) -> Answered {
    match settled {
        Ok(()) => Answered::Done(Done {}),
        Err(Refusal::NotHere) => Answered::NotOwner(Done {}),
        Err(refusal) => Answered::Refused(wire::encode_refusal(&refusal)),
    }
}

/// Ends with the turn, or with the link.
async fn pump(links: &dyn Links, to: &NodeName, stream: u64, mut text: TurnStream) {
    while let Some(event) = text.next().await {
        let (text, end) = match event {
            TurnEvent::Delta { text, .. } => (text, None),
            TurnEvent::Ended(outcome) => (String::new(), Some(End::Outcome(wire::encode_outcome(&outcome)))),
            TurnEvent::Interrupted => {
                sleep(LOOK_AGAIN).await;
                (String::new(), Some(End::Interrupted(Done {})))
            }
        };
        let payload: Bytes = Chunk { stream, text, end }.encode_to_vec().into();
        // What waits for room is not lost: either there is room at last, or the link is over, and the watchers look again.
        if cast_patiently(links, to, kind::CHUNK, payload).await.is_err() {
            return;
        }
    }
}
