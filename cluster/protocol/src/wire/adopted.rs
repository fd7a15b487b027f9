//! Parts of adopted sessions as they are stored.

use bytes::Bytes;

use super::{Id128, digest, turn};
use crate as domain;
use crate::{TimestampMs, WireError};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Adopted {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(uint32, tag = "2")]
    part: u32,
    #[prost(bool, tag = "3")]
    last: bool,
    #[prost(bytes = "bytes", tag = "4")]
    state: Bytes,
    #[prost(uint64, tag = "5")]
    state_left: u64,
    #[prost(message, repeated, tag = "6")]
    turns: Vec<Id128>,
    #[prost(message, repeated, tag = "7")]
    keys: Vec<AdoptedKey>,
    #[prost(message, repeated, tag = "8")]
    items: Vec<AdoptedItem>,
    #[prost(message, repeated, tag = "9")]
    open: Vec<AdoptedTurn>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AdoptedKey {
    #[prost(string, tag = "1")]
    event_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    row: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AdoptedItem {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(bytes = "bytes", tag = "2")]
    row: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AdoptedTurn {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(uint64, tag = "2")]
    deadline_ms: u64,
}

impl From<&domain::Adopted> for Adopted {
    fn from(part: &domain::Adopted) -> Self {
        let key = |key: &domain::AdoptedKey| AdoptedKey { event_id: key.event_id.clone(), row: key.row.clone() };
        let item = |item: &domain::AdoptedItem| AdoptedItem { index: item.index, row: item.row.clone() };
        let open =
            |open: &domain::AdoptedTurn| AdoptedTurn { turn: Some(open.turn.0.into()), deadline_ms: open.deadline.0 };
        Self {
            digest: part.digest.to_vec(),
            part: part.part,
            last: part.last,
            state: part.state.clone(),
            state_left: part.state_left,
            turns: part.turns.iter().map(|turn| turn.0.into()).collect(),
            keys: part.keys.iter().map(key).collect(),
            items: part.items.iter().map(item).collect(),
            open: part.open.iter().map(open).collect(),
        }
    }
}

impl TryFrom<Adopted> for domain::Adopted {
    type Error = WireError;

    fn try_from(part: Adopted) -> Result<Self, WireError> {
        let key = |key: AdoptedKey| domain::AdoptedKey { event_id: key.event_id, row: key.row };
        let item = |item: AdoptedItem| domain::AdoptedItem { index: item.index, row: item.row };
        let open = |open: AdoptedTurn| -> Result<_, WireError> {
            Ok(domain::AdoptedTurn { turn: turn(open.turn)?, deadline: TimestampMs(open.deadline_ms) })
        };
        Ok(Self {
            digest: digest("digest of an adopted session", part.digest)?,
            part: part.part,
            last: part.last,
            state: part.state,
            state_left: part.state_left,
            turns: part.turns.into_iter().map(|id| turn(Some(id))).collect::<Result<_, _>>()?,
            keys: part.keys.into_iter().map(key).collect(),
            items: part.items.into_iter().map(item).collect(),
            open: part.open.into_iter().map(open).collect::<Result<_, _>>()?,
        })
    }
}
