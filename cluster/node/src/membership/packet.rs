//! The bytes of a datagram between members: foca's layout, filled with messages of Protocol Buffers.
//!
//! ```text
//! length, Header | u16 count | length, Update | length, Update | …
//! ```
//!
//! Field numbers are for ever; what is not known is skipped. Whatever comes from another node is bounded and checked before foca sees it.

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec, Header, Message, State};
use thiserror::Error;

use super::record::{Duty, MAX_ADDRESS_BYTES, Member, Versions};
use crate::{
    identity::{BootId, Incarnation},
    placement::Weight,
};

/// The longest datagram.
pub const MAX_DATAGRAM_BYTES: usize = 64 * 1024;

/// The longest message within one: a header with three records.
const MAX_MESSAGE_BYTES: usize = 2_048;

/// Bytes that are no datagram of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a datagram between members: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// A datagram, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header<Member>,
    pub(super) updates: Vec<foca::Member<Member>>,
}

impl Packet {
    /// Reads a whole datagram.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_DATAGRAM_BYTES {
            return Err(Malformed("too long"));
        }
        let header = Wire.decode_header(&mut bytes)?;
        let count = if bytes.has_remaining() { bytes.try_get_u16().map_err(|_| Malformed("cut off"))? } else { 0 };
        let updates = (0..count).map(|_| Wire.decode_member(&mut bytes)).collect::<Result<_, _>>()?;
        if bytes.has_remaining() { Err(Malformed("more than it says")) } else { Ok(Self { header, updates }) }
    }

    /// The datagram; what does not fit is left out.
    pub(super) fn encode(&self) -> Bytes {
        let mut buffer = Vec::new().limit(MAX_DATAGRAM_BYTES);
        let mut updates = Vec::new();
        let written = Wire.encode_header(&self.header, &mut buffer).is_ok();
        debug_assert!(written, "a header is shorter than a datagram");
        let room = buffer.remaining_mut().saturating_sub(2);
        let mut room = (&mut updates).limit(room);
        let fit = self
            .updates
            .iter()
            .take(u16::MAX.into())
            .take_while(|update| Wire.encode_member(update, &mut room).is_ok());
        let count = fit.count() as u16;
        buffer.put_u16(count);
        buffer.put_slice(&updates);
        buffer.into_inner().into()
    }

    /// All records that it names.
    pub(super) fn records(&self) -> impl Iterator<Item = &Member> {
        let third = match &self.header.message {
            Message::PingReq { target: third, .. }
            | Message::IndirectPing { origin: third, .. }
            | Message::IndirectAck { target: third, .. }
            | Message::ForwardedAck { origin: third, .. } => Some(third),
            _ => None,
        };
        [&self.header.src, &self.header.dst].into_iter().chain(third).chain(self.updates.iter().map(foca::Member::id))
    }
}

/// foca's codec.
pub(super) struct Wire;

