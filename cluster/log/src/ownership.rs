//! The claim, write and ack rules as one pure machine: who owns a shard, what counts in its log, what is committed.
//!
//! Nothing here waits, reads a clock, draws a random number or does I/O. Nonces, times, append outcomes and read-back
//! entries come in as arguments; what has to be done goes out as [`Output`]s. Every adapter of the log and the
//! simulator run this code, and the model check explores this code, not a copy.
//!
//! # The rules
//!
//! 2. **Claim.** `Claim{nonce, prev_epoch}` is valid if and only if `prev_epoch` is the latest valid claim where it lies. Its
//!    epoch is `(offset, nonce)`. A process owns a shard only through a nonce of its own.
//! 3. **Validity.** A record counts if its epoch is current where it lies, its `seq` is the next of that epoch, and the shard
//!    owns its slot. Behind a valid release nothing of its epoch counts. [`Validator`] decides this for every reader.
//! 4. **Commit.** Acknowledgements are taken in `seq` order. At the offset behind everything known, a record is committed;
//!    behind a gap the log is read back first, and only what is valid there is committed.
//! 5. **Unknown outcome.** Appending stops, the owner claims over itself with fresh nonces until a later valid claim is
//!    read, whoever's it is. What is valid before that is committed, the rest never will be, and only then is it called failed.
//!
//! # How the machine applies them
//!
//! [`Ownership`] is a reader of the log with one short cut. Its [`Validator`] has judged everything before `next`. An entry
//! at `next` comes either from a read or from the machine's own memory, when an acknowledgement says that it lies
//! exactly there. Every decision follows from the verdict on that one entry:
//!
//! ```text
//!   the entry at `next` is        so
//!   valid data of our epoch       it is the first in flight: Apply, Committed
//!   valid data of another's       Apply
//!   valid claim, our nonce        in flight: Failed; BecameOwner
//!   valid claim, another's        in flight and queued: Failed; SteppedDown
//!   valid release of our epoch    SteppedDown
//!   inert                         nothing
//!   unreadable                    in flight: Unresolved; SteppedDown for good
//! ```
//!
//! The roles, and what leads from one to the next:
//!
//! ```text
//!                claim()            own claim valid           unknown outcome, or a hole
//! Following ───────────▶ Claiming ─────────────────▶ Owning ─────────────────────────────▶ Resolving
//!  ▲  ▲  ▲                  │                         │  ▲                                  │   │
//!  │  │  └─ foreign claim ──┘                         │  └──────── own claim valid ─────────┘   │
//!  │  └──── foreign claim, or own release, valid ─────┘                                         │
//!  └─────── foreign claim, or own release, valid ───────────────────────────────────────────────┘
//!
//! any role ── unreadable or forged entry, stop() ──▶ Stopped
//! ```
//!
//! The log decides, not the role: a claim that was still under way when our release turned out valid makes even a follower
//! the owner, if it lands before anybody else's.
//!
//! A proposal is queued, then in flight, then settled, exactly once, in the order of the proposals: first all committed
//! ones, then, if the reign ends or stumbles, all failed ones.
//!
//! # Driving it
//!
//! Call one method per event and perform the outputs in their order. [`Output::Append`] is one
//! [`ShardLog::append`](crate::ShardLog::append), answered by [`Ownership::on_appended`]; [`Output::Read`] is one
//! [`ShardLog::read`](crate::ShardLog::read), answered by [`Ownership::on_read`]. [`Output::ClaimWanted`] asks for
//! [`Ownership::claim`] after a back-off of the caller's choice. Proposals go out with [`Ownership::flush`], so that many
//! share one append. The caller bounds the bytes in flight: the machine counts entries only.

mod machine;
#[cfg(test)]
mod model;
mod rules;
mod settle;
#[cfg(test)]
mod tests;
mod validator;

use bytes::Bytes;
use parlance_cluster_protocol::{Epoch, Nonce, Offset, Seq, SlotId, TimestampMs, WireError};
use thiserror::Error;

use crate::MAX_ENTRY_BYTES;

pub use machine::Ownership;
pub use rules::{Rule, Rules};
pub use validator::{LogPoint, SlotTable, Validator, Verdict};

/// The largest payload that is taken: an entry's own fields need less than the rest.
pub const MAX_PAYLOAD_BYTES: usize = MAX_ENTRY_BYTES - 128;

/// Names one proposal within its process; counted from 0, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Bounds of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How many entries may be in flight: handed out for appending and not yet settled.
    pub window: usize,
    /// How many proposals may wait for room in the window.
    pub queue: usize,
}

impl Default for Limits {
    /// A window of 1,024 covers 40,000 records a second at 25 ms per append; a full queue is a tenth of a second of work.
    fn default() -> Self {
        Self { window: 1_024, queue: 4_096 }
    }
}

