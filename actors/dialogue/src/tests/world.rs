//! A session between a log, a store, a model and its clients. Every effect is checked against the log as it comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use parlance_cluster_protocol::{
    FinishReason, GenerationOptions, History, Item, ModelTag, Origin, Position, Replied, Role, SessionEvent,
    SessionKey, SessionRecord, TimestampMs, TurnAccepted, TurnId, Usage,
};

use super::store::Store;
use crate::{
    Answer, Caller, Command, Dialogue, Effect, Failure, GenerationOrder, Joined, Limits, Outcome, Refusal, RequestId,
    Tag,
};

pub(super) const START: u64 = 1_700_000_000_000;

pub(super) struct World {
    pub(super) session: SessionKey,
    pub(super) limits: Limits,
    pub(super) dialogue: Dialogue,
    pub(super) now: u64,
    pub(super) log: Vec<SessionRecord>,
    /// The records of the log that the session was adopted from.
    pub(super) moved: Vec<SessionRecord>,
    /// The store after each number of records, `stores[0]` being empty.
    pub(super) stores: Vec<Store>,
    pub(super) in_flight: VecDeque<(Tag, SessionRecord)>,
    /// What the model works on.
    pub(super) running: Option<GenerationOrder>,
    /// How far the model is with it, and as which model it answers.
    said: Option<(usize, ModelTag)>,
    /// Every attempt that ever ran.
    ran: BTreeSet<(TurnId, u32)>,
    unanswered: BTreeSet<RequestId>,
    next_request: u64,
    last_tag: Option<Tag>,
    told: BTreeSet<TurnId>,
    pub(super) seen: Vec<Effect>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> Self {
        let session = SessionKey::api("tenant", "chat");
        let mut world = Self {
            dialogue: Dialogue::new(session.clone(), limits),
            session,
            limits,
            now: START,
            log: Vec::new(),
            moved: Vec::new(),
            stores: vec![Store::default()],
            in_flight: VecDeque::new(),
            running: None,
            said: None,
            ran: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            next_request: 0,
            last_tag: None,
            told: BTreeSet::new(),
            seen: Vec::new(),
        };
        world.tell(Command::Recovered);
        world
    }

