//! The vocabulary of the cluster: identifiers, domain values and the versioned payloads that are written to logs,
//! stores and links.
//!
//! Nothing here performs I/O, reads a clock or draws a random number. Every payload carries a format version; a newer
//! one is refused with an error that names the remedy, and every past format has a committed byte fixture that must
//! go on decoding (`tests/fixtures`).

mod adopted;
mod dependency;
mod entry;
mod error;
mod ids;
pub mod peer;
mod record;
mod session;
mod wire;

pub use adopted::{Adopted, AdoptedItem, AdoptedKey, AdoptedTurn, AdoptionChain, AdoptionDigest};
pub use dependency::Dependency;
pub use entry::{Claim, Data, Entry, Release};
pub use error::WireError;
pub use ids::{BodyHash, Epoch, Nonce, Offset, Position, Seq, ShardId, SlotId, TimestampMs, TurnId, UserHash};
pub use record::{
    AttemptStarted, FinishReason, GenerationOptions, History, Item, ItemsAdded, KeyBound, ModelTag, Origin,
    OutputFormat, Progress, Replied, Role, ServiceTier, SessionEvent, SessionOpened, SessionRecord, SessionUpdated,
    TurnAccepted, TurnFailed, Usage,
};
pub use session::{MAX_KEY_PART_BYTES, SLOTS, SessionKey, shard_of_slot};

/// The newest format of log entries and session records that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;
