//! The stored shapes (Protocol Buffers) and their conversion to and from the domain values. Field numbers are for ever.

mod adopted;
mod format;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::{adopted::Adopted, format::Format};
use crate as domain;
use crate::{FORMAT_VERSION, SLOTS, SessionKey, SlotId, TimestampMs, TurnId, WireError};

const WHAT: &str = "session record";

pub(crate) fn check_format(what: &'static str, found: u32) -> Result<(), WireError> {
    match found {
        0 => Err(WireError::malformed(what, "no format version")),
        1..=FORMAT_VERSION => Ok(()),
        _ => Err(WireError::Newer { what, found, supported: FORMAT_VERSION }),
    }
}

pub(crate) fn required<T>(what: &'static str, field: &str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::malformed(what, format!("no {field}")))
}

pub(crate) fn slot(what: &'static str, slot: u32) -> Result<SlotId, WireError> {
    u16::try_from(slot)
        .ok()
        .filter(|slot| *slot < SLOTS)
        .map(SlotId)
        .ok_or_else(|| WireError::malformed(what, format!("slot {slot} is out of range")))
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Id128 {
    #[prost(fixed64, tag = "1")]
    high: u64,
    #[prost(fixed64, tag = "2")]
    low: u64,
}

impl From<u128> for Id128 {
    fn from(id: u128) -> Self {
        Self { high: (id >> 64) as u64, low: id as u64 }
    }
}

impl From<Id128> for u128 {
    fn from(id: Id128) -> Self {
        Self::from(id.high) << 64 | Self::from(id.low)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Epoch {
    #[prost(uint64, tag = "1")]
    pub(crate) offset: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) nonce: Option<Id128>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(oneof = "entry::Kind", tags = "2, 3, 4")]
    pub(crate) kind: Option<entry::Kind>,
}

pub(crate) mod entry {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "2")]
        Claim(super::Claim),
        #[prost(message, tag = "3")]
        Data(super::Data),
        #[prost(message, tag = "4")]
        Release(super::Release),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Claim {
    #[prost(string, tag = "1")]
    pub(crate) node: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) nonce: Option<Id128>,
    #[prost(message, optional, tag = "3")]
    pub(crate) prev_epoch: Option<Epoch>,
    #[prost(uint64, tag = "4")]
    pub(crate) at_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Data {
    #[prost(message, optional, tag = "1")]
    pub(crate) epoch: Option<Epoch>,
    #[prost(uint64, tag = "2")]
    pub(crate) seq: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) slot: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Release {
    #[prost(message, optional, tag = "1")]
    pub(crate) epoch: Option<Epoch>,
    #[prost(uint64, tag = "2")]
    pub(crate) seq: u64,
    #[prost(string, tag = "3")]
    pub(crate) to: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(bytes = "vec", tag = "2")]
    session: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    user: Option<Vec<u8>>,
    #[prost(uint32, tag = "4")]
    key_id: u32,
    #[prost(uint64, tag = "5")]
    at_ms: u64,
    #[prost(oneof = "record::Event", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")]
    event: Option<record::Event>,
}

