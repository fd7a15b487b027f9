//! The promises, checked: every acknowledged turn answered once, in order, and nothing made up; how soon ([`pace`](pace::pace)); and
//! that every shard had one owner at a time ([`owners`](owners::owners)).

pub mod owners;
pub mod pace;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::history::{Event, EventKind};

/// One session's record in the end, as `GET /v1/conversations/{id}/items` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    /// The session.
    pub session: String,
    /// Its items, oldest first.
    pub items: Vec<RecordedItem>,
}

/// One item of a transcript.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedItem {
    /// `user`, or `assistant` for a reply or a recorded failure.
    pub role: String,
    /// What is said.
    pub text: String,
    /// The turn's id.
    pub turn: String,
    /// The error code, where the item is the recorded failure of its turn.
    #[serde(default)]
    pub error: Option<String>,
}

/// What every reply must begin with, so that a swapped or mixed-up one is seen.
pub type ExpectedMark = fn(&str) -> String;

/// The scripted model's mark: the first 16 hexadecimal digits of SHA-256 of the message.
pub fn scripted_mark(message: &str) -> String {
    Sha256::digest(message).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "violation", rename_all = "snake_case")]
pub enum Violation {
    /// An acknowledged turn is not in its session's record.
    Lost {
        /// The message.
        message: String,
    },
    /// A message is in the record more than once.
    AcceptedTwice {
        /// The message.
        message: String,
    },
    /// An accepted turn has no final answer.
    Unanswered {
        /// The message.
        message: String,
    },
    /// A turn has more than one final answer.
    AnsweredTwice {
        /// The message.
        message: String,
    },
    /// A reply is not the one that the message must get.
    WrongReply {
        /// The message.
        message: String,
        /// The reply.
        reply: String,
    },
    /// A client saw another reply than the record holds.
    ShownOtherwise {
        /// The message.
        message: String,
        /// What the client saw.
        shown: String,
        /// What is recorded.
        recorded: String,
    },
    /// A message was acknowledged before another was sent, and comes behind it in the record.
    OutOfOrder {
        /// The earlier message.
        earlier: String,
        /// The later message.
        later: String,
    },
    /// The record holds what nobody said, or what the server said it had refused.
    Phantom {
        /// The recorded text.
        message: String,
    },
    /// One message was acknowledged under two turn ids.
    TurnChanged {
        /// The message.
        message: String,
    },
    /// A message is recorded in another session than it was sent to.
    WrongSession {
        /// The message.
        message: String,
    },
    /// A log's entry counts although its writer did not own the shard there.
    AcceptedOfNoOwner {
        /// The shard.
        shard: u32,
        /// The entry.
        offset: u64,
    },
    /// A log's entry does not count although its writer owned the shard there.
    DroppedOfOwner {
        /// The shard.
        shard: u32,
        /// The entry.
        offset: u64,
    },
    /// Two nodes claimed under one nonce, so that either could take the other's claim for its own.
    TwoOwners {
        /// The shard.
        shard: u32,
        /// The later claim.
        offset: u64,
    },
    /// A shard's log was read with an entry at a place where there had been one already.
    LogOutOfOrder {
        /// The shard.
        shard: u32,
        /// The entry.
        offset: u64,
    },
    /// An acknowledged turn was not answered within a minute although nothing was wrong any more.
    AnsweredLate {
        /// The message.
        message: String,
        /// How long it waited outside all troubles, in microseconds.
        calm_us: u64,
    },
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Messages that were sent.
    pub invoked: usize,
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Messages whose reply a client saw.
    pub replied: usize,
    /// Messages whose recorded failure a client saw.
    pub failed: usize,
    /// Messages that were refused and not sent again.
    pub refused: usize,
    /// Messages of which no client knows what became.
    pub unknown: usize,
    /// Turns in the record.
    pub recorded: usize,
    /// Those of them that ended in a recorded failure.
    pub recorded_failures: usize,
    /// The broken promises.
    pub violations: Vec<Violation>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} invoked, {} acknowledged, {} replied, {} failed, {} refused, {} unknown, {} recorded ({} failures): {} violations",
            self.invoked,
            self.acknowledged,
            self.replied,
            self.failed,
            self.refused,
            self.unknown,
            self.recorded,
            self.recorded_failures,
            self.violations.len()
        )
    }
}

