use std::fmt;

use sha2::{Digest, Sha256};

use crate::{ShardId, SlotId, WireError};

/// How many hash slots the session space has. Fixed for ever: a slot is part of what is stored.
pub const SLOTS: u16 = 16_384;

/// The longest part of a session key, in bytes.
pub const MAX_KEY_PART_BYTES: usize = 512;

/// Names one conversation: who owns it, over which channel and account it runs, and which chat and thread it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The tenant, from the credential alone.
    pub tenant: String,
    /// The channel, for example `api` or `irc`.
    pub channel: String,
    /// The account on that channel; empty where a channel has one.
    pub account: String,
    /// The chat or conversation.
    pub chat: String,
    /// The thread within the chat; empty where there is none.
    pub thread: String,
}

impl SessionKey {
    /// A conversation opened over the public API: `chat` is its conversation id.
    pub fn api(tenant: impl Into<String>, chat: impl Into<String>) -> Self {
        Self::in_channel(tenant, "api", chat)
    }

    /// A chat of `channel` in its one account, outside any thread.
    pub fn in_channel(tenant: impl Into<String>, channel: impl Into<String>, chat: impl Into<String>) -> Self {
        Self {
            tenant: tenant.into(),
            channel: channel.into(),
            account: String::new(),
            chat: chat.into(),
            thread: String::new(),
        }
    }

    fn parts(&self) -> [&str; 5] {
        [&self.tenant, &self.channel, &self.account, &self.chat, &self.thread]
    }

    /// The key as bytes: each part behind its length, so that no two keys collide.
    ///
    /// ```text
    /// u16 length | tenant | u16 length | channel | … account | … chat | … thread      (lengths big-endian)
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.parts().iter().map(|part| part.len() + 2).sum());
        for part in self.parts() {
            debug_assert!(part.len() <= MAX_KEY_PART_BYTES, "key parts are bounded where they enter");
            out.extend_from_slice(&(part.len() as u16).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`] if the bytes are not exactly one key.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut rest = bytes;
        let mut part = || -> Result<String, WireError> {
            let bad = |reason: &str| WireError::malformed("session key", reason);
            let (length, tail) = rest.split_first_chunk::<2>().ok_or_else(|| bad("cut short"))?;
            let length = usize::from(u16::from_be_bytes(*length));
            if length > MAX_KEY_PART_BYTES {
                return Err(bad("a part is longer than the limit"));
            }
            let (text, tail) = tail.split_at_checked(length).ok_or_else(|| bad("cut short"))?;
            rest = tail;
            String::from_utf8(text.to_vec()).map_err(|_| bad("not UTF-8"))
        };
        let key = Self { tenant: part()?, channel: part()?, account: part()?, chat: part()?, thread: part()? };
        if rest.is_empty() { Ok(key) } else { Err(WireError::malformed("session key", "trailing bytes")) }
    }

    /// The hash slot that the session lives in: the first 14 bits of SHA-256 over the encoded key.
    pub fn slot(&self) -> SlotId {
        let digest = Sha256::digest(self.encode());
        SlotId(u16::from_be_bytes([digest[0], digest[1]]) >> 2)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.tenant, self.channel, self.account, self.chat, self.thread)
    }
}

/// The shard that a slot belongs to while no slot has moved: contiguous, near-equal ranges of slots.
pub fn shard_of_slot(slot: SlotId, shards: u16) -> ShardId {
    debug_assert!(shards > 0 && slot.0 < SLOTS);
    ShardId((u32::from(slot.0) * u32::from(shards) / u32::from(SLOTS)) as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn separators_in_parts_do_not_collide() {
        let one = SessionKey::in_channel("a|b", "c", "d");
        let other = SessionKey::in_channel("a", "b|c", "d");
        assert_ne!(one.encode(), other.encode());
    }

    /// Slots are part of what is stored: this value may never change.
    #[test]
    fn the_slot_of_a_known_key_is_fixed() {
        assert_eq!(SessionKey::api("default", "demo").slot(), SlotId(6_980));
    }

    #[test]
    fn every_shard_gets_a_near_equal_share() {
        for shards in [1, 3, 64, 1_000] {
            let mut slots = vec![0u32; usize::from(shards)];
            for slot in 0..SLOTS {
                slots[usize::from(shard_of_slot(SlotId(slot), shards).0)] += 1;
            }
            let (least, most) = (slots.iter().min(), slots.iter().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{shards} shards: {slots:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip(parts in proptest::array::uniform5("\\PC{0,40}")) {
            let [tenant, channel, account, chat, thread] = parts;
            let key = SessionKey { tenant, channel, account, chat, thread };
            prop_assert_eq!(SessionKey::decode(&key.encode()), Ok(key));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(key) = SessionKey::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }
    }
}
