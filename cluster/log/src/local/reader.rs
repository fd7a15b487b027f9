//! Reading entries back from the segments, each checked by its own checksum.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use bytes::{Bytes, BytesMut};
use parlance_cluster_protocol::{Offset, ShardId};

use super::{
    Shared,
    directory::unusable,
    format::{FRAME_HEADER_BYTES, Frame},
    index::Place,
};
use crate::{LogError, StoredEntry};

/// Reads the entries of `shard` that lie at `places`, the first of which is `from`. They share one allocation.
pub(super) fn read(
    shared: &Shared,
    shard: ShardId,
    from: Offset,
    places: &[Place],
) -> Result<Vec<StoredEntry>, LogError> {
    let bytes = read_places(shared, places).map_err(|(segment, e)| {
        // Trimmed since the places were looked up.
        if e.kind() == io::ErrorKind::NotFound && shared.index().is_trimmed(shard, from) {
            return LogError::OutOfRange { shard, offset: from };
        }
        unusable(&shared.directory.segment_path(segment), e)
    })?;
    let mut at = 0;
    let entry = |(offset, place): (u64, &Place)| {
        let frame = at..at + place.length as usize;
        at = frame.end;
        entry(&bytes, frame, shard, Offset(offset)).map_err(|reason| LogError::Damaged {
            path: shared.directory.segment_path(place.segment),
            at: u64::from(place.at),
            reason: reason.into(),
        })
    };
    (from.0..).zip(places).map(entry).collect()
}

fn entry(bytes: &Bytes, frame: Range<usize>, shard: ShardId, offset: Offset) -> Result<StoredEntry, &'static str> {
    let found = Frame::decode(&bytes[frame.clone()])?;
    if (found.shard, found.offset) != (shard, offset) {
        return Err("another entry lies here");
    }
    Ok(StoredEntry { offset, bytes: bytes.slice(frame.start + FRAME_HEADER_BYTES..frame.end) })
}

/// The frames, one behind the other; where frames are neighbours on disk too, one system call reads them.
fn read_places(shared: &Shared, places: &[Place]) -> Result<Bytes, (u32, io::Error)> {
    let mut bytes = BytesMut::zeroed(places.iter().map(|place| place.length as usize).sum());
    let mut rest = &mut bytes[..];
    let mut open: Option<(u32, File)> = None;
    for run in places.chunk_by(|a, b| a.segment == b.segment && a.at + a.length == b.at) {
        let (segment, at) = (run[0].segment, u64::from(run[0].at));
        let file = match open.take() {
            Some((same, file)) if same == segment => file,
            _ => File::open(shared.directory.segment_path(segment)).map_err(|e| (segment, e))?,
        };
        let (wanted, behind) = rest.split_at_mut(run.iter().map(|place| place.length as usize).sum());
        file.read_exact_at(wanted, at).map_err(|e| (segment, e))?;
        rest = behind;
        open = Some((segment, file));
    }
    Ok(bytes.freeze())
}