/// What the clients know of one message.
#[derive(Debug, Default)]
struct Message<'a> {
    session: &'a str,
    first_invoked: u64,
    acknowledged: Option<u64>,
    turns: HashSet<&'a str>,
    shown: Option<&'a str>,
    failed: bool,
    /// Attempts that ended in a refusal, of all attempts.
    refusals: usize,
    attempts: usize,
}

/// What the record holds of one message.
#[derive(Debug)]
struct Recorded<'a> {
    session: &'a str,
    index: usize,
    turn: &'a str,
    answers: Vec<&'a RecordedItem>,
}

/// Compares what clients saw with what is recorded. `mark` gives what the reply to a message must begin with.
pub fn check(history: &[Event], transcripts: &[Transcript], mark: ExpectedMark) -> Report {
    let messages = collect_messages(history);
    let mut report = count(&messages);
    let recorded = collect_records(transcripts, &mut report);
    report.recorded = recorded.values().map(Vec::len).sum();
    let answers = recorded.values().flatten().flat_map(|turn| &turn.answers);
    report.recorded_failures = answers.filter(|answer| answer.error.is_some()).count();
    check_phantoms(&messages, &recorded, &mut report);
    for (text, message) in &messages {
        check_message(text, message, recorded.get(text).map_or(&[], Vec::as_slice), mark, &mut report);
    }
    check_order(&messages, &recorded, &mut report);
    report
}

fn collect_messages(history: &[Event]) -> BTreeMap<&str, Message<'_>> {
    let mut messages: BTreeMap<&str, Message<'_>> = BTreeMap::new();
    for event in history {
        let message = messages.entry(&event.message).or_default();
        match &event.kind {
            EventKind::Invoked => {
                if message.attempts == 0 {
                    message.session = &event.session;
                    message.first_invoked = event.at_us;
                }
                message.attempts += 1;
            }
            EventKind::Acknowledged { turn } | EventKind::Failed { turn, .. } | EventKind::Replied { turn, .. } => {
                message.acknowledged.get_or_insert(event.at_us);
                message.turns.insert(turn);
                match &event.kind {
                    EventKind::Replied { text, .. } => message.shown = Some(text),
                    EventKind::Failed { .. } => message.failed = true,
                    _ => {}
                }
            }
            EventKind::Refused { .. } => message.refusals += 1,
            EventKind::Unknown { .. } => {}
        }
    }
    messages
}

fn count(messages: &BTreeMap<&str, Message<'_>>) -> Report {
    let number = |holds: fn(&Message<'_>) -> bool| messages.values().filter(|message| holds(message)).count();
    Report {
        invoked: messages.len(),
        acknowledged: number(|message| message.acknowledged.is_some()),
        replied: number(|message| message.shown.is_some()),
        failed: number(|message| message.failed),
        refused: number(|message| message.is_refused()),
        unknown: number(|message| message.acknowledged.is_none() && !message.is_refused()),
        ..Report::default()
    }
}

impl Message<'_> {
    /// Every attempt was refused: the message must not be in the record.
    fn is_refused(&self) -> bool {
        self.acknowledged.is_none() && self.refusals == self.attempts
    }
}

