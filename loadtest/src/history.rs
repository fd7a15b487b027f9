//! The history format: JSON lines, one event each, in the order of `at_us`.
//!
//! ```json
//! {"at_us":1200,"client":3,"session":"s-3","message":"3/0","event":"invoked"}
//! {"at_us":1900,"client":3,"session":"s-3","message":"3/0","event":"acknowledged","turn":"0f…"}
//! {"at_us":2400,"client":3,"session":"s-3","message":"3/0","event":"replied","turn":"0f…","text":"a1b2… one two"}
//! ```
//!
//! A message's text is unique in the whole history, so that its turn can be recognised in the record. A message that was invoked ends in
//! `replied`, `failed` or `refused`; with none of these, or with `unknown`, the client does not know what became of it.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One thing that one client did or saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds on the clients' common monotonic clock.
    pub at_us: u64,
    /// Which client. In a closed loop it has one message under way at a time, in an open loop any number.
    pub client: u32,
    /// The session.
    pub session: String,
    /// The message's text, unique in the history.
    pub message: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// It was about to be sent, for the first time or again under the same idempotency key.
    Invoked,
    /// A response bore the turn's id: the turn is promised to be answered once.
    Acknowledged {
        /// The turn's id.
        turn: String,
    },
    /// The complete reply arrived.
    Replied {
        /// The turn's id.
        turn: String,
        /// The reply.
        text: String,
    },
    /// The turn's recorded failure arrived.
    Failed {
        /// The turn's id.
        turn: String,
        /// The error code.
        code: String,
    },
    /// The server said that nothing was accepted.
    Refused {
        /// The error code.
        code: String,
    },
    /// The connection broke or the response made no sense: anything may have happened.
    Unknown {
        /// What the client saw, for people.
        reason: String,
    },
}

/// Why a history cannot be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The source failed.
    #[error("cannot read the history: {0}")]
    Io(#[from] io::Error),
    /// A line is not an event.
    #[error("line {line} of the history is not an event: {source}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Writes one event as a line.
///
/// # Errors
///
/// What the sink says.
pub fn write(sink: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, event)?;
    sink.write_all(b"\n")
}

/// Reads all events of a history.
///
/// # Errors
///
/// See [`HistoryError`].
pub fn read(source: impl BufRead) -> Result<Vec<Event>, HistoryError> {
    let mut events = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let malformed = |source| HistoryError::Malformed { line: index + 1, source };
            events.push(serde_json::from_str(&line).map_err(malformed)?);
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_round_trip() {
        let event = |kind| Event { at_us: 7, client: 1, session: "s".into(), message: "m".into(), kind };
        let events = [
            event(EventKind::Invoked),
            event(EventKind::Acknowledged { turn: "t".into() }),
            event(EventKind::Replied { turn: "t".into(), text: "a\nb".into() }),
            event(EventKind::Failed { turn: "t".into(), code: "c".into() }),
            event(EventKind::Refused { code: "overloaded".into() }),
            event(EventKind::Unknown { reason: "reset".into() }),
        ];
        let mut bytes = Vec::new();
        events.iter().for_each(|event| write(&mut bytes, event).expect("memory takes it"));
        assert_eq!(read(&*bytes).expect("it is a history"), events);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read(&b"{\"at_us\":1}\n"[..]).expect_err("it lacks everything else");
        assert!(error.to_string().starts_with("line 1 of the history is not an event"), "{error}");
    }
}
