//! Reads rows back.

use std::ops::ControlFlow;

use ::scylla::{
    deserialize::row::DeserializeRow,
    response::{PagingState, query_result::QueryResult},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use parlance_cluster_protocol::{SessionKey, ShardId, TurnId};
use uuid::Uuid;

use super::{
    CONCURRENT, ScyllaRecords,
    changes::{BUCKETS, key, number, position_of, turn_id},
    fault,
    statements::{Bind, Statement},
};
use crate::{At, Order, RecordsError, StoredItem, StoredSession};

/// Keys that are read of a bucket at once, at most.
const MAX_BUCKET_KEYS: usize = 1_000;

impl ScyllaRecords {
    pub(super) async fn read_checkpoint(&self, shard: ShardId) -> Result<Option<At<Bytes>>, RecordsError> {
        let rows = self.rows(Statement::Checkpoint, vec![Bind::Int(shard.0.into())], 1).await?;
        rows.into_iter().next().map(|row| at("checkpoint", row)).transpose()
    }

    pub(super) async fn read_states(&self, sessions: Vec<Bytes>) -> Result<Vec<Option<At<Bytes>>>, RecordsError> {
        let state = async |session| {
            let rows = self.rows(Statement::State, vec![Bind::Bytes(session)], 1).await?;
            rows.into_iter().next().map(|row| at("session", row)).transpose()
        };
        stream::iter(sessions).map(state).buffered(CONCURRENT).try_collect().await
    }

    pub(super) async fn read_items(
        &self,
        session: Bytes,
        from: Option<u64>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<StoredItem>, RecordsError> {
        let (statement, from) = match order {
            Order::Ascending => (Statement::ItemsUp, from.unwrap_or(0)),
            Order::Descending => (Statement::ItemsDown, from.unwrap_or(u64::MAX)),
        };
        let values = vec![Bind::Bytes(session), number(from), most(limit)];
        let rows: Vec<(Vec<u8>, Vec<u8>)> = self.rows(statement, values, limit).await?;
        let item = |(number, item): (Vec<u8>, Vec<u8>)| {
            let index = number.try_into().map_err(|_| damaged("item", "its number is not one of 8 bytes"))?;
            Ok(StoredItem { index: u64::from_be_bytes(index), item: item.into() })
        };
        rows.into_iter().map(item).collect()
    }

    pub(super) async fn read_dedupe(&self, session: Bytes, limit: usize) -> Result<Vec<(String, Bytes)>, RecordsError> {
        let values = vec![Bind::Bytes(session), most(limit)];
        let rows: Vec<(String, Vec<u8>)> = self.rows(Statement::Dedupe, values, limit).await?;
        Ok(rows.into_iter().map(|(id, outcome)| (id, outcome.into())).collect())
    }

    /// The session that a turn names is asked whether it still has it: an erasure reaches the session's rows at once, and the turn's own row
    /// only where it was there already.
    pub(super) async fn read_turn(&self, tenant: String, turn: TurnId) -> Result<Option<SessionKey>, RecordsError> {
        let rows: Vec<(Vec<u8>,)> = self.rows(Statement::Turn, vec![Bind::Text(tenant), turn_id(turn)], 1).await?;
        let Some((session,)) = rows.into_iter().next() else { return Ok(None) };
        let session = Bytes::from(session);
        let values = vec![Bind::Bytes(session.clone()), turn_id(turn)];
        let turns: Vec<(Uuid,)> = self.rows(Statement::TurnOfSession, values, 1).await?;
        if turns.is_empty() { Ok(None) } else { decode(&session).map(Some) }
    }

    pub(super) async fn turns_of(&self, session: &SessionKey) -> Result<Vec<Uuid>, RecordsError> {
        let values = vec![Bind::Bytes(key(session))];
        let turns: Vec<(Uuid,)> = self.rows(Statement::TurnsOfSession, values, usize::MAX).await?;
        Ok(turns.into_iter().map(|(turn,)| turn).collect())
    }

    /// Sessions in order, out of the buckets in which they lie.
    pub(super) async fn read_sessions(
        &self,
        tenant: String,
        channel: String,
        after: Option<Bytes>,
        limit: usize,
    ) -> Result<Vec<StoredSession>, RecordsError> {
        let mut found = Vec::new();
        // All keys of the channel begin with this, and none ends there.
        let names = [&tenant, &channel].map(|name| [&(name.len() as u16).to_be_bytes(), name.as_bytes()].concat());
        let mut after = after.unwrap_or_default().max(names.concat().into());
        loop {
            let wanted = limit.saturating_sub(found.len());
            if wanted == 0 {
                return Ok(found);
            }
            // Somewhat more than a bucket's share, so that one round mostly does.
            let share = (wanted / usize::from(BUCKETS / 2) + 8).min(wanted).min(MAX_BUCKET_KEYS);
            let keys = |bucket| self.listed(&tenant, &channel, bucket, after.clone(), share);
            let buckets = stream::iter(0..BUCKETS).map(keys).buffered(CONCURRENT).try_collect().await?;
            let Merged { mut keys, is_last } = merge(buckets, share);
            keys.truncate(wanted);
            let Some(last) = keys.last().cloned() else { return Ok(found) };
            let states = self.read_states(keys.clone()).await?;
            for (key, state) in keys.iter().zip(states) {
                // One without a state is being written for the first time.
                found.extend(state.map(|state| Ok((decode(key)?, state))).transpose()?);
            }
            if is_last && keys.len() < wanted {
                return Ok(found);
            }
            after = last;
        }
    }

    async fn listed(
        &self,
        tenant: &str,
        channel: &str,
        bucket: u16,
        after: Bytes,
        limit: usize,
    ) -> Result<Vec<Bytes>, RecordsError> {
        let names = [Bind::Text(tenant.to_owned()), Bind::Text(channel.to_owned()), Bind::Int(bucket.into())];
        let values = names.into_iter().chain([Bind::Bytes(after), most(limit)]).collect();
        let rows: Vec<(Vec<u8>,)> = self.rows(Statement::Listed, values, limit).await?;
        Ok(rows.into_iter().map(|(session,)| session.into()).collect())
    }

    /// Up to `limit` rows, page by page.
    async fn rows<R>(&self, statement: Statement, values: Vec<Bind>, limit: usize) -> Result<Vec<R>, RecordsError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let statement = self.statements.get(statement);
        let (mut rows, mut state) = (Vec::new(), PagingState::start());
        loop {
            let page = || self.session.execute_single_page(statement, &values, state.clone());
            let (page, next) = self.reach.ask(fault::of_request, page).await?;
            rows.extend(typed::<R>(page)?);
            match next.into_paging_control_flow() {
                ControlFlow::Continue(next) if rows.len() < limit => state = next,
                _ => break,
            }
        }
        rows.truncate(limit);
        Ok(rows)
    }
}

/// What the buckets hold next, in order.
#[derive(Debug, PartialEq, Eq)]
struct Merged {
    keys: Vec<Bytes>,
    /// Nothing lies behind them.
    is_last: bool,
}

/// Merges what each bucket holds next, up to `share` keys of each. A bucket that gave so many may have more: what lies behind its last key in
/// others has to wait.
fn merge(buckets: Vec<Vec<Bytes>>, share: usize) -> Merged {
    let full = buckets.iter().filter(|keys| keys.len() >= share);
    let horizon = full.filter_map(|keys| keys.last().cloned()).min();
    let mut keys: Vec<_> = buckets.into_iter().flatten().collect();
    keys.sort_unstable();
    if let Some(horizon) = &horizon {
        keys.retain(|key| key <= horizon);
    }
    Merged { keys, is_last: horizon.is_none() }
}

/// The rows of an answer.
pub(super) fn typed<R>(answer: QueryResult) -> Result<Vec<R>, RecordsError>
where
    R: for<'f> DeserializeRow<'f, 'f>,
{
    let rows = answer.into_rows_result().map_err(|error| damaged("answer", error.to_string()))?;
    let rows = rows.rows::<R>().map_err(|error| damaged("table", error.to_string()))?;
    rows.collect::<Result<_, _>>().map_err(|error| damaged("row", error.to_string()))
}

fn at(what: &'static str, (value, timestamp): (Vec<u8>, i64)) -> Result<At<Bytes>, RecordsError> {
    let position = position_of(timestamp).ok_or_else(|| damaged(what, "its timestamp is not parlance's"))?;
    Ok(At { position, value: value.into() })
}

fn decode(session: &[u8]) -> Result<SessionKey, RecordsError> {
    SessionKey::decode(session).map_err(|error| damaged("session key", error.to_string()))
}

fn damaged(what: &'static str, reason: impl Into<String>) -> RecordsError {
    RecordsError::Damaged { what, reason: reason.into() }
}

fn most(limit: usize) -> Bind {
    Bind::Int(i32::try_from(limit).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What [`ScyllaRecords::read_sessions`] does, with buckets in memory.
    fn paged(buckets: &[Vec<Bytes>], share: usize) -> Vec<Bytes> {
        let mut found: Vec<Bytes> = Vec::new();
        loop {
            let next = |bucket: &Vec<Bytes>| -> Vec<Bytes> {
                bucket.iter().filter(|key| found.last().is_none_or(|last| *key > last)).take(share).cloned().collect()
            };
            let Merged { keys, is_last } = merge(buckets.iter().map(next).collect(), share);
            found.extend(keys);
            if is_last {
                return found;
            }
        }
    }

    proptest! {
        #[test]
        fn buckets_are_merged_in_order_without_loss(
            keys in prop::collection::btree_map(0u16..500, 0usize..4, 0..200),
            share in 1usize..20,
        ) {
            let mut buckets = vec![Vec::new(); 4];
            for (key, bucket) in &keys {
                buckets[*bucket].push(Bytes::copy_from_slice(&key.to_be_bytes()));
            }
            let expected: Vec<_> = keys.keys().map(|key| Bytes::copy_from_slice(&key.to_be_bytes())).collect();
            prop_assert_eq!(paged(&buckets, share), expected);
        }
    }
}
