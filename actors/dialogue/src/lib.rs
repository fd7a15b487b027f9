//! The conversation as a pure state machine: commands in, effects out. No clock, no I/O, no randomness.
//!
//! ```text
//!            commands, facts, time                        effects
//!  outside ───────────────────────▶ Dialogue::on ───────────────────▶ outside
//!                                       ▲  │ Propose(record)             │
//!                                       │  ▼                             │ append, commit
//!  views ◀── ViewChange ── Dialogue::apply ◀─────── committed record ◀───┘
//! ```
//!
//! What is durable ([`Durable`]) is a fold of committed [`SessionRecord`](parlance_cluster_protocol::SessionRecord)s and of
//! nothing else. What is in flight (proposed records, the running generation) is lost in a crash, and everything that was
//! promised to anybody can be taken up again from the fold alone. So nothing is promised before its record is committed:
//! [`Effect::Accepted`] follows a committed `TurnAccepted`, [`Effect::Final`] a committed `Replied` or `TurnFailed`.
//!
//! # The rules
//!
//! - Turns of a session are answered strictly in the order of their acceptance, one generation at a time. Final records
//!   keep that order too: a waiting turn that is stopped, or whose time is up, ends when it is its turn. So that no turn
//!   outlives its deadline by that, a waiting turn's deadline is never earlier than that of the turns before it.
//! - An accepted turn has exactly one final record. It comes at the latest at its deadline, or after
//!   [`Limits::failures`] failed attempts. An attempt that died with its session or process did not fail, it was interrupted; but
//!   after [`Limits::attempts`] in all the turn is what brings them down, and ends.
//! - The messages of a turn enter the history when the turn comes up, its reply when it is committed. A turn that ended
//!   without any text stays in the transcript, and is left out of later prompts.
//! - A regenerated reply replaces the last one when it is committed, and not if it has no text.
//! - A repeated event id joins the first turn that bore it, for 24 hours; it is never forgotten early, and at the bound new
//!   keyed turns are refused.
//! - Time is the greatest that was ever told or recorded; it never runs backwards.

mod command;
mod dedupe;
mod dialogue;
mod durable;
mod effect;
mod error;
mod history;
mod limits;
mod project;
#[cfg(test)]
mod tests;
mod view;
mod window;
mod wire;

pub use command::{Caller, Command, Failure, RequestId, Tag};
pub use dialogue::Dialogue;
pub use durable::{Binding, Durable, LastTurn, OpenTurn};
pub use effect::{Effect, GenerationOrder, Joined, Refusal};
pub use error::DialogueError;
pub use limits::{DEDUPE_TTL_MS, Limits};
pub use project::Projector;
pub use view::{Answer, DedupeOutcome, HistoryItem, ItemKind, Outcome, ViewChange};
pub use wire::FORMAT_VERSION;