/// Names an append call; opaque. It goes back in with the call's outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppendTag(Tag);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Tag {
    /// Records of a reign, numbered from `first` on.
    Records { epoch: Epoch, first: Seq },
    /// A claim.
    Claim { nonce: Nonce },
}

#[cfg(test)]
impl AppendTag {
    /// The nonce, where a claim was appended.
    fn nonce(self) -> Option<Nonce> {
        match self.0 {
            Tag::Claim { nonce } => Some(nonce),
            Tag::Records { .. } => None,
        }
    }
}

/// What the caller has to do or to know, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Append these entries with one call and report their outcomes with the tag. A call that gives no outcome within the
    /// caller's deadline is reported as unknown; a true outcome that comes later may still be reported.
    Append {
        /// Goes back in with the outcomes.
        tag: AppendTag,
        /// Encoded entries.
        entries: Vec<Bytes>,
    },
    /// Read from this offset and report what came; at most one read is asked for at a time.
    Read {
        /// The first offset that is wanted.
        from: Offset,
        /// How many reads in a row did not show an entry that is known to be there; past 0, pause before the next.
        attempt: u32,
    },
    /// Call [`Ownership::claim`] with a fresh nonce, after a back-off that grows with `attempt`.
    ClaimWanted {
        /// How many claims of this dispute went before.
        attempt: u32,
    },
    /// A claim of ours is valid: this process owns the shard from here on. Also after an owner claimed over itself; a release
    /// that was asked for and not answered by a step-down did not happen.
    BecameOwner {
        /// The new epoch.
        epoch: Epoch,
    },
    /// The next valid record, replayed or ours. Each comes exactly once, in the order of the log.
    Apply {
        /// Where it lies.
        offset: Offset,
        /// The slot it belongs to.
        slot: SlotId,
        /// What was proposed.
        payload: Bytes,
    },
    /// The proposal whose record was just applied is committed.
    Committed {
        /// The proposal.
        ticket: Ticket,
        /// Where it lies.
        offset: Offset,
    },
    /// The proposal is not in the record and never will be.
    Failed {
        /// The proposal.
        ticket: Ticket,
    },
    /// This process will never know what became of the proposal: neither success nor failure may be claimed.
    Unresolved {
        /// The proposal.
        ticket: Ticket,
    },
    /// This process is not, or no longer, about to own the shard.
    SteppedDown {
        /// Why.
        reason: StepDown,
    },
    /// Another process's claim is valid.
    ForeignClaim {
        /// Its epoch.
        epoch: Epoch,
        /// The name it claims under.
        node: String,
        /// When it was written.
        at: TimestampMs,
    },
    /// Another process's release is valid: `to` should claim.
    ForeignRelease {
        /// Where it lies.
        offset: Offset,
        /// The node that is asked to claim.
        to: String,
    },
    /// The entry counts for nobody.
    Fenced {
        /// Where it lies.
        offset: Offset,
    },
    /// Everything is known that the log held when [`Ownership::catch_up`] was called.
    CaughtUp {
        /// The first offset that was not read.
        next: Offset,
    },
}

/// Why a process stepped down.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StepDown {
    /// Another process's claim is valid.
    #[error("node {node} claimed the shard at {}", epoch.offset)]
    Superseded {
        /// Its epoch.
        epoch: Epoch,
        /// The name it claims under.
        node: String,
    },
    /// The release that was asked for is valid.
    #[error("released to node {to}")]
    Released {
        /// The node that is asked to claim.
        to: String,
    },
    /// An entry cannot be read by this build. Nothing behind it may be judged; the machine has stopped.
    #[error("entry {offset} cannot be read")]
    Unreadable {
        /// Where it lies.
        offset: Offset,
        /// What is wrong with it.
        source: WireError,
    },
    /// A valid record bears our epoch and was not written by us. The machine has stopped.
    #[error("entry {offset} bears our epoch but is not ours")]
    Forged {
        /// Where it lies.
        offset: Offset,
    },
    /// The log does not reach to where this process had read: its memory is void, replay from a checkpoint or the start.
    #[error("the log was cut off before entry {next}")]
    Truncated {
        /// The first offset that was not read.
        next: Offset,
    },
    /// The process gives the shard up, for a reason of its own.
    #[error("stopped")]
    Stopped,
}

/// Why a proposal or a release was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// This process does not own the shard, or is handing it over.
    #[error("this process does not own the shard")]
    NotOwner,
    /// The slot lives in another shard.
    #[error("the shard does not own slot {0}")]
    ForeignSlot(SlotId),
    /// The log would not take it: a larger entry is never written.
    #[error("a payload of {bytes} bytes is over the limit of {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The queue is full: try again when something was settled.
    #[error("too many proposals are waiting")]
    Full,
}
