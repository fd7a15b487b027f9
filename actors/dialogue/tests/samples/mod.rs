//! Rows of every kind, with every field set to something of its own.

use std::{collections::BTreeMap, sync::Arc};

use parlance_actors_dialogue::{Answer, DedupeOutcome, Durable, HistoryItem, ItemKind, Limits, Outcome};
use parlance_cluster_protocol::{
    Adopted, AdoptedTurn, AdoptionChain, AttemptStarted, FinishReason, GenerationOptions, History, Item, KeyBound,
    ModelTag, Origin, Position, Progress, Replied, Role, SessionEvent, SessionKey, SessionOpened, SessionRecord,
    TimestampMs, TurnAccepted, TurnFailed, TurnId, Usage,
};

const START: u64 = 1_700_000_000_000;

pub(crate) fn session() -> SessionKey {
    SessionKey::api("tenant", "chat")
}

/// A small window, so that it has moved.
pub(crate) fn limits() -> Limits {
    Limits { history_items: 3, ..Limits::default() }
}

/// States by the name of their fixture, each folded from records.
pub(crate) fn states() -> Vec<(&'static str, Durable)> {
    vec![
        ("state-new.v1", fold(vec![])),
        ("state-rest.v1", fold(conversation())),
        ("state-busy.v1", fold(conversation().into_iter().chain(open_turns()).collect())),
        ("state-retried.v1", fold(conversation().into_iter().chain(failed_regeneration()).collect())),
        ("state-deleted.v1", fold(conversation().into_iter().chain([SessionEvent::Deleted]).collect())),
        ("state-key.v1", fold(vec![SessionEvent::KeyBound(key_bound())])),
        ("state-adopted.v1", fold(adoption())),
        ("state-coming.v1", fold(adoption().into_iter().take(2).collect())),
    ]
}

fn fold(events: Vec<SessionEvent>) -> Durable {
    let mut state = Durable::new(session(), limits());
    for (at, event) in events.into_iter().enumerate() {
        let at = at as u64;
        let record =
            SessionRecord { session: session(), user: Some([0xab; 32]), key_id: 5, at: TimestampMs(START + at), event };
        state.apply(Position(100 + 7 * at), &record, &mut Vec::new()).expect("the records follow each other");
    }
    state
}

fn conversation() -> Vec<SessionEvent> {
    let opened = SessionOpened {
        metadata: BTreeMap::from([("topic".into(), "tea".into())]),
        system_prompt: Some("Be kind.".into()),
        items: vec![said(Role::User, "Before"), said(Role::Assistant, "Yes?")],
    };
    vec![SessionEvent::Opened(opened), SessionEvent::TurnAccepted(accepted(1)), SessionEvent::Replied(replied(1))]
}

fn open_turns() -> Vec<SessionEvent> {
    let progress = Progress { turn: TurnId(2), attempt: 2, model: model(), from: 0, tokens: vec![0, 1, 300, u32::MAX] };
    vec![
        SessionEvent::TurnAccepted(accepted(2)),
        SessionEvent::TurnAccepted(TurnAccepted { history: History::Given, ..accepted(3) }),
        SessionEvent::AttemptStarted(AttemptStarted { turn: TurnId(2), attempt: 2 }),
        SessionEvent::Progress(progress),
    ]
}

fn failed_regeneration() -> Vec<SessionEvent> {
    let again = TurnAccepted { input: Vec::new(), regenerates: Some(TurnId(1)), ..accepted(2) };
    vec![SessionEvent::TurnAccepted(again), SessionEvent::TurnFailed(failed(2))]
}

/// Two parts that make the state whole, and a third with a row.
fn adoption() -> Vec<SessionEvent> {
    let state = fold(conversation().into_iter().chain(open_turns()).collect());
    let open = state.open_turns().map(|open| AdoptedTurn { turn: open.request.turn, deadline: open.request.deadline });
    let (open, row) = (open.collect(), state.encode());
    let mut chain = AdoptionChain::default();
    chain.add_state(&row);
    chain.add_turn(TurnId(1));
    let part = |part| Adopted { digest: chain.0, part, ..Adopted::default() };
    let (first, second) = (row.slice(..10), row.slice(10..));
    vec![
        SessionEvent::Adopted(Adopted { state: first, state_left: second.len() as u64, ..part(0) }),
        SessionEvent::Adopted(Adopted { state: second, ..part(1) }),
        SessionEvent::Adopted(Adopted { last: true, turns: vec![TurnId(1)], open, ..part(2) }),
    ]
}

