//! The bytes of the local log. All numbers are little-endian; every unit begins on a [`BLOCK`], so that writing a batch never
//! touches a byte that was synced before.
//!
//! ```text
//! meta      magic 8 | version u32 | shards u16 | 0 u16 | log id u128 | created ms u64 | crc u32
//!
//! segment   header | batch | batch | … | zeros
//! header    magic 8 | version u32 | shards u16 | 0 u16 | log id u128 | sequence u32 | 0 u32 | first batch u64
//!           | per shard: next offset u64, trimmed below u64 | crc u32 | zeros up to a block
//! batch     magic u32 | crc u32 | log id u128 | number u64 | body length u32 | frames u32 | body | zeros up to a block
//! body      frame | frame | …
//! frame     crc u32 | length u32 | offset u64 | shard u16 | 0 u16 | payload
//! ```
//!
//! A CRC-32C covers what follows it in its batch or frame, and what precedes it in meta and header. The batch's one tells a whole
//! batch from a torn one; the frame's one lets a single entry be read and checked without its neighbours. The random log
//! id keeps bytes of another log, and payloads that look like a batch, from being taken for one.

use parlance_cluster_protocol::{Offset, ShardId};

/// Unit of placement: the page of the file system, which is the least it writes.
pub(super) const BLOCK: usize = 4096;
/// The newest layout that this build reads and the one that it writes.
pub(super) const VERSION: u32 = 1;
/// More shards than slots make no sense.
pub(super) const MAX_SHARDS: u16 = parlance_cluster_protocol::SLOTS;
/// A batch is closed once it holds this much; more would delay the first of its appends for nothing.
pub(super) const BATCH_TARGET_BYTES: usize = 1024 * 1024;
/// The most that one batch, hence one append, may hold, frame headers included.
pub(super) const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

pub(super) const META_BYTES: usize = 44;
pub(super) const BATCH_HEADER_BYTES: usize = 40;
pub(super) const FRAME_HEADER_BYTES: usize = 20;
const SEGMENT_FIXED_BYTES: usize = 48;
const SHARD_MARK_BYTES: usize = 16;

const META_MAGIC: [u8; 8] = *b"parlmeta";
const SEGMENT_MAGIC: [u8; 8] = *b"parlsegm";
const BATCH_MAGIC: [u8; 4] = *b"pbat";

/// Why bytes are not what they should be.
#[derive(Debug)]
pub(super) enum Flaw {
    /// A later layout.
    Newer(u32),
    /// Anything else.
    Bad(&'static str),
}

/// The identity of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) shards: u16,
    pub(super) log_id: u128,
    pub(super) created_ms: u64,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(META_BYTES);
        bytes.extend_from_slice(&META_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.shards).to_le_bytes());
        bytes.extend_from_slice(&self.log_id.to_le_bytes());
        bytes.extend_from_slice(&self.created_ms.to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        check_preamble(bytes, META_MAGIC, META_BYTES)?;
        if bytes.len() != META_BYTES {
            return Err(Flaw::Bad("it is longer than it should be"));
        }
        check_trailing_crc(bytes)?;
        let meta = Self { shards: u16_at(bytes, 12), log_id: u128_at(bytes, 16), created_ms: u64_at(bytes, 32) };
        if meta.shards == 0 || meta.shards > MAX_SHARDS {
            return Err(Flaw::Bad("its number of shards is out of range"));
        }
        Ok(meta)
    }
}

/// What a segment's header records about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ShardMark {
    /// The first offset that can lie in this segment: all before are in earlier ones, deleted or not.
    pub(super) next: Offset,
    /// The shard's trim point when the segment was begun.
    pub(super) trimmed: Offset,
}

/// The first bytes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: u128,
    pub(super) sequence: u32,
    pub(super) first_batch: u64,
    /// One per shard.
    pub(super) marks: Vec<ShardMark>,
}

impl SegmentHeader {
    /// The room that a header takes, in whole blocks.
    pub(super) fn room(shards: u16) -> usize {
        round_up(SEGMENT_FIXED_BYTES + usize::from(shards) * SHARD_MARK_BYTES + 4)
    }

