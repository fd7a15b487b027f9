//! What every [`ShardLog`] promises, as checks that each adapter's tests run; a broken promise panics.
//!
//! The log under test must have at least three shards and injects no faults. [`events`] does the same for what is published.

pub mod events;

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use bytes::Bytes;
use futures_util::future::join_all;
use parlance_cluster_protocol::{Offset, ShardId};
use tokio::sync::oneshot;

use crate::{AppendOutcome, Bounds, LogError, MAX_ENTRY_BYTES, ShardLog, StoredEntry};

const SHARDS: [ShardId; 3] = [ShardId(0), ShardId(1), ShardId(2)];
/// Enough for everything that a check appends to one shard.
const ALL_BYTES: usize = 64 * 1024 * 1024;

/// Runs every check. `fresh` makes an empty log and hands out what opens it: each call opens the same log again, after the one before was
/// dropped.
///
/// # Panics
///
/// If the log breaks a promise.
pub async fn check_all<Open: AsyncFn() -> Arc<dyn ShardLog>>(fresh: impl Fn() -> Open) {
    starts_empty(&*fresh()().await).await;
    counts_offsets_per_shard(&*fresh()().await).await;
    reads_what_was_appended(&*fresh()().await).await;
    reads_by_size(&*fresh()().await).await;
    refuses_what_is_out_of_range(&*fresh()().await).await;
    calls_back_once_and_never_inline(fresh()().await).await;
    keeps_the_order_of_one_caller(&*fresh()().await).await;
    serves_many_callers(fresh()().await).await;
    takes_large_entries(&*fresh()().await).await;
    trims(&*fresh()().await).await;
    keeps_everything_over_a_reopen(fresh()).await;
    never_counts_back_after_a_trim(fresh()).await;
}

/// Appends and waits for the outcomes.
///
/// # Panics
///
/// If the log drops the callback.
pub async fn append(log: &dyn ShardLog, shard: ShardId, entries: Vec<Bytes>) -> Vec<AppendOutcome> {
    let (done, outcomes) = oneshot::channel();
    // A caller that has gone is no concern of the log.
    log.append(shard, entries, Box::new(move |outcomes| drop(done.send(outcomes))));
    outcomes.await.expect("the log calls every callback")
}

/// Appends one entry and waits for its offset.
///
/// # Panics
///
/// If the outcome is unknown.
pub async fn append_one(log: &dyn ShardLog, shard: ShardId, entry: impl Into<Bytes>) -> Offset {
    match append(log, shard, vec![entry.into()]).await[..] {
        [AppendOutcome::At(offset)] => offset,
        ref other => panic!("expected one offset, got {other:?}"),
    }
}

/// Everything that the shard holds.
///
/// # Panics
///
/// If the log cannot be read, or skips or repeats an offset.
pub async fn read_all(log: &dyn ShardLog, shard: ShardId) -> Vec<StoredEntry> {
    read_pages(log, shard, ALL_BYTES).await
}

async fn read_pages(log: &dyn ShardLog, shard: ShardId, max_bytes: usize) -> Vec<StoredEntry> {
    let Bounds { start, end } = bounds(log, shard).await;
    let mut entries: Vec<StoredEntry> = Vec::new();
    let mut from = start;
    while from < end {
        let page = log.read(shard, from, max_bytes).await.expect("the bounds can be read");
        assert!(!page.is_empty(), "a read below the end gives at least one entry");
        entries.extend(page);
        from = Offset(start.0 + entries.len() as u64);
    }
    assert!(entries.iter().map(|entry| entry.offset).eq((start.0..end.0).map(Offset)), "the offsets have no holes");
    entries
}

async fn bounds(log: &dyn ShardLog, shard: ShardId) -> Bounds {
    log.bounds(shard).await.expect("the bounds of a shard can be read")
}

fn numbered(numbers: std::ops::Range<u64>) -> Vec<Bytes> {
    numbers.map(|number| Bytes::from(format!("entry {number}"))).collect()
}

fn offsets(range: std::ops::Range<u64>) -> Vec<AppendOutcome> {
    range.map(|offset| AppendOutcome::At(Offset(offset))).collect()
}

async fn starts_empty(log: &dyn ShardLog) {
    assert!(usize::from(log.shards()) >= SHARDS.len());
    for shard in SHARDS {
        assert_eq!(bounds(log, shard).await, Bounds { start: Offset(0), end: Offset(0) });
        assert_eq!(log.read(shard, Offset(0), ALL_BYTES).await.expect("the end can be read"), []);
    }
    assert!(log.admission().is_ok());
}

