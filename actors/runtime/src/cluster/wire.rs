//! From requests, answers and ends of turns to what travels between nodes, and back.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use parlance_cluster_protocol::{
    KeyBound, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnId, UserHash, WireError,
    peer::{Answered, AskRecord, AskTurn, Asked, Bound, Refused},
};
use parlance_inference_engine::EngineError;

use crate::{
    Refusal, TurnOutcome,
    request::{BoundKey, SessionRequest, Submit},
};

const ASK: &str = "request between nodes";
const ANSWER: &str = "answer between nodes";

fn malformed(what: &'static str, reason: &str) -> WireError {
    WireError::Malformed { what, reason: reason.to_owned() }
}

fn turn_bytes(turn: TurnId) -> Bytes {
    Bytes::copy_from_slice(&turn.0.to_be_bytes())
}

/// A turn's id as it travels.
pub(super) fn turn_id(bytes: &[u8]) -> Result<TurnId, WireError> {
    let id = <[u8; 16]>::try_from(bytes).map_err(|_| malformed(ANSWER, "an id is not 16 bytes"))?;
    Ok(TurnId(u128::from_be_bytes(id)))
}

/// What asks the owner of `session` for that. `at` is the asker's time; the owner records its own.
pub(super) fn encode_request(session: &SessionKey, request: &SessionRequest, at: TimestampMs) -> Asked {
    let about = |turn: Option<TurnId>| AskTurn {
        session: session.encode().into(),
        turn: turn.map(turn_bytes).unwrap_or_default(),
    };
    let record = |user: &Option<UserHash>, event| {
        let record = SessionRecord { session: session.clone(), user: *user, key_id: 0, at, event };
        AskRecord { record: record.encode(), create: false, behind: None, prompt_tokens: 0 }
    };
    Asked::Record(match request {
        SessionRequest::Stop { turn } => return Asked::Stop(about(*turn)),
        SessionRequest::Watch { turn } => return Asked::Watch(about(Some(*turn))),
        SessionRequest::Submit(submit) => AskRecord {
            create: submit.create,
            behind: submit.behind,
            prompt_tokens: submit.prompt_tokens,
            ..record(&submit.user, SessionEvent::TurnAccepted((*submit.turn).clone()))
        },
        SessionRequest::BindKey { body_hash, target, turn, expires_at } => {
            let bound =
                KeyBound { body_hash: *body_hash, target: target.clone(), turn: *turn, expires_at: *expires_at };
            record(&None, SessionEvent::KeyBound(bound))
        }
        SessionRequest::Open { opened, user } => record(user, SessionEvent::Opened(opened.clone())),
        SessionRequest::Update { updated, user } => record(user, SessionEvent::Updated(updated.clone())),
        SessionRequest::AddItems { added, user } => record(user, SessionEvent::ItemsAdded(added.clone())),
        SessionRequest::Delete { user } => record(user, SessionEvent::Deleted),
        SessionRequest::Adopt(part) => record(&None, SessionEvent::Adopted((**part).clone())),
    })
}

/// What another node asks of a session of this one.
///
/// # Errors
///
/// [`WireError`] for what is no such request.
pub(super) fn decode_request(asked: Asked) -> Result<(SessionKey, SessionRequest), WireError> {
    let about = |ask: AskTurn| -> Result<(SessionKey, Option<TurnId>), WireError> {
        let turn = (!ask.turn.is_empty()).then(|| turn_id(&ask.turn)).transpose()?;
        Ok((SessionKey::decode(&ask.session)?, turn))
    };
    match asked {
        Asked::Stop(ask) => about(ask).map(|(session, turn)| (session, SessionRequest::Stop { turn })),
        Asked::Watch(ask) => match about(ask)? {
            (session, Some(turn)) => Ok((session, SessionRequest::Watch { turn })),
            (_, None) => Err(malformed(ASK, "no turn is named")),
        },
        Asked::Record(ask) => decode_record(ask),
        Asked::Settle(_) => Err(malformed(ASK, "it is not about a session")),
    }
}

fn decode_record(ask: AskRecord) -> Result<(SessionKey, SessionRequest), WireError> {
    let AskRecord { record, create, behind, prompt_tokens } = ask;
    let SessionRecord { session, user, event, .. } = SessionRecord::decode(record)?;
    let request = match event {
        SessionEvent::TurnAccepted(turn) => {
            SessionRequest::Submit(Submit { turn: Box::new(turn), user, create, behind, prompt_tokens })
        }
        SessionEvent::KeyBound(KeyBound { body_hash, target, turn, expires_at }) => {
            SessionRequest::BindKey { body_hash, target, turn, expires_at }
        }
        SessionEvent::Opened(opened) => SessionRequest::Open { opened, user },
        SessionEvent::Updated(updated) => SessionRequest::Update { updated, user },
        SessionEvent::ItemsAdded(added) => SessionRequest::AddItems { added, user },
        SessionEvent::Deleted => SessionRequest::Delete { user },
        SessionEvent::Adopted(part) => SessionRequest::Adopt(Box::new(part)),
        SessionEvent::AttemptStarted(_)
        | SessionEvent::Progress(_)
        | SessionEvent::Replied(_)
        | SessionEvent::TurnFailed(_) => return Err(malformed(ASK, "nobody may ask for this record")),
    };
    Ok((session, request))
}

/// An answer about a key.
pub(super) fn encode_bound(bound: &BoundKey) -> Answered {
    Answered::Bound(Bound { target: bound.target.encode().into(), turn: turn_bytes(bound.turn), first: bound.first })
}

