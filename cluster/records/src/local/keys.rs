//! How rows are named in the embedded store.
//!
//! ```text
//! 'c' shard                        checkpoint        's' session                 state
//! 'd' session event_id             dedupe            't' tenant turn             turn, to its session
//! 'e' session                      erasures          'u' session turn            turn, from its session
//! 'f' session event_id             forgotten dedupe  'v' session key             delivery
//! 'i' session index                item
//! ```
//!
//! A session is its [`SessionKey::encode`], which marks its own end: no session's rows begin with another's. Numbers
//! are big-endian, so that keys sort like what they name.

use parlance_cluster_protocol::{MAX_KEY_PART_BYTES, SessionKey, ShardId, TurnId};

use crate::{
    RecordsError,
    limits::{MAX_ID_BYTES, at_most, check_session},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Checkpoint = b'c',
    Dedupe = b'd',
    Erasures = b'e',
    Forgotten = b'f',
    Item = b'i',
    State = b's',
    Turn = b't',
    TurnOfSession = b'u',
    Delivery = b'v',
}

/// A session's key as it stands in row keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SessionPart(Vec<u8>);

impl SessionPart {
    pub(super) fn new(session: &SessionKey) -> Result<Self, RecordsError> {
        check_session(session)?;
        Ok(Self(session.encode()))
    }

    /// The session as a value of a row.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A row of which the session has one, or what all its rows of this kind begin with.
    pub(super) fn row(&self, kind: Kind) -> Vec<u8> {
        self.joined(kind, &[])
    }

    pub(super) fn item(&self, index: u64) -> Vec<u8> {
        self.joined(Kind::Item, &index.to_be_bytes())
    }

    pub(super) fn turn(&self, turn: TurnId) -> Vec<u8> {
        self.joined(Kind::TurnOfSession, &turn.0.to_be_bytes())
    }

    /// A row under an id that comes from outside.
    pub(super) fn named(&self, kind: Kind, what: &'static str, id: &str) -> Result<Vec<u8>, RecordsError> {
        at_most(what, id.len(), MAX_ID_BYTES)?;
        Ok(self.joined(kind, id.as_bytes()))
    }

    fn joined(&self, kind: Kind, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + self.0.len() + rest.len());
        key.push(kind as u8);
        key.extend_from_slice(&self.0);
        key.extend_from_slice(rest);
        key
    }
}

pub(super) fn checkpoint(shard: ShardId) -> [u8; 3] {
    let [high, low] = shard.0.to_be_bytes();
    [Kind::Checkpoint as u8, high, low]
}

pub(super) fn turn(tenant: &str, turn: TurnId) -> Result<Vec<u8>, RecordsError> {
    let mut key = prefix(Kind::Turn, &[tenant])?;
    key.extend_from_slice(&turn.0.to_be_bytes());
    Ok(key)
}

/// What the state rows of all sessions of a tenant and channel begin with.
pub(super) fn channel(tenant: &str, channel: &str) -> Result<Vec<u8>, RecordsError> {
    prefix(Kind::State, &[tenant, channel])
}

fn prefix(kind: Kind, parts: &[&str]) -> Result<Vec<u8>, RecordsError> {
    let mut key = vec![kind as u8];
    for part in parts {
        at_most("part of a session key", part.len(), MAX_KEY_PART_BYTES)?;
        key.extend_from_slice(&(part.len() as u16).to_be_bytes());
        key.extend_from_slice(part.as_bytes());
    }
    Ok(key)
}

/// The first key behind all that begin with `prefix`.
pub(super) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    debug_assert!(!end.is_empty(), "a kind is below 0xff");
    end
}

/// The id at the end of a row key that begins with `prefix`.
pub(super) fn id_behind(prefix: &[u8], key: &[u8]) -> Result<String, RecordsError> {
    let id = key.strip_prefix(prefix).unwrap_or_default();
    String::from_utf8(id.to_vec()).map_err(|_| damaged("row key", "an id is not UTF-8"))
}

/// The number at the end of a row key that begins with `prefix`.
pub(super) fn index_behind(prefix: &[u8], key: &[u8]) -> Result<u64, RecordsError> {
    let digits = key.strip_prefix(prefix).and_then(|rest| rest.try_into().ok());
    digits.map(u64::from_be_bytes).ok_or_else(|| damaged("row key", "an item without its number"))
}

/// The turn at the end of a row key that begins with `prefix`.
pub(super) fn turn_behind(prefix: &[u8], key: &[u8]) -> Result<TurnId, RecordsError> {
    let digits = key.strip_prefix(prefix).and_then(|rest| rest.try_into().ok());
    digits.map(u128::from_be_bytes).map(TurnId).ok_or_else(|| damaged("row key", "a turn without its id"))
}

/// The session of a state row's key.
pub(super) fn session_of_state(key: &[u8]) -> Result<SessionKey, RecordsError> {
    decode_session(key.split_first().map_or(&[], |(_, session)| session))
}

pub(super) fn decode_session(bytes: &[u8]) -> Result<SessionKey, RecordsError> {
    SessionKey::decode(bytes).map_err(|error| damaged("session key", error.to_string()))
}

pub(super) fn damaged(what: &'static str, reason: impl Into<String>) -> RecordsError {
    RecordsError::Damaged { what, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_lies_behind_everything_with_it() {
        assert_eq!(behind(b"ab"), b"ac");
        assert_eq!(behind(b"a\xff\xff"), b"b");
    }

    /// Otherwise a range over one session's rows would take in another's.
    #[test]
    fn rows_of_one_session_are_not_a_prefix_of_anothers() {
        let short = SessionPart::new(&SessionKey::api("t", "a")).map(|part| part.row(Kind::Item));
        let long = SessionPart::new(&SessionKey::api("t", "ab")).map(|part| part.row(Kind::Item));
        assert!(short.is_ok_and(|short| long.is_ok_and(|long| !long.starts_with(&short))));
    }
}
