//! The machine: what is in flight, on top of what is durable.
//!
//! After every command it brings itself forward ([`Dialogue::advance`]): what to do next depends on the state reached, not on how it was reached.

mod admit;
mod adopt;
mod head;
mod settle;

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use parlance_cluster_protocol::{
    BodyHash, KeyBound, Position, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnId, UserHash,
};

use crate::{
    Answer, Command, DialogueError, Durable, Effect, Limits, OpenTurn, RequestId, Tag, ViewChange, dedupe::Dedupe,
    history::History,
};
use head::Head;

/// Message text is not encrypted yet.
const NO_KEY: u32 = 0;

/// One session's conversation.
#[derive(Debug)]
pub struct Dialogue {
    limits: Limits,
    affinity: u64,

    // A fold of committed records.
    durable: Durable,
    history: History,
    dedupe: Dedupe,

    // In flight; lost in a crash.
    live: bool,
    clock: TimestampMs,
    next_tag: Tag,
    /// Unsettled proposals, oldest first. Bounded: requests by [`Limits::queue`] and [`Limits::waiting`], the head's own by three.
    pending: VecDeque<Pending>,
    /// Turns that shall end. Invariant: each is open or proposed.
    stops: Vec<TurnId>,
    /// Invariant: belongs to the first open turn, after every command while `live`.
    head: Option<Head>,
    /// Answers that were committed and not told yet.
    ended: Vec<Arc<Answer>>,
}

#[derive(Debug)]
struct Pending {
    tag: Tag,
    what: InFlight,
}

/// What an unsettled record is about, and who waits for it.
#[derive(Debug)]
enum InFlight {
    Accept(Box<Accepting>),
    Setting { request: RequestId, kind: Setting },
    Bind(Vec<Binder>),
    Attempt(TurnId),
    Progress(TurnId),
    End(TurnId),
}

#[derive(Debug)]
struct Accepting {
    request: RequestId,
    turn: TurnId,
    event_id: String,
    body_hash: Option<BodyHash>,
    deadline: TimestampMs,
    joiners: Vec<RequestId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    Open,
    Update,
    AddItems,
    Delete,
    Adopt,
}

/// A request that waits for a key to be bound.
#[derive(Debug)]
struct Binder {
    request: RequestId,
    body_hash: BodyHash,
    turn: TurnId,
}

impl Dialogue {
    /// A session without any record. Tell it [`Command::Recovered`] before anything else.
    pub fn new(session: SessionKey, limits: Limits) -> Self {
        Self::with(Durable::new(session, limits), History::default(), Dedupe::default())
    }

    /// A session from its rows: the state, the transcript's rows in [`Durable::history_rows`] and all event ids. The transcript
    /// and the event ids may be newer than the state. Then [`apply`](Self::apply) what the log holds behind the state, and tell
    /// [`Command::Recovered`].
    ///
    /// # Errors
    ///
    /// [`DialogueError::Wire`] if a row is newer or damaged.
    pub fn restore(
        durable: Durable,
        items: Vec<(u64, Bytes)>,
        dedupe: Vec<(String, Bytes)>,
    ) -> Result<Self, DialogueError> {
        let history = History::restore(durable.history_rows(), items)?;
        Ok(Self::with(durable, history, Dedupe::restore(dedupe)?))
    }

    fn with(durable: Durable, history: History, dedupe: Dedupe) -> Self {
        let mut hasher = DefaultHasher::new();
        durable.session().hash(&mut hasher);
        Self {
            limits: durable.limits,
            affinity: hasher.finish() | 1,
            clock: durable.latest(),
            durable,
            history,
            dedupe,
            live: false,
            next_tag: Tag(0),
            pending: VecDeque::new(),
            stops: Vec::new(),
            head: None,
            ended: Vec::new(),
        }
    }

    /// Folds a committed record in and adds how the views change, the state row excepted, which every record changes.
    /// `false`: the record was folded in before.
    ///
    /// # Errors
    ///
    /// See [`DialogueError`]; the owner of the shard steps down.
    pub fn apply(
        &mut self,
        position: Position,
        record: &SessionRecord,
        changes: &mut Vec<ViewChange>,
    ) -> Result<bool, DialogueError> {
        let first = changes.len();
        // A part of an adopted session takes nothing away: it brings what was there.
        let is_part = matches!(record.event, SessionEvent::Adopted(_));
        if !is_part && self.durable.position().is_none_or(|last| position > last) {
            self.dedupe.expire(record.at, |event_id| changes.push(ViewChange::ForgetDedupe { event_id }));
        }
        let Some(folded) = self.durable.fold(position, record, changes)? else { return Ok(false) };
        if let Some(part) = folded.adopted {
            self.remember_adopted(part, &changes[first..]);
        } else {
            changes[first..].iter().for_each(|change| self.remember(change));
        }
        self.history.fit(self.durable.history_rows());
        self.clock = self.clock.max(self.durable.latest());
        if self.live {
            self.ended.extend(folded.ended);
        }
        Ok(true)
    }