mod record {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Event {
        #[prost(message, tag = "10")]
        Opened(super::Opened),
        #[prost(message, tag = "11")]
        Updated(super::Updated),
        #[prost(message, tag = "12")]
        ItemsAdded(super::ItemsAdded),
        #[prost(message, tag = "13")]
        KeyBound(super::KeyBound),
        #[prost(message, tag = "14")]
        TurnAccepted(Box<super::TurnAccepted>),
        #[prost(message, tag = "15")]
        AttemptStarted(super::AttemptStarted),
        #[prost(message, tag = "16")]
        Progress(super::Progress),
        #[prost(message, tag = "17")]
        Replied(super::Replied),
        #[prost(message, tag = "18")]
        TurnFailed(super::TurnFailed),
        #[prost(message, tag = "19")]
        Deleted(super::Deleted),
        #[prost(message, tag = "20")]
        Adopted(super::Adopted),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Role {
    Unknown = 0,
    System = 1,
    User = 2,
    Assistant = 3,
    Tool = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Origin {
    Unknown = 0,
    ChatCompletion = 1,
    Response = 2,
    WebSocket = 3,
    Channel = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum History {
    Unknown = 0,
    Session = 1,
    Given = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Finish {
    Unknown = 0,
    Stop = 1,
    Length = 2,
    Cancelled = 3,
}

/// Maps a domain enumeration onto its stored one; `Unknown` (absent, or from a newer release) is refused.
macro_rules! enumeration {
    ($wire:ident, $domain:ident, $($variant:ident),+) => {
        impl From<domain::$domain> for $wire {
            fn from(value: domain::$domain) -> Self {
                match value { $(domain::$domain::$variant => Self::$variant),+ }
            }
        }

        impl TryFrom<$wire> for domain::$domain {
            type Error = WireError;

            fn try_from(value: $wire) -> Result<Self, WireError> {
                match value {
                    $wire::Unknown => Err(WireError::UnknownKind { what: stringify!($domain) }),
                    $($wire::$variant => Ok(Self::$variant)),+
                }
            }
        }
    };
}

enumeration!(Role, Role, System, User, Assistant, Tool);
enumeration!(Origin, Origin, ChatCompletion, Response, WebSocket, Channel);
enumeration!(History, History, Session, Given);
enumeration!(Finish, FinishReason, Stop, Length, Cancelled);

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(enumeration = "Role", tag = "1")]
    role: i32,
    #[prost(string, tag = "2")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Opened {
    #[prost(btree_map = "string, string", tag = "1")]
    metadata: BTreeMap<String, String>,
    #[prost(string, optional, tag = "2")]
    system_prompt: Option<String>,
    #[prost(message, repeated, tag = "3")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Updated {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, optional, tag = "2")]
    system_prompt: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ItemsAdded {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyBound {
    #[prost(bytes = "vec", tag = "1")]
    body_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    target: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    turn: Option<Id128>,
    #[prost(uint64, tag = "4")]
    expires_at_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(uint32, optional, tag = "2")]
    max_tokens: Option<u32>,
    #[prost(float, optional, tag = "3")]
    temperature: Option<f32>,
    #[prost(float, optional, tag = "4")]
    top_p: Option<f32>,
    #[prost(uint32, optional, tag = "5")]
    top_k: Option<u32>,
    #[prost(float, optional, tag = "6")]
    min_p: Option<f32>,
    #[prost(float, optional, tag = "7")]
    repetition_penalty: Option<f32>,
    #[prost(float, optional, tag = "8")]
    presence_penalty: Option<f32>,
    #[prost(float, optional, tag = "9")]
    frequency_penalty: Option<f32>,
    #[prost(string, repeated, tag = "10")]
    stop: Vec<String>,
    #[prost(message, optional, tag = "11")]
    format: Option<Format>,
    #[prost(enumeration = "Tier", tag = "12")]
    tier: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Tier {
    Default = 0,
    Flex = 1,
    Priority = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TurnAccepted {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(string, tag = "2")]
    event_id: String,
    #[prost(bytes = "vec", optional, tag = "3")]
    body_hash: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "4")]
    input: Vec<Item>,
    #[prost(enumeration = "History", tag = "5")]
    history: i32,
    #[prost(message, optional, tag = "6")]
    options: Option<Options>,
    #[prost(fixed64, tag = "7")]
    seed: u64,
    #[prost(enumeration = "Origin", tag = "8")]
    origin: i32,
    #[prost(message, optional, tag = "9")]
    regenerates: Option<Id128>,
    #[prost(uint64, tag = "10")]
    deadline_ms: u64,
    #[prost(string, optional, tag = "11")]
    instructions: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelTag {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(string, tag = "3")]
    numerics: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AttemptStarted {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Progress {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(message, optional, tag = "3")]
    model: Option<ModelTag>,
    #[prost(uint32, tag = "4")]
    from: u32,
    #[prost(uint32, repeated, tag = "5")]
    tokens: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Replied {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(string, tag = "3")]
    text: String,
    #[prost(enumeration = "Finish", tag = "4")]
    finish: i32,
    #[prost(uint32, tag = "5")]
    prompt_tokens: u32,
    #[prost(uint32, tag = "6")]
    completion_tokens: u32,
    #[prost(uint32, tag = "7")]
    cached_tokens: u32,
    #[prost(message, optional, tag = "8")]
    model: Option<ModelTag>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TurnFailed {
    #[prost(message, optional, tag = "1")]
    turn: Option<Id128>,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(string, tag = "3")]
    code: String,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Deleted {}

impl From<&domain::SessionRecord> for Record {
    fn from(record: &domain::SessionRecord) -> Self {
        Self {
            format: FORMAT_VERSION,
            session: record.session.encode(),
            user: record.user.map(|hash| hash.to_vec()),
            key_id: record.key_id,
            at_ms: record.at.0,
            event: Some((&record.event).into()),
        }
    }
}

impl TryFrom<Record> for domain::SessionRecord {
    type Error = WireError;

    fn try_from(record: Record) -> Result<Self, WireError> {
        Ok(Self {
            session: SessionKey::decode(&record.session)?,
            user: record.user.map(|hash| digest("user hash", hash)).transpose()?,
            key_id: record.key_id,
            at: TimestampMs(record.at_ms),
            event: record.event.ok_or(WireError::UnknownKind { what: WHAT })?.try_into()?,
        })
    }
}

fn digest(field: &str, bytes: Vec<u8>) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| WireError::malformed(WHAT, format!("{field} is not 32 bytes")))
}

fn turn(id: Option<Id128>) -> Result<TurnId, WireError> {
    Ok(TurnId(required(WHAT, "turn id", id)?.into()))
}

fn items(items: Vec<Item>) -> Result<Vec<domain::Item>, WireError> {
    items.into_iter().map(TryInto::try_into).collect()
}

fn stored_items(items: &[domain::Item]) -> Vec<Item> {
    items.iter().map(Into::into).collect()
}

impl From<&domain::SessionEvent> for record::Event {
    fn from(event: &domain::SessionEvent) -> Self {
        match event {
            domain::SessionEvent::Opened(opened) => Self::Opened(Opened {
                metadata: opened.metadata.clone(),
                system_prompt: opened.system_prompt.clone(),
                items: stored_items(&opened.items),
            }),
            domain::SessionEvent::Updated(updated) => Self::Updated(Updated {
                metadata: updated.metadata.clone().map(|labels| Metadata { labels }),
                system_prompt: updated.system_prompt.clone(),
            }),
            domain::SessionEvent::ItemsAdded(added) => {
                Self::ItemsAdded(ItemsAdded { items: stored_items(&added.items) })
            }
            domain::SessionEvent::KeyBound(bound) => Self::KeyBound(KeyBound {
                body_hash: bound.body_hash.to_vec(),
                target: bound.target.encode(),
                turn: Some(bound.turn.0.into()),
                expires_at_ms: bound.expires_at.0,
            }),
            domain::SessionEvent::TurnAccepted(accepted) => Self::TurnAccepted(Box::new(accepted.into())),
            domain::SessionEvent::AttemptStarted(started) => {
                Self::AttemptStarted(AttemptStarted { turn: Some(started.turn.0.into()), attempt: started.attempt })
            }
            domain::SessionEvent::Progress(progress) => Self::Progress(Progress {
                turn: Some(progress.turn.0.into()),
                attempt: progress.attempt,
                model: Some((&progress.model).into()),
                from: progress.from,
                tokens: progress.tokens.clone(),
            }),
            domain::SessionEvent::Replied(replied) => Self::Replied(replied.into()),
            domain::SessionEvent::TurnFailed(failed) => Self::TurnFailed(TurnFailed {
                turn: Some(failed.turn.0.into()),
                attempt: failed.attempt,
                code: failed.code.clone(),
                message: failed.message.clone(),
            }),
            domain::SessionEvent::Deleted => Self::Deleted(Deleted {}),
            domain::SessionEvent::Adopted(part) => Self::Adopted(part.into()),
        }
    }
}

impl TryFrom<record::Event> for domain::SessionEvent {
    type Error = WireError;

    fn try_from(event: record::Event) -> Result<Self, WireError> {
        Ok(match event {
            record::Event::Opened(opened) => Self::Opened(domain::SessionOpened {
                metadata: opened.metadata,
                system_prompt: opened.system_prompt,
                items: items(opened.items)?,
            }),
            record::Event::Updated(updated) => Self::Updated(domain::SessionUpdated {
                metadata: updated.metadata.map(|metadata| metadata.labels),
                system_prompt: updated.system_prompt,
            }),
            record::Event::ItemsAdded(added) => Self::ItemsAdded(domain::ItemsAdded { items: items(added.items)? }),
            record::Event::KeyBound(bound) => Self::KeyBound(domain::KeyBound {
                body_hash: digest("body hash", bound.body_hash)?,
                target: SessionKey::decode(&bound.target)?,
                turn: turn(bound.turn)?,
                expires_at: TimestampMs(bound.expires_at_ms),
            }),
            record::Event::TurnAccepted(accepted) => Self::TurnAccepted((*accepted).try_into()?),
            record::Event::AttemptStarted(started) => {
                Self::AttemptStarted(domain::AttemptStarted { turn: turn(started.turn)?, attempt: started.attempt })
            }
            record::Event::Progress(progress) => Self::Progress(domain::Progress {
                turn: turn(progress.turn)?,
                attempt: progress.attempt,
                model: required(WHAT, "model", progress.model)?.into(),
                from: progress.from,
                tokens: progress.tokens,
            }),
            record::Event::Replied(replied) => Self::Replied(replied.try_into()?),
            record::Event::TurnFailed(failed) => Self::TurnFailed(domain::TurnFailed {
                turn: turn(failed.turn)?,
                attempt: failed.attempt,
                code: failed.code,
                message: failed.message,
            }),
            record::Event::Deleted(Deleted {}) => Self::Deleted,
            record::Event::Adopted(part) => Self::Adopted(part.try_into()?),
        })
    }
}

impl From<&domain::Item> for Item {
    fn from(item: &domain::Item) -> Self {
        Self { role: Role::from(item.role).into(), text: item.text.clone() }
    }
}

impl TryFrom<Item> for domain::Item {
    type Error = WireError;

    fn try_from(item: Item) -> Result<Self, WireError> {
        Ok(Self { role: item.role().try_into()?, text: item.text })
    }
}

impl From<&domain::ModelTag> for ModelTag {
    fn from(tag: &domain::ModelTag) -> Self {
        Self { name: tag.name.clone(), digest: tag.digest.clone(), numerics: tag.numerics.clone() }
    }
}

impl From<ModelTag> for domain::ModelTag {
    fn from(tag: ModelTag) -> Self {
        Self { name: tag.name, digest: tag.digest, numerics: tag.numerics }
    }
}

impl From<&domain::GenerationOptions> for Options {
    fn from(options: &domain::GenerationOptions) -> Self {
        Self {
            model: options.model.clone(),
            max_tokens: options.max_tokens,
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            stop: options.stop.clone(),
            format: options.format.as_ref().map(Into::into),
            tier: match options.tier {
                domain::ServiceTier::Default => Tier::Default,
                domain::ServiceTier::Flex => Tier::Flex,
                domain::ServiceTier::Priority => Tier::Priority,
            }
            .into(),
        }
    }
}

impl TryFrom<Options> for domain::GenerationOptions {
    type Error = WireError;

    fn try_from(options: Options) -> Result<Self, WireError> {
        Ok(Self {
            model: options.model,
            max_tokens: options.max_tokens,
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            stop: options.stop,
            // One from a newer release is as good as none: the answer is the same.
            tier: match Tier::try_from(options.tier) {
                Ok(Tier::Flex) => domain::ServiceTier::Flex,
                Ok(Tier::Priority) => domain::ServiceTier::Priority,
                Ok(Tier::Default) | Err(_) => domain::ServiceTier::Default,
            },
            format: options.format.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&domain::TurnAccepted> for TurnAccepted {
    fn from(accepted: &domain::TurnAccepted) -> Self {
        Self {
            turn: Some(accepted.turn.0.into()),
            event_id: accepted.event_id.clone(),
            body_hash: accepted.body_hash.map(|hash| hash.to_vec()),
            input: stored_items(&accepted.input),
            history: History::from(accepted.history).into(),
            options: Some((&accepted.options).into()),
            seed: accepted.seed,
            origin: Origin::from(accepted.origin).into(),
            regenerates: accepted.regenerates.map(|turn| turn.0.into()),
            deadline_ms: accepted.deadline.0,
            instructions: accepted.instructions.clone(),
        }
    }
}

impl TryFrom<TurnAccepted> for domain::TurnAccepted {
    type Error = WireError;

    fn try_from(accepted: TurnAccepted) -> Result<Self, WireError> {
        Ok(Self {
            history: accepted.history().try_into()?,
            origin: accepted.origin().try_into()?,
            turn: turn(accepted.turn)?,
            event_id: accepted.event_id,
            body_hash: accepted.body_hash.map(|hash| digest("body hash", hash)).transpose()?,
            input: items(accepted.input)?,
            options: required(WHAT, "options", accepted.options)?.try_into()?,
            seed: accepted.seed,
            regenerates: accepted.regenerates.map(|id| TurnId(id.into())),
            instructions: accepted.instructions,
            deadline: TimestampMs(accepted.deadline_ms),
        })
    }
}

impl From<&domain::Replied> for Replied {
    fn from(replied: &domain::Replied) -> Self {
        Self {
            turn: Some(replied.turn.0.into()),
            attempt: replied.attempt,
            text: replied.text.clone(),
            finish: Finish::from(replied.finish).into(),
            prompt_tokens: replied.usage.prompt_tokens,
            completion_tokens: replied.usage.completion_tokens,
            cached_tokens: replied.usage.cached_tokens,
            model: Some((&replied.model).into()),
        }
    }
}

impl TryFrom<Replied> for domain::Replied {
    type Error = WireError;

    fn try_from(replied: Replied) -> Result<Self, WireError> {
        Ok(Self {
            finish: replied.finish().try_into()?,
            turn: turn(replied.turn)?,
            attempt: replied.attempt,
            text: replied.text,
            usage: domain::Usage {
                prompt_tokens: replied.prompt_tokens,
                completion_tokens: replied.completion_tokens,
                cached_tokens: replied.cached_tokens,
            },
            model: required(WHAT, "model", replied.model)?.into(),
        })
    }
}
