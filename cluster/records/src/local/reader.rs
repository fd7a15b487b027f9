//! Reads the rows.

use std::ops::Bound;

use bytes::Bytes;
use fjall::{Iter, Slice};
use parlance_cluster_protocol::{SessionKey, ShardId, TurnId};

use super::{
    cell,
    keys::{self, Kind, SessionPart},
    store::{Rows, read_error},
};
use crate::{At, Order, RecordsError, StoredItem, StoredSession};

pub(super) fn checkpoint(rows: &Rows, shard: ShardId) -> Result<Option<Bytes>, RecordsError> {
    Ok(get(rows, "checkpoint", &keys::checkpoint(shard))?.map(|at| at.value))
}

pub(super) fn session(rows: &Rows, session: &SessionPart) -> Result<Option<At<Bytes>>, RecordsError> {
    get(rows, "session", &session.row(Kind::State))
}

pub(super) fn items(
    rows: &Rows,
    session: &SessionPart,
    from: Option<u64>,
    order: Order,
    limit: usize,
) -> Result<Vec<StoredItem>, RecordsError> {
    let prefix = session.row(Kind::Item);
    let item = |(key, cell): (Slice, Slice)| {
        let item = value("item", &cell)?.value;
        Ok(StoredItem { index: keys::index_behind(&prefix, &key)?, item })
    };
    match order {
        Order::Ascending => {
            let range = session.item(from.unwrap_or(0))..=session.item(u64::MAX);
            pairs(rows.keyspace.range(range)).take(limit).map(|pair| item(pair?)).collect()
        }
        Order::Descending => {
            let range = session.item(0)..=session.item(from.unwrap_or(u64::MAX));
            pairs(rows.keyspace.range(range).rev()).take(limit).map(|pair| item(pair?)).collect()
        }
    }
}

pub(super) fn dedupe(rows: &Rows, session: &SessionPart, limit: usize) -> Result<Vec<(String, Bytes)>, RecordsError> {
    let prefix = session.row(Kind::Dedupe);
    let row = |(key, cell): (Slice, Slice)| Ok((keys::id_behind(&prefix, &key)?, value("dedupe", &cell)?.value));
    pairs(rows.keyspace.prefix(&prefix)).take(limit).map(|pair| row(pair?)).collect()
}

pub(super) fn turns(
    rows: &Rows,
    session: &SessionPart,
    after: Option<TurnId>,
    limit: usize,
) -> Result<Vec<TurnId>, RecordsError> {
    let prefix = session.row(Kind::TurnOfSession);
    let start = after.map_or(Bound::Included(prefix.clone()), |turn| Bound::Excluded(session.turn(turn)));
    let range: Iter = rows.keyspace.range((start, Bound::Excluded(keys::behind(&prefix))));
    pairs(range).take(limit).map(|pair| keys::turn_behind(&prefix, &pair?.0)).collect()
}

pub(super) fn turn(rows: &Rows, key: &[u8]) -> Result<Option<SessionKey>, RecordsError> {
    get(rows, "turn", key)?.map(|at| keys::decode_session(&at.value)).transpose()
}

pub(super) fn sessions(
    rows: &Rows,
    prefix: &[u8],
    after: Option<&SessionPart>,
    limit: usize,
) -> Result<Vec<StoredSession>, RecordsError> {
    let end = keys::behind(prefix);
    let start = match after.map(|after| after.row(Kind::State)) {
        Some(after) if after >= end => return Ok(Vec::new()),
        Some(after) if after.as_slice() >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix.to_vec()),
    };
    let row = |(key, cell): (Slice, Slice)| Ok((keys::session_of_state(&key)?, value("session", &cell)?));
    let range: Iter = rows.keyspace.range((start, Bound::Excluded(end)));
    pairs(range).take(limit).map(|pair| row(pair?)).collect()
}

fn get(rows: &Rows, what: &'static str, key: &[u8]) -> Result<Option<At<Bytes>>, RecordsError> {
    let cell = rows.keyspace.get(key).map_err(|error| read_error(&error))?;
    cell.map(|cell| value(what, &cell)).transpose()
}

/// The value is copied: a slice would keep its whole block in memory.
fn value(what: &'static str, cell: &[u8]) -> Result<At<Bytes>, RecordsError> {
    let (position, value) = cell::decode(what, cell)?;
    Ok(At { position, value: Bytes::copy_from_slice(value) })
}

fn pairs(rows: impl Iterator<Item = fjall::Guard>) -> impl Iterator<Item = Result<(Slice, Slice), RecordsError>> {
    rows.map(|row| row.into_inner().map_err(|error| read_error(&error)))
}