    /// Appends the header to `out`, padded to its room.
    pub(super) fn encode_into(&self, shards: u16, out: &mut Vec<u8>) {
        debug_assert_eq!(self.marks.len(), usize::from(shards));
        let start = out.len();
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::from(shards).to_le_bytes());
        out.extend_from_slice(&self.log_id.to_le_bytes());
        out.extend_from_slice(&u64::from(self.sequence).to_le_bytes());
        out.extend_from_slice(&self.first_batch.to_le_bytes());
        for mark in &self.marks {
            out.extend_from_slice(&mark.next.0.to_le_bytes());
            out.extend_from_slice(&mark.trimmed.0.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(start + Self::room(shards), 0);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        check_preamble(bytes, SEGMENT_MAGIC, SEGMENT_FIXED_BYTES)?;
        let shards = u16_at(bytes, 12);
        let end = SEGMENT_FIXED_BYTES + usize::from(shards) * SHARD_MARK_BYTES;
        let Some(covered) = bytes.get(..end + 4) else {
            return Err(Flaw::Bad("its header is incomplete"));
        };
        check_trailing_crc(covered)?;
        let mark = |raw: &[u8]| ShardMark { next: Offset(u64_at(raw, 0)), trimmed: Offset(u64_at(raw, 8)) };
        Ok(Self {
            log_id: u128_at(bytes, 16),
            sequence: u32_at(bytes, 32),
            first_batch: u64_at(bytes, 40),
            marks: covered[SEGMENT_FIXED_BYTES..end].chunks_exact(SHARD_MARK_BYTES).map(mark).collect(),
        })
    }
}

/// Begins a batch at the end of `out`; [`finish_batch`] completes it once its frames are there. Returns where it begins.
pub(super) fn begin_batch(log_id: u128, number: u64, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&BATCH_MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&log_id.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    start
}

/// Appends a frame to the batch that was begun in `out`.
pub(super) fn push_frame(shard: ShardId, offset: Offset, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&length(payload.len()).to_le_bytes());
    out.extend_from_slice(&offset.0.to_le_bytes());
    out.extend_from_slice(&u32::from(shard.0).to_le_bytes());
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Completes the batch that begins at `start` and ends with `out`, padded to whole blocks.
pub(super) fn finish_batch(start: usize, frames: u32, out: &mut Vec<u8>) {
    let body = length(out.len() - start - BATCH_HEADER_BYTES);
    out[start + 32..start + 36].copy_from_slice(&body.to_le_bytes());
    out[start + 36..start + 40].copy_from_slice(&frames.to_le_bytes());
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + round_up(out.len() - start), 0);
}

/// A whole batch.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) number: u64,
    /// The room that it takes, in whole blocks.
    pub(super) room: usize,
    frames: u32,
    body: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The batch that begins at `at`.
    pub(super) fn decode(bytes: &'a [u8], at: usize, log_id: u128) -> Result<Self, &'static str> {
        let bytes = bytes.get(at..).unwrap_or_default();
        if bytes.len() < BATCH_HEADER_BYTES || bytes[..4] != BATCH_MAGIC || u128_at(bytes, 8) != log_id {
            return Err("no batch begins here");
        }
        let body = u32_at(bytes, 32) as usize;
        if body > MAX_BODY_BYTES {
            return Err("a batch is too long");
        }
        let covered = bytes.get(8..BATCH_HEADER_BYTES + body).ok_or("a batch is incomplete")?;
        if crc32c::crc32c(covered) != u32_at(bytes, 4) {
            return Err("the checksum of a batch does not match");
        }
        Ok(Self {
            number: u64_at(bytes, 24),
            room: round_up(BATCH_HEADER_BYTES + body),
            frames: u32_at(bytes, 36),
            body: &covered[BATCH_HEADER_BYTES - 8..],
        })
    }

    /// Its frames, each with its distance from the beginning of the batch.
    pub(super) fn frames(&self) -> Result<Vec<(usize, Frame<'a>)>, &'static str> {
        let mut frames = Vec::new();
        let mut at = 0;
        while at < self.body.len() {
            let frame = Frame::decode(&self.body[at..])?;
            frames.push((BATCH_HEADER_BYTES + at, frame));
            at += frame.bytes();
        }
        if frames.len() == self.frames as usize { Ok(frames) } else { Err("a batch holds another number of frames") }
    }
}

/// One entry with its place in its shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) shard: ShardId,
    pub(super) offset: Offset,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, &'static str> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err("a frame is incomplete");
        }
        let payload = u32_at(bytes, 4) as usize;
        let covered = bytes.get(4..FRAME_HEADER_BYTES + payload).ok_or("a frame is incomplete")?;
        if crc32c::crc32c(covered) != u32_at(bytes, 0) {
            return Err("the checksum of a frame does not match");
        }
        Ok(Self {
            shard: ShardId(u16_at(bytes, 16)),
            offset: Offset(u64_at(bytes, 8)),
            payload: &covered[FRAME_HEADER_BYTES - 4..],
        })
    }
}

impl Frame<'_> {
    /// The room that it takes.
    pub(super) fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload.len()
    }
}

/// `bytes` rounded up to whole blocks.
pub(super) fn round_up(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK)
}

fn check_preamble(bytes: &[u8], magic: [u8; 8], least: usize) -> Result<(), Flaw> {
    if bytes.len() < 12 {
        return Err(Flaw::Bad("it is too short"));
    }
    if bytes[..8] != magic {
        return Err(Flaw::Bad("it is not a file of this log"));
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        newer if newer > VERSION => return Err(Flaw::Newer(newer)),
        _ => return Err(Flaw::Bad("its version is 0")),
    }
    if bytes.len() < least { Err(Flaw::Bad("it is too short")) } else { Ok(()) }
}

fn check_trailing_crc(bytes: &[u8]) -> Result<(), Flaw> {
    let end = bytes.len() - 4;
    if crc32c::crc32c(&bytes[..end]) == u32_at(bytes, end) {
        Ok(())
    } else {
        Err(Flaw::Bad("its checksum does not match"))
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("appends are bounded by MAX_BODY_BYTES")
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(field(bytes, at))
}
