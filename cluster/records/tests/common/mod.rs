//! What the tests of the embedded store share: one session whose items are numbered like the positions that wrote them.

use bytes::Bytes;
use parlance_cluster_protocol::{Offset, Position, SessionKey, ShardId};
use parlance_cluster_records::{Change, ChangeKind, LocalOptions, LocalRecords, Order, RecordStore, RecordsError, Row};

/// Small, so that rows soon lie in tables.
pub(crate) const SMALL: LocalOptions =
    LocalOptions { block_cache_bytes: 1 << 20, memtable_bytes: 64 << 10, reserve_bytes: 0 };

pub(crate) fn session() -> SessionKey {
    SessionKey::api("tenant", "chat")
}

/// The record at `position`: the session's state and one item. Some are longer than a page, so that a lost page can lie
/// within a single value.
pub(crate) fn record(position: u64) -> Vec<Change> {
    let text = Bytes::from(format!("{position} ").repeat(if position % 8 == 3 { 5_000 } else { 40 }));
    let rows = [
        Row::Item { session: session(), index: position, item: text.clone() },
        Row::Session { session: session(), state: text },
    ];
    rows.map(|row| Change { position: Position(position), kind: ChangeKind::Put(row) }).into()
}

/// Makes everything written so far durable; the checkpoint is the position reached.
pub(crate) async fn checkpoint(store: &LocalRecords, position: u64) -> Result<(), RecordsError> {
    store.put_checkpoint(ShardId(0), Offset(position), position.to_string().into()).await
}

/// How many records the store holds and the position of its checkpoint. It must hold the state as of one moment: all
/// records up to some position, nothing of any later one, and no checkpoint ahead of them.
pub(crate) async fn held(store: &LocalRecords) -> Result<(u64, Option<u64>), RecordsError> {
    let items = store.items(&session(), None, Order::Ascending, usize::MAX).await?;
    let state = store.session(&session()).await?;
    let count = items.len() as u64;
    for (position, item) in (0..).zip(items) {
        assert_eq!(item.index, position, "no record is missing before another");
        assert_eq!(record(position)[0].kind, put_item(item.index, item.item));
    }
    assert_eq!(state.map(|state| state.position.0 + 1).unwrap_or_default(), count, "the state is as old as the items");
    let checkpoint = store.checkpoint(ShardId(0)).await?.map(|text| number(&text));
    assert!(checkpoint.is_none_or(|checkpoint| checkpoint < count), "{checkpoint:?} stands without its rows");
    Ok((count, checkpoint))
}

fn put_item(index: u64, item: Bytes) -> ChangeKind {
    ChangeKind::Put(Row::Item { session: session(), index, item })
}

pub(crate) fn number(text: &[u8]) -> u64 {
    String::from_utf8_lossy(text).trim().parse().expect("a checkpoint is its position")
}