    /// Tells the machine, checks what it answers, and returns it.
    pub(super) fn tell(&mut self, command: Command) -> Vec<Effect> {
        let mut out = Vec::new();
        self.dialogue.on(command, TimestampMs(self.now), &mut out);
        for effect in &out {
            self.check(effect);
        }
        if let Some(at) = self.dialogue.wake_at() {
            let clock = self.now.max(self.log.last().map_or(0, |record| record.at.0));
            assert!(at.0 > clock, "what is due is done, or is in flight");
        }
        self.seen.extend(out.iter().cloned());
        out
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Propose { tag, record } => self.check_proposal(*tag, record),
            Effect::Done { request } | Effect::Refused { request, .. } => self.answered(*request),
            Effect::Bound { request, turn, target, .. } => {
                self.answered(*request);
                let bound = self.records().any(
                    |record| matches!(&record.event, SessionEvent::KeyBound(b) if b.turn == *turn && b.target == *target),
                );
                assert!(bound, "a binding is recorded before it is told");
            }
            Effect::Accepted { request, turn } => {
                self.answered(*request);
                assert!(self.accepted(*turn).is_some(), "a turn is recorded before it is acknowledged");
            }
            Effect::Joined { request, turn, state } => {
                self.answered(*request);
                self.check_joined(*turn, state);
            }
            Effect::StartGeneration(order) => self.check_start(order),
            Effect::CancelGeneration { turn, attempt } => {
                let order = self.running.take().expect("only a running generation is cancelled");
                assert_eq!((order.turn, order.attempt), (*turn, *attempt));
            }
            Effect::Final { turn, answer } => {
                assert!(self.told.insert(*turn), "a final answer is told once");
                self.check_answer(*turn, answer);
            }
        }
    }

    fn check_proposal(&mut self, tag: Tag, record: &SessionRecord) {
        assert!(self.last_tag.is_none_or(|last| last < tag), "tags grow");
        let before = self.in_flight.back().map(|(_, record)| record).or(self.log.last());
        assert!(before.is_none_or(|before| before.at <= record.at), "recorded time never runs backwards");
        assert_eq!(SessionRecord::decode(record.encode()).as_ref(), Ok(record), "a record is stored as it is");
        if let SessionEvent::Replied(replied) = &record.event {
            check_text(replied);
        }
        self.last_tag = Some(tag);
        self.in_flight.push_back((tag, record.clone()));
    }

    fn answered(&mut self, request: RequestId) {
        assert!(self.unanswered.remove(&request), "{request:?} is answered once");
    }

    fn check_joined(&self, turn: TurnId, state: &Joined) {
        let accepted = self.accepted(turn).expect("a turn is recorded before it is joined");
        match state {
            Joined::Open => assert!(self.final_of(turn).is_none(), "an ended turn is not joined as an open one"),
            Joined::Answered(answer) => self.check_answer(turn, answer),
            Joined::Over => assert!(self.final_of(turn).is_some() && accepted.origin == Origin::Channel),
        }
    }

    fn check_answer(&self, turn: TurnId, answer: &Answer) {
        let recorded = self.final_of(turn).expect("an answer is recorded before it is told");
        let told = match &answer.outcome {
            Outcome::Replied(replied) => SessionEvent::Replied(replied.as_ref().clone()),
            Outcome::Failed(failed) => SessionEvent::TurnFailed(failed.as_ref().clone()),
        };
        assert_eq!(recorded.event, told);
        assert_eq!((answer.turn, answer.ended_at), (turn, recorded.at));
    }

    fn check_start(&mut self, order: &GenerationOrder) {
        assert!(self.running.is_none(), "one generation at a time");
        let first_open = self.records().find_map(|record| match &record.event {
            SessionEvent::TurnAccepted(accepted) if self.final_of(accepted.turn).is_none() => Some(accepted.turn),
            _ => None,
        });
        assert_eq!(first_open, Some(order.turn), "turns are answered in the order of their acceptance");
        assert_eq!(order.attempt, self.recorded_attempt(order.turn), "an attempt is recorded before it runs");
        assert!(order.attempt <= self.limits.attempts);
        assert!(self.ran.insert((order.turn, order.attempt)), "an attempt runs once");
        if let Some(model) = &order.forced_model {
            assert_eq!(order.forced, tokens_of(model, order.turn, order.forced.len()), "recorded tokens have no gap");
        }
        self.said = None;
        self.running = Some(order.clone());
    }

    /// All that is known of the session, wherever it was recorded.
    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = &SessionRecord> {
        self.moved.iter().chain(&self.log)
    }

    fn recorded_attempt(&self, turn: TurnId) -> u32 {
        let recorded = self.records().rev().find_map(|record| match &record.event {
            SessionEvent::AttemptStarted(started) if started.turn == turn => Some(started.attempt),
            _ => None,
        });
        recorded.unwrap_or(1)
    }

    pub(super) fn accepted(&self, turn: TurnId) -> Option<&TurnAccepted> {
        self.records().find_map(|record| match &record.event {
            SessionEvent::TurnAccepted(accepted) if accepted.turn == turn => Some(accepted),
            _ => None,
        })
    }

    pub(super) fn final_of(&self, turn: TurnId) -> Option<&SessionRecord> {
        self.records().find(|record| final_turn(record) == Some(turn))
    }

    pub(super) fn caller(&mut self) -> Caller {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.unanswered.insert(request);
        Caller { request, user: Some([7; 32]) }
    }

    /// Numbers requests from here on as the other does.
    pub(super) fn same_requests(&mut self, other: &Self) {
        self.next_request = other.next_request;
    }

    pub(super) fn submit(&mut self, turn: TurnAccepted) -> Vec<Effect> {
        let caller = self.caller();
        self.tell(Command::Submit { caller, turn: Box::new(turn), create: true, behind: None })
    }

    /// Submits, commits, and asserts that it was acknowledged.
    pub(super) fn accept(&mut self, turn: TurnAccepted) {
        let id = turn.turn;
        self.submit(turn);
        let effects = self.commit_all();
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Accepted { turn, .. } if *turn == id)),
            "{effects:?}"
        );
    }

    /// The oldest record in flight is committed.
    pub(super) fn commit_one(&mut self) -> Vec<Effect> {
        let Some((tag, record)) = self.in_flight.pop_front() else { return Vec::new() };
        self.append(record);
        self.tell(Command::Committed { tag })
    }

    pub(super) fn append(&mut self, record: SessionRecord) {
        let mut changes = Vec::new();
        let position = self.next_position();
        self.log.push(record.clone());
        let applied = self.dialogue.apply(position, &record, &mut changes).expect("the machine's own records follow");
        assert!(applied);
        let mut store = self.stores.last().cloned().unwrap_or_default();
        store.write(changes, self.dialogue.snapshot());
        self.stores.push(store);
    }

    fn next_position(&self) -> Position {
        position_of(self.log.len())
    }

    /// Commits until nothing is in flight.
    pub(super) fn commit_all(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        while !self.in_flight.is_empty() {
            effects.extend(self.commit_one());
        }
        effects
    }

    /// Of what is in flight, the first `kept` records are committed and the others never will be.
    pub(super) fn lose(&mut self, kept: usize) -> Vec<Effect> {
        let count = self.in_flight.len();
        let mut effects = Vec::new();
        for _ in 0..kept.min(count) {
            effects.extend(self.commit_one());
        }
        for _ in kept.min(count)..count {
            let Some((tag, _)) = self.in_flight.pop_front() else { break };
            effects.extend(self.tell(Command::NeverCommitted { tag }));
        }
        effects
    }

    /// The process dies when `kept` of the records in flight are in the log, and comes back on the state after `state` records and
    /// the other rows after `rows`.
    pub(super) fn crash(&mut self, kept: usize, state: usize, rows: usize) -> Vec<Effect> {
        for _ in 0..kept {
            let Some((_, record)) = self.in_flight.pop_front() else { break };
            self.append(record);
        }
        self.in_flight.clear();
        self.unanswered.clear();
        self.told.clear();
        self.running = None;
        self.last_tag = None;
        let restored = self.restored(state.min(self.log.len()), rows.clamp(state, self.log.len()));
        assert_same(&restored, &self.dialogue);
        self.dialogue = restored;
        self.tell(Command::Recovered)
    }

    /// The session as another process would have it from older rows and a replay.
    pub(super) fn restored(&self, state: usize, rows: usize) -> Dialogue {
        let mut dialogue = self.stores[state].restore(&self.stores[rows], self.session.clone(), self.limits);
        for (at, record) in self.log.iter().enumerate() {
            let applied = dialogue.apply(position_of(at), record, &mut Vec::new()).expect("the log was applied before");
            assert_eq!(applied, at >= state, "what the state holds is not applied again");
        }
        dialogue
    }

    pub(super) fn advance_time(&mut self, ms: u64) -> Vec<Effect> {
        self.now += ms;
        self.tell(Command::Tick)
    }

    /// A model takes the turn up; it goes on from the forced tokens if it made them.
    pub(super) fn model_starts(&mut self, name: &str) -> Vec<Effect> {
        let Some(order) = self.running.clone().filter(|_| self.said.is_none()) else { return Vec::new() };
        let model = model(name);
        self.said = Some((0, model.clone()));
        let continues = order.forced_model.as_ref() == Some(&model);
        let (turn, attempt) = (order.turn, order.attempt);
        let mut effects = self.tell(Command::GenerationStarted { turn, attempt, model, continues, prompt_tokens: 5 });
        if continues {
            effects.extend(self.model_says(order.forced.len()));
        }
        effects
    }

    pub(super) fn model_says(&mut self, count: usize) -> Vec<Effect> {
        let (Some(order), Some((said, model))) = (self.running.as_ref(), self.said.as_mut()) else { return Vec::new() };
        let ids = tokens_of(model, order.turn, *said + count).split_off(*said);
        *said += count;
        let text = text_of(&ids);
        let (turn, attempt) = (order.turn, order.attempt);
        self.tell(Command::TokensArrived { turn, attempt, ids, text })
    }

    pub(super) fn model_finishes(&mut self) -> Vec<Effect> {
        let Some((said, _)) = self.said.clone() else { return Vec::new() };
        let Some(order) = self.running.take() else { return Vec::new() };
        let usage = Usage { prompt_tokens: 5, completion_tokens: said as u32, cached_tokens: 1 };
        let finish = FinishReason::Stop;
        self.tell(Command::GenerationFinished { turn: order.turn, attempt: order.attempt, finish, usage })
    }

    pub(super) fn model_fails(&mut self, retry_after_ms: Option<u64>) -> Vec<Effect> {
        let Some(order) = self.running.take() else { return Vec::new() };
        let failure = Failure { code: "model_failed".into(), message: "It failed.".into(), retry_after_ms };
        self.tell(Command::GenerationFailed { turn: order.turn, attempt: order.attempt, failure })
    }

    /// The model answers the running turn with so many tokens, and everything is committed.
    pub(super) fn answer(&mut self, tokens: usize) -> Vec<Effect> {
        let mut effects = self.model_starts("a");
        effects.extend(self.model_says(tokens));
        effects.extend(self.model_finishes());
        effects.extend(self.commit_all());
        effects
    }

    /// A turn is accepted and answered.
    pub(super) fn converse(&mut self, id: u128, text: &str) {
        self.accept(turn(id, text));
        self.answer(3);
    }

    pub(super) fn nobody_waits(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// The texts of the prompt that the model works on.
    pub(super) fn prompt(&self) -> Vec<&str> {
        self.running.iter().flat_map(|order| &order.messages).map(|item| item.text.as_str()).collect()
    }

    pub(super) fn transcript(&self) -> Vec<String> {
        let store = self.stores.last().cloned().unwrap_or_default();
        store.transcript().into_iter().map(|row| row.item.text.clone()).collect()
    }
}