/// The reverse of [`encode_bound`].
pub(super) fn decode_bound(bound: &Bound) -> Result<BoundKey, WireError> {
    Ok(BoundKey { target: SessionKey::decode(&bound.target)?, turn: turn_id(&bound.turn)?, first: bound.first })
}

/// The id of an accepted turn, as it travels.
pub(super) fn accepted_turn(turn: TurnId) -> Bytes {
    turn_bytes(turn)
}

/// The end of a turn without the reply's text, which was sent before.
pub(super) fn encode_outcome(outcome: &TurnOutcome) -> Bytes {
    let event = match outcome {
        TurnOutcome::Replied(replied) => {
            let mut replied = (**replied).clone();
            replied.text = String::new();
            SessionEvent::Replied(replied)
        }
        TurnOutcome::Failed(failed) => SessionEvent::TurnFailed((**failed).clone()),
    };
    let nobody = SessionKey::api("", "");
    SessionRecord { session: nobody, user: None, key_id: 0, at: TimestampMs(0), event }.encode()
}

/// The reverse of [`encode_outcome`]; `text` is what was sent.
pub(super) fn decode_outcome(bytes: Bytes, text: String) -> Result<TurnOutcome, WireError> {
    match SessionRecord::decode(bytes)?.event {
        SessionEvent::Replied(mut replied) => {
            replied.text = text;
            Ok(TurnOutcome::Replied(Arc::new(replied)))
        }
        SessionEvent::TurnFailed(failed) => Ok(TurnOutcome::Failed(Arc::new(failed))),
        _ => Err(malformed(ANSWER, "it is no end of a turn")),
    }
}

/// A refusal as it travels. Numbers of kinds are for ever.
pub(super) fn encode_refusal(refusal: &Refusal) -> Refused {
    let with = |kind: u32, texts: &[&str], number: u64| Refused {
        kind,
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        number,
    };
    let millis = |wait: &Duration| wait.as_millis() as u64;
    match refusal {
        Refusal::InvalidValue { param, message } => with(1, &[param, message], 0),
        Refusal::ContextExceeded(text) => with(2, &[text], 0),
        Refusal::ModelNotFound { model, available } => with(3, &[model, available], 0),
        Refusal::ModelNotReady { model, reason } => with(4, &[model, reason], 0),
        Refusal::ModelUnloaded { model } => with(5, &[model], 0),
        Refusal::SessionNotFound => with(6, &[], 0),
        Refusal::IdempotencyConflict => with(7, &[], 0),
        Refusal::SessionExists => with(8, &[], 0),
        Refusal::SessionMovedOn => with(9, &[], 0),
        Refusal::SessionBusy { queued } => with(10, &[], *queued as u64),
        Refusal::RateLimited { message, retry_after } => with(11, &[message], millis(retry_after)),
        Refusal::QueueFull { open } => with(12, &[], *open as u64),
        Refusal::Overloaded { what, retry_after } => with(13, &[what], millis(retry_after)),
        Refusal::LogUnavailable(text) => with(14, &[text], 0),
        Refusal::RecordsUnavailable(text) => with(15, &[text], 0),
        Refusal::Draining => with(16, &[], 0),
        Refusal::Parked(session) => with(17, &[&hex(&session.encode())], 0),
        // Said of generations, which sessions' owners start themselves.
        Refusal::Blocked { message, .. } => with(1, &["input", message], 0),
        Refusal::Engine(EngineError::QueueFull { retry_after }) => with(18, &[], millis(retry_after)),
        Refusal::Engine(error @ EngineError::ContextExceeded { .. }) => with(2, &[&error.to_string()], 0),
        Refusal::Engine(EngineError::DeadlineExceeded) => with(19, &[], 0),
        Refusal::Engine(error) => with(20, &[&error.to_string()], 0),
        Refusal::NotHere => with(14, &["the shard has another owner"], 0),
    }
}

/// The reverse of [`encode_refusal`]. A kind that this build does not know is told as the owner's being unavailable.
pub(super) fn decode_refusal(refused: Refused) -> Refusal {
    let Refused { kind, texts, number } = refused;
    let mut texts = texts.into_iter();
    let mut text = || texts.next().unwrap_or_default();
    let wait = Duration::from_millis(number);
    let count = usize::try_from(number).unwrap_or(usize::MAX);
    match kind {
        1 => Refusal::InvalidValue { param: text(), message: text() },
        2 => Refusal::ContextExceeded(text()),
        3 => Refusal::ModelNotFound { model: text(), available: text() },
        4 => Refusal::ModelNotReady { model: text(), reason: text() },
        5 => Refusal::ModelUnloaded { model: text() },
        6 => Refusal::SessionNotFound,
        7 => Refusal::IdempotencyConflict,
        8 => Refusal::SessionExists,
        9 => Refusal::SessionMovedOn,
        10 => Refusal::SessionBusy { queued: count },
        11 => Refusal::RateLimited { message: text(), retry_after: wait },
        12 => Refusal::QueueFull { open: count },
        13 => Refusal::Overloaded { what: Cow::Owned(text()), retry_after: wait },
        15 => Refusal::RecordsUnavailable(text()),
        16 => Refusal::Draining,
        17 => parked(&text()),
        18 => Refusal::Engine(EngineError::QueueFull { retry_after: wait }),
        19 => Refusal::Engine(EngineError::DeadlineExceeded),
        20 => Refusal::Engine(EngineError::ModelFailed(text())),
        _ => Refusal::LogUnavailable(text()),
    }
}

fn parked(hex: &str) -> Refusal {
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
    let session = bytes.and_then(|bytes| SessionKey::decode(&bytes).ok());
    session.map_or_else(|| Refusal::LogUnavailable("the session is parked".into()), Refusal::Parked)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
