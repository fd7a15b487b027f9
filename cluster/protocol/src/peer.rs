//! What nodes say to each other: requests for sessions that live elsewhere, the text of their replies, and what each node owns and hears.
//!
//! ```text
//! ingress node                                 owner's node
//!      ── Ask (call) ─────────────────────────────▶
//!      ◀──────────────────────────── Answer (reply)
//!      ◀── Chunk, Chunk, … Chunk{end} (casts) ────       the text of a turn, under the stream's number in Ask
//!      ── Unwatch (cast) ─────────────────────────▶       nobody watches any more
//! every node ── Report (cast) ──▶ every other node
//! ```
//!
//! A node answers only for shards that it owns; from everybody else comes [`Answered::NotOwner`], and nothing was done. Numbers of fields are
//! for ever. Nodes of neighbouring versions work together: fields that a version does not know are ignored, kinds that it does not know are
//! refused.

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::WireError;

/// A request for what one session, or all shards of a node, should do.
#[derive(Clone, PartialEq, Message)]
pub struct Ask {
    /// Under which number the text of the turn is sent back; 0: it is not wanted. Chosen by the asker, unique in its start.
    #[prost(fixed64, tag = "1")]
    pub stream: u64,
    /// What is asked.
    #[prost(oneof = "Asked", tags = "2, 3, 4, 5")]
    pub asked: Option<Asked>,
}

/// See [`Ask`].
#[derive(Clone, PartialEq, Oneof)]
pub enum Asked {
    /// That something be recorded.
    #[prost(message, tag = "2")]
    Record(AskRecord),
    /// That a turn end with what there is of its reply.
    #[prost(message, tag = "3")]
    Stop(AskTurn),
    /// For the text of a turn, from its beginning.
    #[prost(message, tag = "4")]
    Watch(AskTurn),
    /// That the record store have everything that was committed.
    #[prost(message, tag = "5")]
    Settle(AskSettle),
}

/// Asks that something be recorded about a session.
#[derive(Clone, PartialEq, Message)]
pub struct AskRecord {
    /// An encoded [`SessionRecord`](crate::SessionRecord): the session, whose wish it is, and what shall happen.
    #[prost(bytes = "bytes", tag = "1")]
    pub record: Bytes,
    /// Whether the session is created if there is none.
    #[prost(bool, tag = "2")]
    pub create: bool,
    /// How many turns the session must have had, if that matters.
    #[prost(uint64, optional, tag = "3")]
    pub behind: Option<u64>,
    /// Tokens of what a turn says.
    #[prost(uint32, tag = "4")]
    pub prompt_tokens: u32,
}

/// Asks about a turn.
#[derive(Clone, PartialEq, Message)]
pub struct AskTurn {
    /// An encoded [`SessionKey`](crate::SessionKey).
    #[prost(bytes = "bytes", tag = "1")]
    pub session: Bytes,
    /// The turn's id, 16 bytes; empty: the running one.
    #[prost(bytes = "bytes", tag = "2")]
    pub turn: Bytes,
}

/// Asks that views be written.
#[derive(Clone, PartialEq, Message)]
pub struct AskSettle {
    /// The shard; absent: all that the node owns.
    #[prost(uint32, optional, tag = "1")]
    pub shard: Option<u32>,
}

/// What becomes of an [`Ask`].
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The answer.
    #[prost(oneof = "Answered", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub answered: Option<Answered>,
}

/// See [`Answer`].
#[derive(Clone, PartialEq, Oneof)]
pub enum Answered {
    /// The turn is accepted and durable; its text follows.
    #[prost(message, tag = "1")]
    Accepted(Accepted),
    /// What the idempotency key stands for.
    #[prost(message, tag = "2")]
    Bound(Bound),
    /// It is recorded, or written.
    #[prost(message, tag = "3")]
    Done(Done),
    /// Whether there was a turn to end.
    #[prost(bool, tag = "4")]
    Stopped(bool),
    /// Whether the turn is open; if so, its text follows.
    #[prost(bool, tag = "5")]
    Watching(bool),
    /// Nothing was changed, and why.
    #[prost(message, tag = "6")]
    Refused(Refused),
    /// The session's shard is not this node's. Nothing was done.
    #[prost(message, tag = "7")]
    NotOwner(Done),
}