/// A reply is what one model said from its beginning, however often it was interrupted.
fn check_text(replied: &Replied) {
    let tokens = tokens_of(&replied.model, replied.turn, replied.usage.completion_tokens as usize);
    assert_eq!(replied.text, text_of(&tokens));
}

/// Both would behave alike from here on.
pub(super) fn assert_same(one: &Dialogue, other: &Dialogue) {
    assert_eq!(one.folded(), other.folded());
}

pub(super) fn position_of(at: usize) -> Position {
    // Other sessions of the slot have records in between.
    Position(10 + 3 * at as u64)
}

pub(super) fn final_turn(record: &SessionRecord) -> Option<TurnId> {
    match &record.event {
        SessionEvent::Replied(replied) => Some(replied.turn),
        SessionEvent::TurnFailed(failed) => Some(failed.turn),
        _ => None,
    }
}

pub(super) fn model(name: &str) -> ModelTag {
    ModelTag { name: name.into(), digest: format!("digest of {name}"), numerics: "f32".into() }
}

/// What a model says depends on itself and the turn alone, as with a fixed seed.
pub(super) fn tokens_of(model: &ModelTag, turn: TurnId, count: usize) -> Vec<u32> {
    let of_model = model.name.bytes().fold(0, |sum, byte| sum * 31 + u32::from(byte));
    (0..count as u32).map(|at| of_model * 1_000_000 + turn.0 as u32 * 1_000 + at).collect()
}