impl Codec<Member> for Wire {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Member>, buf: impl BufMut) -> Result<(), Malformed> {
        write(&HeaderWire::from(header), buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Member>, Malformed> {
        read::<HeaderWire>(buf)?.try_into()
    }

    fn encode_member(&mut self, member: &foca::Member<Member>, buf: impl BufMut) -> Result<(), Malformed> {
        write(&UpdateWire::from(member), buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Member>, Malformed> {
        read::<UpdateWire>(buf)?.try_into()
    }
}

/// Writes nothing where the whole does not fit.
fn write(message: &impl prost::Message, mut buf: impl BufMut) -> Result<(), Malformed> {
    message.encode_length_delimited(&mut buf).map_err(|_| Malformed("no room"))
}

fn read<M: prost::Message + Default>(mut buf: impl Buf) -> Result<M, Malformed> {
    let length = prost::decode_length_delimiter(&mut buf).map_err(|_| Malformed("cut off"))?;
    if length > MAX_MESSAGE_BYTES || length > buf.remaining() {
        return Err(Malformed("a length out of bounds"));
    }
    M::decode(buf.copy_to_bytes(length)).map_err(|_| Malformed("not Protocol Buffers"))
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderWire {
    #[prost(message, optional, tag = "1")]
    source: Option<MemberWire>,
    /// How often the sender has refuted a suspicion in this revision.
    #[prost(uint32, tag = "2")]
    refutations: u32,
    #[prost(message, optional, tag = "3")]
    destination: Option<MemberWire>,
    #[prost(uint32, tag = "4")]
    kind: u32,
    #[prost(uint32, tag = "5")]
    probe: u32,
    /// Who is probed, or for whom.
    #[prost(message, optional, tag = "6")]
    third: Option<MemberWire>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateWire {
    #[prost(message, optional, tag = "1")]
    member: Option<MemberWire>,
    #[prost(uint32, tag = "2")]
    refutations: u32,
    #[prost(uint32, tag = "3")]
    state: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberWire {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(fixed64, tag = "2")]
    boot: u64,
    #[prost(uint32, tag = "3")]
    revision: u32,
    #[prost(uint32, tag = "4")]
    duty: u32,
    #[prost(string, tag = "5")]
    address: String,
    #[prost(string, tag = "6")]
    zone: String,
    #[prost(uint32, tag = "7")]
    weight: u32,
    #[prost(uint32, tag = "8")]
    oldest: u32,
    #[prost(uint32, tag = "9")]
    newest: u32,
}

impl From<&Header<Member>> for HeaderWire {
    fn from(header: &Header<Member>) -> Self {
        let (kind, probe, third) = match &header.message {
            Message::Ping(probe) => (1, *probe, None),
            Message::Ack(probe) => (2, *probe, None),
            Message::PingReq { target, probe_number } => (3, *probe_number, Some(target)),
            Message::IndirectPing { origin, probe_number } => (4, *probe_number, Some(origin)),
            Message::IndirectAck { target, probe_number } => (5, *probe_number, Some(target)),
            Message::ForwardedAck { origin, probe_number } => (6, *probe_number, Some(origin)),
            Message::Announce => (7, 0, None),
            Message::Feed => (8, 0, None),
            Message::Gossip => (9, 0, None),
            Message::Broadcast => (10, 0, None),
            Message::TurnUndead => (11, 0, None),
        };
        Self {
            source: Some((&header.src).into()),
            refutations: header.src_incarnation.into(),
            destination: Some((&header.dst).into()),
            kind,
            probe: probe.into(),
            third: third.map(Into::into),
        }
    }
}

impl TryFrom<HeaderWire> for Header<Member> {
    type Error = Malformed;

    fn try_from(wire: HeaderWire) -> Result<Self, Malformed> {
        let probe_number = u8::try_from(wire.probe).map_err(|_| Malformed("the number of a probe"))?;
        let third = || record(wire.third.clone());
        let message = match wire.kind {
            1 => Message::Ping(probe_number),
            2 => Message::Ack(probe_number),
            3 => Message::PingReq { target: third()?, probe_number },
            4 => Message::IndirectPing { origin: third()?, probe_number },
            5 => Message::IndirectAck { target: third()?, probe_number },
            6 => Message::ForwardedAck { origin: third()?, probe_number },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            11 => Message::TurnUndead,
            _ => return Err(Malformed("the kind of a message")),
        };
        let (src, dst) = (record(wire.source)?, record(wire.destination)?);
        Ok(Self { src, src_incarnation: refutations(wire.refutations)?, dst, message })
    }
}

impl From<&foca::Member<Member>> for UpdateWire {
    fn from(update: &foca::Member<Member>) -> Self {
        let state = match update.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        };
        Self { member: Some(update.id().into()), refutations: update.incarnation().into(), state }
    }
}

impl TryFrom<UpdateWire> for foca::Member<Member> {
    type Error = Malformed;

    fn try_from(wire: UpdateWire) -> Result<Self, Malformed> {
        let state = match wire.state {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            _ => return Err(Malformed("the state of a member")),
        };
        Ok(Self::new(record(wire.member)?, refutations(wire.refutations)?, state))
    }
}

impl From<&Member> for MemberWire {
    fn from(member: &Member) -> Self {
        let duty = match member.duty {
            Duty::Serving => 1,
            Duty::Draining => 2,
            Duty::Leaving => 3,
        };
        Self {
            name: member.node.name.to_string(),
            boot: member.node.boot.0,
            revision: member.revision,
            duty,
            address: member.address.clone(),
            zone: member.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
            weight: member.weight.get(),
            oldest: member.versions.oldest,
            newest: member.versions.newest,
        }
    }
}

fn refutations(count: u32) -> Result<u16, Malformed> {
    u16::try_from(count).map_err(|_| Malformed("the number of refutations"))
}

fn record(wire: Option<MemberWire>) -> Result<Member, Malformed> {
    let wire = wire.ok_or(Malformed("no record"))?;
    let duty = match wire.duty {
        1 => Duty::Serving,
        2 => Duty::Draining,
        3 => Duty::Leaving,
        _ => return Err(Malformed("a duty")),
    };
    let name = wire.name.parse().map_err(|_| Malformed("a name"))?;
    let zone = match wire.zone.as_str() {
        "" => None,
        zone => Some(zone.parse().map_err(|_| Malformed("a zone"))?),
    };
    if wire.address.len() > MAX_ADDRESS_BYTES || !wire.address.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Malformed("an address"));
    }
    if wire.oldest > wire.newest {
        return Err(Malformed("a range of versions"));
    }
    Ok(Member {
        node: Incarnation { name, boot: BootId(wire.boot) },
        revision: wire.revision,
        duty,
        address: wire.address,
        zone,
        weight: Weight::new(wire.weight).ok_or(Malformed("a weight"))?,
        versions: Versions { oldest: wire.oldest, newest: wire.newest },
    })
}
