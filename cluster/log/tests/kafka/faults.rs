//! One broker that dies, hangs or forgets.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parlance_cluster_log::{
    AppendOutcome, KafkaConfig, KafkaLog, LogError, ShardLog,
    conformance::{append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{Broker, SHARD, begin, config, fresh_topic, open, until, until_admission};

/// Short, so that a test need not wait long for a broker that is gone.
fn hasty(bootstrap: &str) -> KafkaConfig {
    KafkaConfig {
        append_timeout: Duration::from_millis(1_500),
        socket_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(2),
        admission_grace: Duration::from_secs(1),
        ..config(bootstrap, &fresh_topic())
    }
}

fn number(outcome: usize) -> Bytes {
    Bytes::from(format!("entry {outcome}"))
}

/// A new topic, or a broker that was away, may keep an append for longer than these logs wait.
async fn until_it_appends(log: &KafkaLog) {
    until_it_appends_to(log, ShardId(0)).await;
}

async fn until_it_appends_to(log: &KafkaLog, shard: ShardId) {
    until("an acknowledged append", async || {
        matches!(append(log, shard, vec![Bytes::from_static(b"again")]).await[..], [AppendOutcome::At(_)])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_broker_acknowledged_is_there_when_it_is_back() {
    let broker = Broker::start();
    let log = open(hasty(&broker.address())).await;
    until_it_appends(&log).await;
    let mut outcomes = Vec::new();
    for entry in 0..3_000 {
        outcomes.push(begin(&log, SHARD, vec![number(entry)]));
        if entry == 1_500 {
            // Some were acknowledged, and some are under way.
            while outcomes[100].try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            outcomes.remove(100);
            broker.signal("-KILL");
        }
    }
    let mut acknowledged = Vec::new();
    let (mut answers, mut unknown) = (0, 0);
    for (at, outcome) in outcomes.into_iter().enumerate() {
        // The one that was taken out above.
        let entry = if at < 100 { at } else { at + 1 };
        match outcome.await.expect("each callback is called, once")[..] {
            [AppendOutcome::At(offset)] => acknowledged.push((offset, number(entry))),
            [AppendOutcome::Unknown] => unknown += 1,
            ref other => panic!("{other:?}"),
        }
        answers += 1;
    }
    assert_eq!(answers, 2_999);
    assert!(unknown > 0 && !acknowledged.is_empty(), "{unknown} are unknown, {} are not", acknowledged.len());
    until("refusal of new turns", async || matches!(log.admission(), Err(LogError::Unreachable { .. }))).await;
    assert!(matches!(log.bounds(SHARD).await, Err(LogError::Unreachable { .. })));
    broker.restart();
    until_it_appends(&log).await;
    until_admission(&log).await;
    let stored = read_all(&log, SHARD).await;
    for (offset, entry) in acknowledged {
        assert_eq!(stored[offset.0 as usize].bytes, entry, "what was acknowledged at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_broker_gives_unknown_in_time_and_refuses_new_turns() {
    let broker = Broker::start();
    let config = hasty(&broker.address());
    let log = open(config.clone()).await;
    until_it_appends_to(&log, SHARD).await;
    broker.signal("-STOP");
    let begun = Instant::now();
    let first = begin(&log, SHARD, vec![number(0), number(1)]);
    let second = begin(&log, ShardId(2), vec![number(2)]);
    assert_eq!(first.await.expect("it is called"), [AppendOutcome::Unknown; 2]);
    assert_eq!(second.await.expect("it is called"), [AppendOutcome::Unknown]);
    assert!(begun.elapsed() < 2 * config.append_timeout, "{:?}", begun.elapsed());
    let read = log.read(SHARD, Offset(1), 1).await;
    assert!(matches!(read, Err(LogError::Unreachable { .. })), "{read:?}");
    until("refusal of new turns", async || matches!(log.admission(), Err(LogError::Unreachable { .. }))).await;
    broker.signal("-CONT");
    until_admission(&log).await;
    until_it_appends(&log).await;
    assert_eq!(append(&log, SHARD, vec![number(3)]).await.len(), 1);
    // What was unknown may have landed, in order and once.
    let stored = read_all(&log, SHARD).await;
    let late: Vec<_> = stored.iter().filter(|entry| [number(0), number(1)].contains(&entry.bytes)).collect();
    assert!(late.len() <= 2 && late.is_sorted_by_key(|entry| &entry.bytes), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_log_answers_all_that_was_asked_of_it() {
    let broker = Broker::start();
    let log = open(hasty(&broker.address())).await;
    broker.signal("-STOP");
    let outcomes: Vec<_> = (0..100).map(|entry| begin(&log, ShardId(entry % 4), vec![number(entry.into())])).collect();
    drop(log);
    for outcome in outcomes {
        assert_eq!(outcome.await.expect("it is called"), [AppendOutcome::Unknown]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_lost_its_end_shuts_and_the_others_go_on() {
    let broker = Broker::start();
    let config = hasty(&broker.address());
    let (log, silent) = (open(config.clone()).await, open(config.clone()).await);
    until_it_appends(&log).await;
    for shard in [SHARD, ShardId(2)] {
        append(&log, shard, (0..10).map(number).collect()).await;
        assert_eq!(read_all(&silent, shard).await.len(), 10);
    }
    broker.stop();
    broker.lose(&config.topic, SHARD);
    broker.restart();
    until_it_appends(&log).await;
    // One learns it from the offset that its append gets, the other by looking.
    until("the end of the shard", async || {
        assert_eq!(append(&log, SHARD, vec![number(10)]).await, [AppendOutcome::Unknown]);
        matches!(log.bounds(SHARD).await, Err(LogError::Truncated { shard: SHARD, known: Offset(10), .. }))
    })
    .await;
    for log in [&log, &silent] {
        let read = log.read(SHARD, Offset(10), 1).await;
        assert!(matches!(read, Err(LogError::Truncated { known: Offset(10), .. })), "{read:?}");
        assert!(matches!(log.read(SHARD, Offset(0), 1).await, Err(LogError::Truncated { .. })), "it stays shut");
        assert_eq!(
            append_one(log, ShardId(2), "goes on").await.0,
            log.bounds(ShardId(2)).await.expect("it is open").end.0 - 1
        );
    }
    // Opened again, it knows nothing that could be contradicted, and whoever replays it starts over.
    assert!(open(config).await.bounds(SHARD).await.is_ok());
}