    /// What is in memory changes as the views do.
    fn remember(&mut self, change: &ViewChange) {
        match change {
            ViewChange::PutItem { index, item } => self.history.put(*index, item.clone()),
            ViewChange::TruncateItems { from } => self.history.truncate(*from),
            ViewChange::PutDedupe { event_id, outcome } => self.dedupe.put(event_id.clone(), outcome.clone()),
            ViewChange::Erase => {
                self.history = History::starting_at(self.durable.items());
                self.dedupe.clear();
            }
            ViewChange::PutTurn { .. } | ViewChange::ForgetDedupe { .. } => {}
        }
    }

    /// Takes a command at the time `now`, and adds what is to be done.
    pub fn on(&mut self, command: Command, now: TimestampMs, out: &mut Vec<Effect>) {
        self.clock = self.clock.max(now);
        self.tell_ended(out);
        match command {
            Command::Recovered => self.recover(),
            Command::Tick => {}
            Command::Open { caller, opened } => self.open(caller, opened, out),
            Command::Update { caller, updated } => self.update(caller, updated, out),
            Command::AddItems { caller, items } => self.add_items(caller, items, out),
            Command::Delete { caller } => self.delete(caller, out),
            Command::Adopt { caller, part } => self.adopt(caller, *part, out),
            Command::BindKey { caller, body_hash, target, turn, expires_at } => {
                let bound = KeyBound { body_hash, target, turn, expires_at };
                self.bind_key(caller, bound, out);
            }
            Command::Submit { caller, turn, create, behind } => self.submit(caller, *turn, create, behind, out),
            Command::Stop { turn } => self.stop(turn),
            Command::Committed { tag } => self.committed(tag, out),
            Command::NeverCommitted { tag } => self.never_committed(tag, out),
            Command::GenerationStarted { turn, attempt, model, continues, prompt_tokens } => {
                self.generation_started(turn, attempt, model, continues, prompt_tokens);
            }
            Command::TokensArrived { turn, attempt, ids, text } => self.tokens_arrived(turn, attempt, &ids, &text),
            Command::GenerationFinished { turn, attempt, finish, usage } => {
                self.generation_finished(turn, attempt, finish, usage);
            }
            Command::GenerationFailed { turn, attempt, failure } => self.generation_failed(turn, attempt, failure),
        }
        self.advance(out);
        debug_assert!(self.stops.iter().all(|turn| self.is_open_or_proposed(*turn)));
    }

    /// The durable part.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// The state row.
    pub fn snapshot(&self) -> Bytes {
        self.durable.encode()
    }

    /// The turns without a final answer, in order of acceptance.
    pub fn open_turns(&self) -> impl ExactSizeIterator<Item = &OpenTurn> {
        self.durable.open_turns()
    }

    /// Whether nothing is in flight, so that the memory may be dropped.
    pub fn is_idle(&self) -> bool {
        self.durable.open.is_empty() && self.pending.is_empty() && self.ended.is_empty()
    }

    /// When [`Command::Tick`] is wanted at the latest, if nothing else is told before.
    pub fn wake_at(&self) -> Option<TimestampMs> {
        let open = self.durable.open.front().filter(|_| self.live && !self.durable.is_being_adopted())?;
        let head = self.head.as_ref()?;
        let checkpoint_in_flight = self.has_pending(|what| matches!(what, InFlight::Progress(_)));
        head.wake_at(open.request.deadline, self.limits.checkpoint_ms, checkpoint_in_flight)
    }

    fn tell_ended(&mut self, out: &mut Vec<Effect>) {
        for answer in self.ended.drain(..) {
            self.stops.retain(|turn| *turn != answer.turn);
            out.push(Effect::Final { turn: answer.turn, answer });
        }
    }

    fn propose(&mut self, user: Option<UserHash>, event: SessionEvent, what: InFlight, out: &mut Vec<Effect>) {
        let tag = self.next_tag;
        self.next_tag = Tag(tag.0 + 1);
        self.pending.push_back(Pending { tag, what });
        let session = self.durable.session().clone();
        let record = SessionRecord { session, user, key_id: NO_KEY, at: self.clock, event };
        out.push(Effect::Propose { tag, record });
    }
}

#[cfg(test)]
impl Dialogue {
    /// Everything that is a fold of the records.
    pub(crate) fn folded(&self) -> (&Durable, &History, &Dedupe) {
        (&self.durable, &self.history, &self.dedupe)
    }
}