fn said(role: Role, text: &str) -> Item {
    Item { role, text: text.into() }
}

fn accepted(turn: u128) -> TurnAccepted {
    TurnAccepted {
        turn: TurnId(turn),
        event_id: format!("event {turn}"),
        body_hash: Some([0xcd; 32]),
        input: vec![said(Role::User, &format!("Question {turn} 👋"))],
        history: History::Session,
        options: GenerationOptions { temperature: Some(0.5), ..GenerationOptions::default() },
        seed: 42,
        origin: Origin::Response,
        regenerates: None,
        instructions: None,
        deadline: TimestampMs(START + 300_000),
    }
}

fn key_bound() -> KeyBound {
    KeyBound {
        body_hash: [0xef; 32],
        target: SessionKey::api("tenant", "target"),
        turn: TurnId(9),
        expires_at: TimestampMs(START + 86_400_000),
    }
}

fn model() -> ModelTag {
    ModelTag { name: "default".into(), digest: "0f".repeat(32), numerics: "cpu-int8".into() }
}

fn usage() -> Usage {
    Usage { prompt_tokens: 11, completion_tokens: 22, cached_tokens: 7 }
}

fn replied(turn: u128) -> Replied {
    Replied {
        turn: TurnId(turn),
        attempt: 1,
        text: format!("Answer {turn}"),
        finish: FinishReason::Stop,
        usage: usage(),
        model: model(),
    }
}

fn failed(turn: u128) -> TurnFailed {
    TurnFailed { turn: TurnId(turn), attempt: 3, code: "model_failed".into(), message: "It failed.".into() }
}

/// Transcript rows by the name of their fixture.
pub(crate) fn items() -> Vec<(&'static str, HistoryItem)> {
    let reply = |finish| ItemKind::Reply { finish, usage: usage(), model: model(), given: false };
    let given = ItemKind::Reply { finish: FinishReason::Stop, usage: Usage::default(), model: model(), given: true };
    let added =
        HistoryItem { turn: None, exchange: None, user: None, key_id: 0, ..item(Role::System, ItemKind::Added) };
    vec![
        ("item-added.v1", added),
        ("item-input.v1", item(Role::User, ItemKind::Input { given: false })),
        ("item-input-given.v1", item(Role::Tool, ItemKind::Input { given: true })),
        ("item-reply.v1", item(Role::Assistant, reply(FinishReason::Stop))),
        ("item-reply-length.v1", item(Role::Assistant, reply(FinishReason::Length))),
        ("item-reply-cancelled.v1", item(Role::Assistant, reply(FinishReason::Cancelled))),
        ("item-reply-given.v1", item(Role::Assistant, given)),
        ("item-failure.v1", item(Role::Assistant, ItemKind::Failure { code: "deadline_exceeded".into() })),
    ]
}

fn item(role: Role, kind: ItemKind) -> HistoryItem {
    HistoryItem {
        item: Arc::new(said(role, "Grüße 👋")),
        kind,
        turn: Some(TurnId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
        exchange: Some(TurnId(2)),
        created_at: TimestampMs(START + 5),
        user: Some([0xab; 32]),
        key_id: 5,
    }
}

/// Dedupe rows by the name of their fixture.
pub(crate) fn outcomes() -> Vec<(&'static str, DedupeOutcome)> {
    let failure = Outcome::Failed(Arc::new(failed(1)));
    let bare = DedupeOutcome { body_hash: None, user: None, key_id: 0, ..outcome(true, None) };
    vec![
        ("dedupe-open.v1", outcome(false, None)),
        ("dedupe-over.v1", bare),
        ("dedupe-replied.v1", outcome(true, Some((Origin::ChatCompletion, Outcome::Replied(Arc::new(replied(1))))))),
        ("dedupe-failed.v1", outcome(true, Some((Origin::WebSocket, failure)))),
    ]
}

fn outcome(ended: bool, answer: Option<(Origin, Outcome)>) -> DedupeOutcome {
    let (accepted_at, ended_at) = (TimestampMs(START), TimestampMs(START + 9));
    let answer = answer.map(|(origin, outcome)| Answer { turn: TurnId(1), origin, accepted_at, ended_at, outcome });
    DedupeOutcome {
        turn: TurnId(1),
        body_hash: Some([0xcd; 32]),
        expires_at: TimestampMs(START + 86_400_000),
        ended,
        answer: answer.map(Arc::new),
        user: Some([0xab; 32]),
        key_id: 5,
    }
}