pub(super) fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!("{token} ")).collect()
}

pub(super) fn reply_of(name: &str, turn: u128, tokens: usize) -> String {
    text_of(&tokens_of(&model(name), TurnId(turn), tokens))
}

pub(super) fn user(text: &str) -> Item {
    Item { role: Role::User, text: text.into() }
}

pub(super) fn turn(id: u128, text: &str) -> TurnAccepted {
    TurnAccepted {
        turn: TurnId(id),
        event_id: String::new(),
        body_hash: None,
        input: vec![user(text)],
        history: History::Session,
        options: GenerationOptions::default(),
        seed: 42,
        origin: Origin::ChatCompletion,
        regenerates: None,
        instructions: None,
        deadline: TimestampMs(START + 60_000),
    }
}

pub(super) fn keyed(id: u128, event_id: &str, body: u8) -> TurnAccepted {
    TurnAccepted { event_id: event_id.into(), body_hash: Some([body; 32]), ..turn(id, "hello") }
}

pub(super) fn again(id: u128, old: u128) -> TurnAccepted {
    TurnAccepted { input: Vec::new(), regenerates: Some(TurnId(old)), ..turn(id, "") }
}

pub(super) fn refusals(effects: &[Effect]) -> Vec<Refusal> {
    let refusals = effects.iter().filter_map(|effect| match effect {
        Effect::Refused { refusal, .. } => Some(*refusal),
        _ => None,
    });
    refusals.collect()
}

/// The turns that were told to have ended, and how: the finish reason or the error code.
pub(super) fn endings(effects: &[Effect]) -> Vec<(u128, String)> {
    let endings = effects.iter().filter_map(|effect| match effect {
        Effect::Final { turn, answer } => Some((turn.0, ending(&answer.outcome))),
        _ => None,
    });
    endings.collect()
}

pub(super) fn ending(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Replied(replied) => format!("{:?}", replied.finish),
        Outcome::Failed(failed) => failed.code.clone(),
    }
}

/// A multiset of what was told, for failure messages.
pub(super) fn summary(effects: &[Effect]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for effect in effects {
        let name = format!("{effect:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        *counts.entry(name).or_default() += 1;
    }
    counts
}