async fn counts_offsets_per_shard(log: &dyn ShardLog) {
    let mut ends = BTreeMap::new();
    for round in 0..20 {
        for shard in SHARDS {
            let count = 1 + (round + u64::from(shard.0)) % 3;
            let end: &mut u64 = ends.entry(shard).or_default();
            assert_eq!(append(log, shard, numbered(0..count)).await, offsets(*end..*end + count));
            *end += count;
            assert_eq!(bounds(log, shard).await, Bounds { start: Offset(0), end: Offset(*end) });
        }
    }
    assert_eq!(append(log, SHARDS[0], Vec::new()).await, []);
}

async fn reads_what_was_appended(log: &dyn ShardLog) {
    let entry = |shard: ShardId, number: u64| match number {
        0 => Bytes::new(),
        1 => Bytes::from_iter(0..=255),
        _ => Bytes::from(format!("entry {number} of shard {shard}").repeat(1 + number as usize)),
    };
    for number in 0..30 {
        for shard in SHARDS {
            append_one(log, shard, entry(shard, number)).await;
        }
    }
    for shard in SHARDS {
        for from in [0, 1, 17, 29, 30] {
            let expected = (from..30).map(|number| StoredEntry { offset: Offset(number), bytes: entry(shard, number) });
            let read = log.read(shard, Offset(from), ALL_BYTES).await.expect("the offset is in range");
            assert_eq!(read, expected.collect::<Vec<_>>());
        }
    }
}

async fn reads_by_size(log: &dyn ShardLog) {
    let shard = SHARDS[1];
    for number in 0..40 {
        append_one(log, shard, vec![number; 1000]).await;
        append_one(log, SHARDS[2], vec![number; 10]).await;
    }
    assert_eq!(log.read(shard, Offset(7), 0).await.expect("in range").len(), 1);
    assert_eq!(log.read(shard, Offset(7), 1).await.expect("in range").len(), 1);
    let some = log.read(shard, Offset(7), 10_000).await.expect("in range").len();
    assert!((2..=20).contains(&some), "asked for 10,000 bytes, got {some} entries of 1,000");
    for max_bytes in [0, 1500, 4096, 10_000, 1_000_000] {
        let read = read_pages(log, shard, max_bytes).await;
        assert!(read.iter().map(|entry| entry.bytes[0]).eq(0..40));
    }
}

async fn refuses_what_is_out_of_range(log: &dyn ShardLog) {
    let (shard, unknown) = (SHARDS[0], ShardId(log.shards()));
    append(log, shard, numbered(0..3)).await;
    assert_eq!(log.read(shard, Offset(3), ALL_BYTES).await.expect("the end can be read"), []);
    for offset in [Offset(4), Offset(u64::MAX)] {
        assert_out_of_range(log.read(shard, offset, ALL_BYTES).await, offset);
        assert_out_of_range(log.trim(shard, offset).await, offset);
    }
    assert!(log.read(unknown, Offset(0), ALL_BYTES).await.is_err());
    assert!(log.bounds(unknown).await.is_err());
    assert_eq!(append(log, unknown, numbered(0..2)).await, [AppendOutcome::Unknown; 2]);
    assert_eq!(read_all(log, shard).await.len(), 3);
}

fn assert_out_of_range<T: std::fmt::Debug>(result: Result<T, LogError>, expected: Offset) {
    assert!(
        matches!(&result, Err(LogError::OutOfRange { offset, .. }) if *offset == expected),
        "expected {expected} to be out of range, got {result:?}"
    );
}

async fn calls_back_once_and_never_inline(log: Arc<dyn ShardLog>) {
    let (done, mut called) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..100 {
        let (done, appending) = (done.clone(), Arc::new(AtomicBool::new(true)));
        let (caller, still_appending) = (thread::current().id(), appending.clone());
        let callback = move |outcomes: Vec<AppendOutcome>| {
            let inline = thread::current().id() == caller && still_appending.load(Ordering::SeqCst);
            // The receiver outlives the log.
            let _ = done.send((number, outcomes.len(), inline));
        };
        log.append(SHARDS[number as usize % 3], numbered(0..number % 4), Box::new(callback));
        appending.store(false, Ordering::SeqCst);
    }
    drop((log, done));
    let mut calls = Vec::new();
    while let Some((number, outcomes, inline)) = called.recv().await {
        assert!(!inline, "a callback ran within the append");
        assert_eq!(outcomes as u64, number % 4);
        calls.push(number);
    }
    calls.sort_unstable();
    assert!(calls.into_iter().eq(0..100), "every callback runs exactly once, those of a log that is dropped too");
}