/// A turn that was accepted.
#[derive(Clone, PartialEq, Message)]
pub struct Accepted {
    /// Its id, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub turn: Bytes,
    /// Whether an earlier request was joined.
    #[prost(bool, tag = "2")]
    pub replayed: bool,
}

/// What an idempotency key stands for.
#[derive(Clone, PartialEq, Message)]
pub struct Bound {
    /// An encoded session key.
    #[prost(bytes = "bytes", tag = "1")]
    pub target: Bytes,
    /// The turn's id, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub turn: Bytes,
    /// Whether it was bound just now.
    #[prost(bool, tag = "3")]
    pub first: bool,
}

/// Nothing more to say.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// Why nothing was done, for the node that asked to tell its caller.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// Which refusal; the numbers are `actors/runtime`'s.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// The texts that belong to it.
    #[prost(string, repeated, tag = "2")]
    pub texts: Vec<String>,
    /// The number that belongs to it: a count, or milliseconds to wait.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// More of a turn's text, or its end.
#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    /// The number that the asker chose.
    #[prost(fixed64, tag = "1")]
    pub stream: u64,
    /// New text.
    #[prost(string, tag = "2")]
    pub text: String,
    /// How it ended, if it did.
    #[prost(oneof = "End", tags = "3, 4")]
    pub end: Option<End>,
}

/// How a stream ends.
#[derive(Clone, PartialEq, Oneof)]
pub enum End {
    /// With the turn: an encoded [`SessionRecord`](crate::SessionRecord) of its end. A reply's text is left out: it is what was sent.
    #[prost(bytes = "bytes", tag = "3")]
    Outcome(Bytes),
    /// Before the turn did. Whoever watches looks for it anew.
    #[prost(message, tag = "4")]
    Interrupted(Done),
}

/// Nobody watches that stream any more.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Unwatch {
    /// Its number.
    #[prost(fixed64, tag = "1")]
    pub stream: u64,
}

/// What a node owns, follows and hears. Later ones replace earlier ones.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    /// Counts the reports of this start of the node: a later one has a larger number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The shards that it owns.
    #[prost(message, repeated, tag = "2")]
    pub owned: Vec<OwnedShard>,
    /// The shards that it follows and could take over at once.
    #[prost(uint32, repeated, tag = "3")]
    pub warm: Vec<u32>,
    /// The nodes that it has not heard of for too long, as `name@boot`.
    #[prost(string, repeated, tag = "4")]
    pub silent: Vec<String>,
    /// What it wants to hand over, so that the receivers follow.
    #[prost(message, repeated, tag = "5")]
    pub handing: Vec<Handing>,
}

/// A shard that is to be handed over.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Handing {
    /// The shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// To whom, as `name@boot`.
    #[prost(string, tag = "2")]
    pub to: String,
}

/// A shard and the reign over it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OwnedShard {
    /// The shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// Where the claim lies in the shard's log: of two nodes that say they own a shard, the one with the later claim is right.
    #[prost(uint64, tag = "2")]
    pub claimed_at: u64,
}

/// What an operator wants of a node, told by the node that the operator spoke to.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Command {
    /// The wish.
    #[prost(oneof = "Wish", tags = "1, 2")]
    pub wish: Option<Wish>,
}

/// See [`Command`].
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Wish {
    /// That the node give up its shards (true), or take some again (false).
    #[prost(bool, tag = "1")]
    Drain(bool),
    /// That it hand a shard over.
    #[prost(message, tag = "2")]
    Move(MoveShard),
}

/// A shard that an operator wants elsewhere.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MoveShard {
    /// The shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// The name of the node that is to own it.
    #[prost(string, tag = "2")]
    pub to: String,
}

/// Reads a message of this module.
///
/// # Errors
///
/// [`WireError::Malformed`].
pub fn decode<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M, WireError> {
    M::decode(bytes).map_err(|error| WireError::malformed(what, error.to_string()))
}
