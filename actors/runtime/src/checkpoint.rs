//! A shard's checkpoint: where a new owner starts to replay, what was open there, and up to where events are published.

use std::collections::BTreeMap;

use bytes::Bytes;
use parlance_cluster_log::ownership::LogPoint;
use parlance_cluster_protocol::{
    Epoch, Nonce, Offset, Seq, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnId, WireError,
};
use prost::Message;

const WHAT: &str = "shard checkpoint";
const FORMAT_VERSION: u32 = 1;

/// The turns of a shard that were accepted and have no final answer: the obligations of its owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OpenTurns(BTreeMap<TurnId, OpenTurn>);

/// One accepted turn without a final answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenTurn {
    pub(crate) session: SessionKey,
    pub(crate) deadline: TimestampMs,
}

impl OpenTurns {
    /// Follows one committed record.
    pub(crate) fn apply(&mut self, record: &SessionRecord) {
        match &record.event {
            SessionEvent::TurnAccepted(accepted) => {
                let turn = OpenTurn { session: record.session.clone(), deadline: accepted.deadline };
                self.0.insert(accepted.turn, turn);
            }
            SessionEvent::Replied(replied) => drop(self.0.remove(&replied.turn)),
            SessionEvent::TurnFailed(failed) => drop(self.0.remove(&failed.turn)),
            // Only the last part names turns: until then the session owes nobody anything here.
            SessionEvent::Adopted(part) => self.0.extend(
                part.open
                    .iter()
                    .map(|open| (open.turn, OpenTurn { session: record.session.clone(), deadline: open.deadline })),
            ),
            _ => {}
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TurnId, &OpenTurn)> {
        self.0.iter().map(|(turn, open)| (*turn, open))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The reader's state: everything before `point.next` is in the record store.
    pub(crate) point: LogPoint,
    /// What was open at `point`.
    pub(crate) open: OpenTurns,
    /// Up to where events are published, which may be before or behind `point`; `None` where nobody publishes them.
    pub(crate) published: Option<LogPoint>,
}

impl Checkpoint {
    /// The beginning of a log.
    pub(crate) fn start() -> Self {
        Self { point: LogPoint::START, open: OpenTurns::default(), published: None }
    }

    /// From where on events are to be published: where nobody did so far, none of what is before `point` are.
    pub(crate) fn cursor(&self) -> LogPoint {
        self.published.unwrap_or(self.point)
    }

    /// From where on the log is needed by whoever begins here.
    pub(crate) fn needed_from(&self) -> Offset {
        self.point.next.min(self.cursor().next)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let open = self.open.iter().map(|(turn, open)| WireOpenTurn {
            turn: turn.0.to_be_bytes().to_vec(),
            session: open.session.encode(),
            deadline_ms: open.deadline.0,
        });
        let WirePoint { next, epoch, seq } = self.point.into();
        let published = self.published.map(Into::into);
        let stored = WireCheckpoint { format: FORMAT_VERSION, next, epoch, seq, open: open.collect(), published };
        stored.encode_to_vec().into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let stored = WireCheckpoint::decode(bytes).map_err(|e| malformed(e.to_string()))?;
        if stored.format > FORMAT_VERSION {
            return Err(WireError::Newer { what: WHAT, found: stored.format, supported: FORMAT_VERSION });
        }
        let mut open = BTreeMap::new();
        for turn in stored.open {
            let session = SessionKey::decode(&turn.session)?;
            open.insert(TurnId(id(turn.turn)?), OpenTurn { session, deadline: TimestampMs(turn.deadline_ms) });
        }
        let point = WirePoint { next: stored.next, epoch: stored.epoch, seq: stored.seq }.try_into()?;
        let published = stored.published.map(TryInto::try_into).transpose()?;
        Ok(Self { point, open: OpenTurns(open), published })
    }
}

fn malformed(reason: String) -> WireError {
    WireError::Malformed { what: WHAT, reason }
}

fn id(bytes: Vec<u8>) -> Result<u128, WireError> {
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| malformed("an id is not 16 bytes".into()))?;
    Ok(u128::from_be_bytes(bytes))
}

impl From<LogPoint> for WirePoint {
    fn from(point: LogPoint) -> Self {
        let epoch = |epoch: Epoch| WireEpoch { offset: epoch.offset.0, nonce: epoch.nonce.0.to_be_bytes().to_vec() };
        Self { next: point.next.0, epoch: point.epoch.map(epoch), seq: point.seq.map(|seq| seq.0) }
    }
}

impl TryFrom<WirePoint> for LogPoint {
    type Error = WireError;