async fn keeps_the_order_of_one_caller(log: &dyn ShardLog) {
    let appends = (0..200).map(|number| append(log, SHARDS[2], numbered(3 * number..3 * number + 3)));
    // The futures append when first polled, which is in this order.
    for (number, outcomes) in (0..).zip(join_all(appends).await) {
        assert_eq!(outcomes, offsets(3 * number..3 * number + 3));
    }
    let read = read_all(log, SHARDS[2]).await;
    assert!(read.into_iter().map(|entry| entry.bytes).eq(numbered(0..600)));
}

async fn serves_many_callers(log: Arc<dyn ShardLog>) {
    let callers = (0..32u64).map(|caller| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut written = Vec::new();
            for number in 0..50 {
                let shard = SHARDS[((caller + number) % 3) as usize];
                let entry = Bytes::from(format!("caller {caller} number {number}"));
                written.push((shard, append_one(&*log, shard, entry.clone()).await, entry));
            }
            written
        })
    });
    let mut written = BTreeMap::new();
    for caller in join_all(callers).await {
        for (shard, offset, entry) in caller.expect("no caller panics") {
            assert!(written.insert((shard, offset), entry).is_none(), "two entries at {offset} of shard {shard}");
        }
    }
    let mut read = BTreeMap::new();
    for shard in SHARDS {
        read.extend(read_all(&*log, shard).await.into_iter().map(|entry| ((shard, entry.offset), entry.bytes)));
    }
    assert_eq!(read, written);
}

async fn takes_large_entries(log: &dyn ShardLog) {
    let shard = SHARDS[0];
    let large = |fill: u8, bytes: usize| Bytes::from(vec![fill; bytes]);
    append_one(log, shard, large(1, MAX_ENTRY_BYTES)).await;
    append_one(log, shard, large(2, 1)).await;
    let three = (3..6).map(|fill| large(fill, MAX_ENTRY_BYTES)).collect();
    assert_eq!(append(log, shard, three).await, offsets(2..5));
    assert_eq!(append(log, shard, vec![large(9, MAX_ENTRY_BYTES + 1)]).await, [AppendOutcome::Unknown]);
    append_one(log, shard, large(6, 1)).await;
    let read = read_pages(log, shard, 1024).await;
    let expected =
        [(1, MAX_ENTRY_BYTES), (2, 1), (3, MAX_ENTRY_BYTES), (4, MAX_ENTRY_BYTES), (5, MAX_ENTRY_BYTES), (6, 1)];
    assert!(read.into_iter().map(|entry| entry.bytes).eq(expected.map(|(fill, bytes)| large(fill, bytes))));
}

async fn trims(log: &dyn ShardLog) {
    for shard in SHARDS {
        append(log, shard, numbered(0..100)).await;
    }
    for before in [Offset(0), Offset(40), Offset(20), Offset(100)] {
        log.trim(SHARDS[0], before).await.expect("the offset is within the bounds");
        let Bounds { start, end } = bounds(log, SHARDS[0]).await;
        assert!(start <= before.max(Offset(40)) && end == Offset(100), "trimmed too much: {start} to {end}");
        let read = read_all(log, SHARDS[0]).await;
        assert!(read.into_iter().map(|entry| entry.bytes).eq(numbered(start.0..100)));
        if start > Offset(0) {
            assert_out_of_range(log.read(SHARDS[0], Offset(start.0 - 1), 1).await, Offset(start.0 - 1));
        }
    }
    assert_eq!(append_one(log, SHARDS[0], "next").await, Offset(100));
    assert_eq!(read_all(log, SHARDS[1]).await.len(), 100, "other shards are not touched");
}

async fn keeps_everything_over_a_reopen(open: impl AsyncFn() -> Arc<dyn ShardLog>) {
    for round in 0..3 {
        let log = open().await;
        for shard in SHARDS {
            let read = read_all(&*log, shard).await;
            assert!(read.into_iter().map(|entry| entry.bytes).eq(numbered(0..10 * round)));
            let appended = append(&*log, shard, numbered(10 * round..10 * round + 10)).await;
            assert_eq!(appended, offsets(10 * round..10 * round + 10));
        }
    }
}

async fn never_counts_back_after_a_trim(open: impl AsyncFn() -> Arc<dyn ShardLog>) {
    let mut oldest = Offset(0);
    for round in 0..4 {
        let log = open().await;
        let Bounds { start, end } = bounds(&*log, SHARDS[1]).await;
        assert!(start >= oldest && end == Offset(10 * round), "found {start} to {end} in round {round}");
        assert_eq!(append(&*log, SHARDS[1], numbered(0..10)).await, offsets(10 * round..10 * round + 10));
        log.trim(SHARDS[1], Offset(10 * round + 10)).await.expect("everything may be trimmed");
        oldest = bounds(&*log, SHARDS[1]).await.start;
    }
}
