use std::{collections::BTreeMap, mem, sync::Arc};

use bytes::Bytes;
use parlance_cluster_protocol::{
    AdoptionChain, Item, Position, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnAccepted, WireError,
};
use prost::Message;

use super::{FORMAT_VERSION, check_format, fixed, malformed, rows::ModelRow, turn_bytes, turn_id};
use crate::{
    DialogueError, Limits,
    durable::{Adoption, Binding, Durable, HeadStart, LastTurn, OpenTurn},
    window::Window,
};

const STATE: &str = "session state";

/// More items than a session can have, so that their numbers never overflow.
const MAX_ITEMS: u64 = 1 << 62;

#[derive(Clone, PartialEq, Message)]
struct StateRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, optional, tag = "2")]
    position: Option<u64>,
    #[prost(uint64, tag = "3")]
    at_ms: u64,
    #[prost(uint64, optional, tag = "4")]
    created_at_ms: Option<u64>,
    #[prost(bool, tag = "5")]
    deleted: bool,
    #[prost(bytes = "vec", optional, tag = "6")]
    user: Option<Vec<u8>>,
    #[prost(uint32, tag = "7")]
    key_id: u32,
    #[prost(btree_map = "string, string", tag = "8")]
    metadata: BTreeMap<String, String>,
    #[prost(string, optional, tag = "9")]
    system_prompt: Option<String>,
    #[prost(uint64, tag = "10")]
    turns: u64,
    #[prost(uint64, tag = "11")]
    window_from: u64,
    #[prost(uint32, repeated, tag = "12")]
    window_sizes: Vec<u32>,
    #[prost(message, repeated, tag = "13")]
    open: Vec<OpenRow>,
    #[prost(message, optional, tag = "14")]
    last: Option<LastRow>,
    #[prost(message, optional, tag = "15")]
    binding: Option<BindingRow>,
    #[prost(message, optional, tag = "16")]
    adoption: Option<AdoptionRow>,
}

#[derive(Clone, PartialEq, Message)]
struct OpenRow {
    /// The turn's `TurnAccepted` record, without its session, which the row is filed under.
    #[prost(bytes = "bytes", tag = "1")]
    record: Bytes,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(uint32, repeated, tag = "3")]
    tokens: Vec<u32>,
    #[prost(message, optional, tag = "4")]
    model: Option<ModelRow>,
    #[prost(message, optional, tag = "5")]
    head: Option<HeadRow>,
}

#[derive(Clone, PartialEq, Message)]
struct HeadRow {
    #[prost(bytes = "vec", tag = "1")]
    exchange: Vec<u8>,
    #[prost(uint64, tag = "2")]
    first_item: u64,
    #[prost(string, optional, tag = "3")]
    system_prompt: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct LastRow {
    #[prost(bytes = "vec", tag = "1")]
    turn: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    retried_as: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    exchange: Vec<u8>,
    #[prost(uint64, tag = "4")]
    first_item: u64,
    #[prost(uint64, tag = "5")]
    answer_item: u64,
}

#[derive(Clone, PartialEq, Message)]
struct BindingRow {
    #[prost(bytes = "vec", tag = "1")]
    body_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    target: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    turn: Vec<u8>,
    #[prost(uint64, tag = "4")]
    expires_at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct AdoptionRow {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(uint32, tag = "3")]
    parts: u32,
    #[prost(bytes = "vec", tag = "4")]
    partial: Vec<u8>,
    #[prost(bool, tag = "5")]
    has_state: bool,
    #[prost(uint64, optional, tag = "6")]
    complete: Option<u64>,
    #[prost(uint64, tag = "7")]
    at_ms: u64,
}

pub(crate) fn encode_state(state: &Durable) -> Bytes {
    let row = StateRow {
        format: FORMAT_VERSION,
        position: state.position.map(|position| position.0),
        at_ms: state.at.0,
        created_at_ms: state.created_at.map(|at| at.0),
        deleted: state.deleted,
        user: state.user.map(|hash| hash.to_vec()),
        key_id: state.key_id,
        metadata: state.metadata.clone(),
        system_prompt: state.system_prompt.as_deref().map(str::to_owned),
        turns: state.turns,
        window_from: state.window.from(),
        window_sizes: state.window.sizes().collect(),
        open: state.open.iter().map(Into::into).collect(),
        last: state.last.as_ref().map(Into::into),
        binding: state.binding.as_ref().map(Into::into),
        adoption: state.adoption.as_ref().map(Into::into),
    };
    row.encode_to_vec().into()
}

pub(crate) fn decode_state(session: SessionKey, limits: Limits, bytes: &[u8]) -> Result<Durable, DialogueError> {
    let row = StateRow::decode(Bytes::copy_from_slice(bytes)).map_err(|e| malformed(STATE, e))?;
    check_format(STATE, row.format)?;
    if row.window_from > MAX_ITEMS {
        return Err(malformed(STATE, "its items have impossible numbers").into());
    }
    let open = row.open.into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?;
    let state = Durable {
        session,
        limits,
        position: row.position.map(Position),
        at: TimestampMs(row.at_ms),
        created_at: row.created_at_ms.map(TimestampMs),
        deleted: row.deleted,
        user: row.user.map(|hash| fixed(STATE, &hash)).transpose()?,
        key_id: row.key_id,
        metadata: row.metadata,
        system_prompt: row.system_prompt.map(Arc::from),
        turns: row.turns,
        window: Window::new(row.window_from, row.window_sizes.into()),
        open,
        last: row.last.map(TryInto::try_into).transpose()?,
        binding: row.binding.map(TryInto::try_into).transpose()?,
        adoption: row.adoption.map(TryInto::try_into).transpose()?,
    };
    check(&state)?;
    Ok(state)
}

/// The invariants that later arithmetic rests on.
fn check(state: &Durable) -> Result<(), WireError> {
    let items = state.window.next();
    let heads_fit = state.open.iter().enumerate().all(|(at, open)| match &open.head {
        Some(head) => at == 0 && head.first_item <= items,
        None => at > 0,
    });
    let last_fits =
        state.last.as_ref().is_none_or(|last| last.first_item <= last.answer_item && last.answer_item < items);
    if heads_fit && last_fits { Ok(()) } else { Err(malformed(STATE, "its turns do not fit its items")) }
}

impl From<&OpenTurn> for OpenRow {
    fn from(open: &OpenTurn) -> Self {
        let input = open.input.iter().map(|item| Item::clone(item)).collect();
        let event = SessionEvent::TurnAccepted(TurnAccepted { input, ..open.request.clone() });
        let session = SessionKey::in_channel("", "", "");
        let record = SessionRecord { session, user: open.user, key_id: open.key_id, at: open.accepted_at, event };
        Self {
            record: record.encode(),
            attempt: open.attempt,
            tokens: open.tokens.clone(),
            model: open.model.as_ref().map(Into::into),
            head: open.head.as_ref().map(|head| HeadRow {
                exchange: turn_bytes(head.exchange),
                first_item: head.first_item,
                system_prompt: head.system_prompt.as_deref().map(str::to_owned),
            }),
        }
    }
}

impl TryFrom<OpenRow> for OpenTurn {
    type Error = WireError;