/// The recorded turns by message. A reply belongs to the turn whose id it bears.
fn collect_records<'a>(transcripts: &'a [Transcript], report: &mut Report) -> HashMap<&'a str, Vec<Recorded<'a>>> {
    let mut recorded: HashMap<&str, Vec<Recorded<'_>>> = HashMap::new();
    for Transcript { session, items } in transcripts {
        let mut answers: HashMap<&str, Vec<&RecordedItem>> = HashMap::new();
        for answer in items.iter().filter(|item| item.role != "user") {
            answers.entry(&answer.turn).or_default().push(answer);
        }
        for (index, item) in items.iter().enumerate().filter(|(_, item)| item.role == "user") {
            let answers = answers.remove(&*item.turn).unwrap_or_default();
            recorded.entry(&item.text).or_default().push(Recorded { session, index, turn: &item.turn, answers });
        }
        let orphans = answers.into_values().flatten();
        report.violations.extend(orphans.map(|answer| Violation::Phantom { message: answer.text.clone() }));
    }
    recorded
}

fn check_phantoms(
    messages: &BTreeMap<&str, Message<'_>>,
    recorded: &HashMap<&str, Vec<Recorded<'_>>>,
    report: &mut Report,
) {
    for text in recorded.keys() {
        if messages.get(text).is_none_or(Message::is_refused) {
            report.violations.push(Violation::Phantom { message: (*text).to_owned() });
        }
    }
}

fn check_message(
    text: &str,
    message: &Message<'_>,
    recorded: &[Recorded<'_>],
    mark: ExpectedMark,
    report: &mut Report,
) {
    let own = || text.to_owned();
    if message.turns.len() > 1 {
        report.violations.push(Violation::TurnChanged { message: own() });
    }
    match recorded {
        [] if message.acknowledged.is_some() => report.violations.push(Violation::Lost { message: own() }),
        [] => {}
        [once] => check_recorded(text, message, once, mark, report),
        _ => report.violations.push(Violation::AcceptedTwice { message: own() }),
    }
}

fn check_recorded(text: &str, message: &Message<'_>, recorded: &Recorded<'_>, mark: ExpectedMark, report: &mut Report) {
    let own = || text.to_owned();
    if recorded.session != message.session {
        report.violations.push(Violation::WrongSession { message: own() });
    }
    if message.turns.iter().any(|turn| *turn != recorded.turn) {
        report.violations.push(Violation::TurnChanged { message: own() });
    }
    match recorded.answers[..] {
        [] => report.violations.push(Violation::Unanswered { message: own() }),
        [reply] => {
            if reply.error.is_none() && !reply.text.starts_with(&mark(text)) {
                report.violations.push(Violation::WrongReply { message: own(), reply: reply.text.clone() });
            }
            if let Some(shown) = message.shown.filter(|shown| *shown != reply.text) {
                let (shown, recorded) = (shown.to_owned(), reply.text.clone());
                report.violations.push(Violation::ShownOtherwise { message: own(), shown, recorded });
            }
        }
        _ => report.violations.push(Violation::AnsweredTwice { message: own() }),
    }
}

/// If one message was acknowledged before another was first sent to the same session, it comes first in the record.
///
/// Walks each session's record once: no message may be behind one that was sent only after it was acknowledged.
fn check_order(
    messages: &BTreeMap<&str, Message<'_>>,
    recorded: &HashMap<&str, Vec<Recorded<'_>>>,
    report: &mut Report,
) {
    let mut sessions: HashMap<&str, Vec<(usize, &str)>> = HashMap::new();
    for (text, turns) in recorded {
        for turn in turns {
            sessions.entry(turn.session).or_default().push((turn.index, text));
        }
    }
    for mut turns in sessions.into_values() {
        turns.sort_unstable();
        // The message that was sent last among those already passed.
        let mut latest: Option<(u64, &str)> = None;
        for (_, text) in turns {
            let Some(message) = messages.get(text) else { continue };
            if let (Some(acknowledged), Some((invoked, before))) = (message.acknowledged, latest)
                && acknowledged < invoked
            {
                let (earlier, later) = (text.to_owned(), before.to_owned());
                report.violations.push(Violation::OutOfOrder { earlier, later });
            }
            if latest.is_none_or(|(invoked, _)| invoked < message.first_invoked) {
                latest = Some((message.first_invoked, text));
            }
        }
    }
}

#[cfg(test)]
mod tests;