    fn try_from(point: WirePoint) -> Result<Self, WireError> {
        let epoch = |epoch: WireEpoch| Ok(Epoch { offset: Offset(epoch.offset), nonce: Nonce(id(epoch.nonce)?) });
        let epoch = point.epoch.map(epoch).transpose()?;
        Ok(Self { next: Offset(point.next), epoch, seq: point.seq.map(Seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireCheckpoint {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    next: u64,
    #[prost(message, optional, tag = "3")]
    epoch: Option<WireEpoch>,
    #[prost(uint64, optional, tag = "4")]
    seq: Option<u64>,
    #[prost(message, repeated, tag = "5")]
    open: Vec<WireOpenTurn>,
    /// Since events are published. A build that does not know it forgets it, and they are published from `next` on.
    #[prost(message, optional, tag = "6")]
    published: Option<WirePoint>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WirePoint {
    #[prost(uint64, tag = "1")]
    next: u64,
    #[prost(message, optional, tag = "2")]
    epoch: Option<WireEpoch>,
    #[prost(uint64, optional, tag = "3")]
    seq: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireEpoch {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(bytes = "vec", tag = "2")]
    nonce: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireOpenTurn {
    #[prost(bytes = "vec", tag = "1")]
    turn: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    session: Vec<u8>,
    #[prost(uint64, tag = "3")]
    deadline_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Checkpoint {
        let session = SessionKey::api("default", "demo");
        let open = OpenTurn { session, deadline: TimestampMs(99) };
        let epoch = Epoch { offset: Offset(7), nonce: Nonce(u128::MAX / 3) };
        Checkpoint {
            point: LogPoint { next: Offset(42), epoch: Some(epoch), seq: Some(Seq(34)) },
            open: OpenTurns(BTreeMap::from([(TurnId(5), open)])),
            published: None,
        }
    }

    /// The example as it was stored before events were published.
    const OLD: &[u8] =
        b"\x08\x01\x10\x2a\x1a\x14\x08\x07\x12\x10UUUUUUUUUUUUUUUU\x20\x22\x2a\x2e\x0a\x10\0\0\0\0\0\0\0\0\
        \0\0\0\0\0\0\0\x05\x12\x18\0\x07default\0\x03api\0\0\0\x04demo\0\0\x18\x63";

    fn published() -> Checkpoint {
        let point = LogPoint { next: Offset(17), epoch: example().point.epoch, seq: None };
        Checkpoint { published: Some(point), ..example() }
    }

    #[test]
    fn checkpoints_round_trip() {
        for checkpoint in [Checkpoint::start(), example(), published()] {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    }

    #[test]
    fn old_checkpoints_have_events_published_from_their_end() {
        let old = Checkpoint::decode(OLD).expect("it decodes");
        assert_eq!((old.cursor(), old.needed_from()), (old.point, Offset(42)));
        assert_eq!(old, example());
        assert_eq!(published().needed_from(), Offset(17), "the log is needed from the cursor on");
    }

    #[test]
    fn newer_and_damaged_checkpoints_are_refused() {
        let newer = WireCheckpoint { format: 2, ..WireCheckpoint::default() }.encode_to_vec();
        assert!(matches!(Checkpoint::decode(&newer), Err(WireError::Newer { found: 2, .. })));
        let encoded = example().encode();
        assert!(Checkpoint::decode(&encoded[..encoded.len() - 1]).is_err());
    }
}