    fn try_from(row: OpenRow) -> Result<Self, WireError> {
        let record = SessionRecord::decode(row.record)?;
        let SessionEvent::TurnAccepted(mut request) = record.event else {
            return Err(malformed(STATE, "an open turn was never accepted"));
        };
        Ok(Self {
            input: mem::take(&mut request.input).into_iter().map(Arc::new).collect(),
            request,
            accepted_at: record.at,
            user: record.user,
            key_id: record.key_id,
            attempt: row.attempt,
            tokens: row.tokens,
            model: row.model.map(Into::into),
            head: row.head.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<HeadRow> for HeadStart {
    type Error = WireError;

    fn try_from(row: HeadRow) -> Result<Self, WireError> {
        Ok(Self {
            exchange: turn_id(STATE, &row.exchange)?,
            first_item: row.first_item,
            system_prompt: row.system_prompt.map(Arc::from),
        })
    }
}

impl From<&LastTurn> for LastRow {
    fn from(last: &LastTurn) -> Self {
        Self {
            turn: turn_bytes(last.turn),
            retried_as: last.retried_as.map(turn_bytes),
            exchange: turn_bytes(last.exchange),
            first_item: last.first_item,
            answer_item: last.answer_item,
        }
    }
}

impl TryFrom<LastRow> for LastTurn {
    type Error = WireError;

    fn try_from(row: LastRow) -> Result<Self, WireError> {
        Ok(Self {
            turn: turn_id(STATE, &row.turn)?,
            retried_as: row.retried_as.map(|id| turn_id(STATE, &id)).transpose()?,
            exchange: turn_id(STATE, &row.exchange)?,
            first_item: row.first_item,
            answer_item: row.answer_item,
        })
    }
}

impl From<&Binding> for BindingRow {
    fn from(binding: &Binding) -> Self {
        Self {
            body_hash: binding.body_hash.to_vec(),
            target: binding.target.encode(),
            turn: turn_bytes(binding.turn),
            expires_at_ms: binding.expires_at.0,
        }
    }
}

impl TryFrom<BindingRow> for Binding {
    type Error = WireError;

    fn try_from(row: BindingRow) -> Result<Self, WireError> {
        Ok(Self {
            body_hash: fixed(STATE, &row.body_hash)?,
            target: SessionKey::decode(&row.target)?,
            turn: turn_id(STATE, &row.turn)?,
            expires_at: TimestampMs(row.expires_at_ms),
        })
    }
}

impl From<&Adoption> for AdoptionRow {
    fn from(adoption: &Adoption) -> Self {
        Self {
            digest: adoption.digest.to_vec(),
            chain: adoption.chain.0.to_vec(),
            parts: adoption.parts,
            partial: adoption.partial.clone(),
            has_state: adoption.has_state,
            complete: adoption.complete.map(|position| position.0),
            at_ms: adoption.at.0,
        }
    }
}

impl TryFrom<AdoptionRow> for Adoption {
    type Error = WireError;

    fn try_from(row: AdoptionRow) -> Result<Self, WireError> {
        Ok(Self {
            digest: fixed(STATE, &row.digest)?,
            chain: AdoptionChain(fixed(STATE, &row.chain)?),
            parts: row.parts,
            partial: row.partial,
            has_state: row.has_state,
            complete: row.complete.map(Position),
            at: TimestampMs(row.at_ms),
        })
    }
}
