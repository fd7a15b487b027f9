//! What nodes say to each other: requests for sessions that live elsewhere, the text of their replies, and what each node owns and hears.
//!
//! ```text
//! ingress node                                 owner's node
//!      ── Ask (call) ─────────────────────────────▶
//!      ◀──────────────────────────── Answer (reply)
//!      ◀── Chunk, Chunk, … Chunk{end} (casts) ────       the text of a turn, under the stream's number in Ask
//!      ── Unwatch (cast) ─────────────────────────▶       nobody watches any more
//! every node ── Report (cast) ──▶ every other node
//!
//! owner's node                                 node with a model
//!      ── Generate (call) ────────────────────────▶
//!      ◀── Generated, Generated, … (casts) ───────       tokens of the reply, under the stream's number in Generate
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
    #[prost(oneof = "Answered", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
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
    /// The turn fits the model; so many tokens it has.
    #[prost(uint32, tag = "8")]
    Fits(u32),
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
    /// The models with which it answers now.
    #[prost(message, repeated, tag = "6")]
    pub models: Vec<ServedModel>,
}

/// A model that a node serves, and what it has to do.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ServedModel {
    /// The name, and other names for it.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
    /// Requests that are being answered.
    #[prost(uint32, tag = "2")]
    pub running: u32,
    /// Requests that wait.
    #[prost(uint32, tag = "3")]
    pub waiting: u32,
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

/// Asks for the reply to a turn whose session lives elsewhere.
#[derive(Clone, PartialEq, Message)]
pub struct Generate {
    /// Under which number it is sent back. Chosen by the asker, unique in its start.
    #[prost(fixed64, tag = "1")]
    pub stream: u64,
    /// An encoded [`SessionRecord`](crate::SessionRecord) of an accepted turn: its input is the whole prompt, as the guard let it through.
    #[prost(bytes = "bytes", tag = "2")]
    pub turn: Bytes,
    /// The attempt, counted from 1.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// Tokens that the reply begins with, if the model is the one that made them.
    #[prost(uint32, repeated, tag = "4")]
    pub forced: Vec<u32>,
    /// That model.
    #[prost(message, optional, tag = "5")]
    pub forced_model: Option<ModelName>,
    /// Equal for all turns of the session, never 0.
    #[prost(fixed64, tag = "6")]
    pub affinity: u64,
    /// How long the turn may still take, in milliseconds: clocks differ.
    #[prost(uint64, tag = "7")]
    pub left_ms: u64,
}

/// Asks whether a turn fits a model that is served there, before it is accepted. Answered by [`Answered::Fits`] or [`Answered::Refused`].
#[derive(Clone, PartialEq, Message)]
pub struct CheckTurn {
    /// An encoded [`SessionRecord`](crate::SessionRecord) of the turn.
    #[prost(bytes = "bytes", tag = "1")]
    pub turn: Bytes,
}

/// Which model exactly.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelName {
    /// The name that it is served under.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Of its weights.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// How it computes: equal where replies are equal to the last bit.
    #[prost(string, tag = "3")]
    pub numerics: String,
}

/// More of a reply that was asked for by [`Generate`].
#[derive(Clone, PartialEq, Message)]
pub struct Generated {
    /// The number that the asker chose.
    #[prost(fixed64, tag = "1")]
    pub stream: u64,
    /// What is new.
    #[prost(oneof = "GeneratedKind", tags = "2, 3, 4, 5, 6")]
    pub kind: Option<GeneratedKind>,
}

/// See [`Generated`].
#[derive(Clone, PartialEq, Oneof)]
pub enum GeneratedKind {
    /// The model has taken it up.
    #[prost(message, tag = "2")]
    Started(Started),
    /// More tokens.
    #[prost(message, tag = "3")]
    More(More),
    /// The reply is complete.
    #[prost(message, tag = "4")]
    Finished(Finished),
    /// There will be none.
    #[prost(message, tag = "5")]
    Failed(Refused),
    /// The worker has died.
    #[prost(message, tag = "6")]
    Died(Done),
}

/// A model has taken a turn up.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    /// The model.
    #[prost(message, optional, tag = "1")]
    pub model: Option<ModelName>,
    /// Whether it goes on behind the forced tokens.
    #[prost(bool, tag = "2")]
    pub continues: bool,
    /// Tokens of the prompt.
    #[prost(uint32, tag = "3")]
    pub prompt_tokens: u32,
}

/// More tokens of a reply, and the text that became certain.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct More {
    /// The tokens.
    #[prost(uint32, repeated, tag = "1")]
    pub ids: Vec<u32>,
    /// The text.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// A reply is complete.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Finished {
    /// Whether the limit of tokens ended it.
    #[prost(bool, tag = "1")]
    pub by_length: bool,
    /// Tokens of the prompt.
    #[prost(uint32, tag = "2")]
    pub prompt: u32,
    /// Tokens of the reply.
    #[prost(uint32, tag = "3")]
    pub completion: u32,
    /// Tokens of the prompt that were in memory already.
    #[prost(uint32, tag = "4")]
    pub cached: u32,
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
