//! Entries of a shard's log.
//!
//! ```text
//! Claim{node, nonce, prev_epoch}     a process asks to own the shard; valid iff prev_epoch is the latest valid claim
//! Data{epoch, seq, slot, payload}    what the owner records; valid iff its epoch is current and seq follows
//! Release{epoch, seq, to}            the owner's last entry: it hands the shard to `to`
//! ```

use bytes::Bytes;
use prost::Message;

use crate::{Epoch, FORMAT_VERSION, Nonce, Offset, Seq, SlotId, TimestampMs, WireError, wire};

const WHAT: &str = "log entry";

/// A process asks to own the shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The claiming node's name, for people; ownership rests on the nonce alone.
    pub node: String,
    /// Random, fresh for every claim.
    pub nonce: Nonce,
    /// The epoch that the claimant read as current; `None` on a shard without any valid claim.
    pub prev_epoch: Option<Epoch>,
    /// When the claimant wrote it.
    pub at: TimestampMs,
}

/// What the owner of a shard records about one of its slots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Data {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Exactly one more than the previous valid data entry of the epoch; the first is 0.
    pub seq: Seq,
    /// The slot that the payload belongs to.
    pub slot: SlotId,
    /// An encoded [`SessionRecord`](crate::SessionRecord); opaque to the log.
    pub payload: Bytes,
}

/// The owner hands the shard over; nothing of its epoch is valid behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Release {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Numbered like a data entry.
    pub seq: Seq,
    /// The node that is asked to claim next.
    pub to: String,
}

/// One entry of a shard's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// See [`Claim`].
    Claim(Claim),
    /// See [`Data`].
    Data(Data),
    /// See [`Release`].
    Release(Release),
}

impl Entry {
    /// The entry as bytes, in the newest format.
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Claim(claim) => wire::entry::Kind::Claim(wire::Claim {
                node: claim.node.clone(),
                nonce: Some(claim.nonce.into()),
                prev_epoch: claim.prev_epoch.map(Into::into),
                at_ms: claim.at.0,
            }),
            Self::Data(data) => wire::entry::Kind::Data(wire::Data {
                epoch: Some(data.epoch.into()),
                seq: data.seq.0,
                slot: u32::from(data.slot.0),
                payload: data.payload.clone(),
            }),
            Self::Release(release) => wire::entry::Kind::Release(wire::Release {
                epoch: Some(release.epoch.into()),
                seq: release.seq.0,
                to: release.to.clone(),
            }),
        };
        wire::Entry { format: FORMAT_VERSION, kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads an entry of any known format.
    ///
    /// # Errors
    ///
    /// See [`WireError`]; a reader that gets one must stop, never skip.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let entry = wire::Entry::decode(bytes).map_err(|e| WireError::malformed(WHAT, e.to_string()))?;
        wire::check_format(WHAT, entry.format)?;
        Ok(match entry.kind.ok_or(WireError::UnknownKind { what: WHAT })? {
            wire::entry::Kind::Claim(claim) => Self::Claim(Claim {
                node: claim.node,
                nonce: wire::required(WHAT, "nonce", claim.nonce)?.into(),
                prev_epoch: claim.prev_epoch.map(TryInto::try_into).transpose()?,
                at: TimestampMs(claim.at_ms),
            }),
            wire::entry::Kind::Data(data) => Self::Data(Data {
                epoch: wire::required(WHAT, "epoch", data.epoch)?.try_into()?,
                seq: Seq(data.seq),
                slot: wire::slot(WHAT, data.slot)?,
                payload: data.payload,
            }),
            wire::entry::Kind::Release(release) => Self::Release(Release {
                epoch: wire::required(WHAT, "epoch", release.epoch)?.try_into()?,
                seq: Seq(release.seq),
                to: release.to,
            }),
        })
    }
}

impl From<Nonce> for wire::Id128 {
    fn from(nonce: Nonce) -> Self {
        Self::from(nonce.0)
    }
}

impl From<wire::Id128> for Nonce {
    fn from(id: wire::Id128) -> Self {
        Self(id.into())
    }
}

impl From<Epoch> for wire::Epoch {
    fn from(epoch: Epoch) -> Self {
        Self { offset: epoch.offset.0, nonce: Some(epoch.nonce.into()) }
    }
}

impl TryFrom<wire::Epoch> for Epoch {
    type Error = WireError;

    fn try_from(epoch: wire::Epoch) -> Result<Self, WireError> {
        let nonce = wire::required("epoch", "nonce", epoch.nonce)?.into();
        Ok(Self { offset: Offset(epoch.offset), nonce })
    }
}
