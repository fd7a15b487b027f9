use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A partition of the shard log. A shard has one owner at a time.
    ShardId(u16)
}
number! {
    /// One of the [`SLOTS`](crate::SLOTS) hash slots of the session space; slots map to shards.
    SlotId(u16)
}
number! {
    /// The place of an entry in its shard's log, counted from 0.
    Offset(u64)
}
number! {
    /// The number of a data entry within its epoch, counted from 0 without holes.
    Seq(u64)
}
number! {
    /// The one number of a slot that only grows: it orders writes to the stores, event ids and read tokens.
    Position(u64)
}
number! {
    /// Milliseconds since the Unix epoch, as recorded. Time enters the state machines only in this form.
    TimestampMs(u64)
}

impl Offset {
    /// The offset after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Seq {
    /// The sequence number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A random number that tells one claim, hence one process, from every other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nonce(pub u128);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// One reign over a shard: the claim's offset and its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Where the claim lies in the log.
    pub offset: Offset,
    /// The claim's nonce. Offsets can be used again after a broker lost its tail; nonces cannot.
    pub nonce: Nonce,
}

/// Names a turn for ever, across nodes and restarts. 32 lower-case hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnId(pub u128);

impl TurnId {
    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        canonical.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn {self}")
    }
}

/// SHA-256 of a request body, to tell a retry from another request under the same idempotency key.
pub type BodyHash = [u8; 32];

/// A user's identity as a keyed hash (HMAC-SHA-256 under the tenant's key); the identity itself is never stored.
pub type UserHash = [u8; 32];
