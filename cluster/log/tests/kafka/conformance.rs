use std::sync::Arc;

use bytes::Bytes;
use parlance_cluster_log::{
    AppendOutcome, Bounds, LogError, MAX_ENTRY_BYTES, ShardLog,
    conformance::{self, append, append_one, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};

use crate::support::{SHARD, begin, fresh_topic, shared};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_in_kafka_keeps_the_promises_of_the_port() {
    conformance::check_all(|| {
        let topic = fresh_topic();
        async move || {
            let log: Arc<dyn ShardLog> = Arc::new(shared(&topic).await);
            log
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_too_large_is_unknown_and_holds_up_nothing() {
    let log = shared(&fresh_topic()).await;
    let entries = vec![Bytes::from_static(b"small"), Bytes::from(vec![1; MAX_ENTRY_BYTES + 1])];
    assert_eq!(append(&log, SHARD, entries).await, [AppendOutcome::Unknown; 2], "nothing of such an append is written");
    assert_eq!(append_one(&log, SHARD, "next").await, Offset(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_past_the_bound_are_unknown_at_once_and_the_others_land_in_order() {
    let log = shared(&fresh_topic()).await;
    let large = |fill: u8| Bytes::from(vec![fill; MAX_ENTRY_BYTES]);
    let mut outcomes: Vec<_> = (0..10).map(|fill| begin(&log, SHARD, vec![large(fill)])).collect();
    // By itself more than the 64 MiB that are in flight at most, however fast the broker is.
    let past = begin(&log, SHARD, vec![large(99); 65]);
    outcomes.extend((10..20).map(|fill| begin(&log, SHARD, vec![large(fill)])));
    assert_eq!(past.await.expect("it is called"), [AppendOutcome::Unknown; 65]);
    let mut landed = Vec::new();
    for (fill, outcome) in (0u8..).zip(outcomes) {
        if let [AppendOutcome::At(offset)] = outcome.await.expect("every callback is called")[..] {
            landed.push((offset, fill));
        }
    }
    assert!(!landed.is_empty() && landed.is_sorted());
    for (offset, fill) in landed {
        assert_eq!(log.read(SHARD, offset, 1).await.expect("it was acknowledged")[0].bytes, large(fill));
    }
    let none_of_it = read_all(&log, SHARD).await.iter().all(|entry| entry.bytes != large(99));
    assert!(none_of_it, "what was refused was never sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_is_out_of_range_for_everybody() {
    let topic = fresh_topic();
    let (log, other) = (shared(&topic).await, shared(&topic).await);
    append(&log, SHARD, vec![Bytes::from_static(b"entry"); 20]).await;
    assert_eq!(read_all(&other, SHARD).await.len(), 20);
    log.trim(SHARD, Offset(12)).await.expect("it is within the bounds");
    for log in [&log, &other] {
        assert_eq!(log.bounds(SHARD).await.expect("it is there"), Bounds { start: Offset(12), end: Offset(20) });
        let refused = log.read(SHARD, Offset(11), 1).await;
        assert!(matches!(refused, Err(LogError::OutOfRange { offset: Offset(11), .. })), "{refused:?}");
        assert_eq!(log.read(SHARD, Offset(12), 1000).await.expect("it is there").len(), 8);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_and_replays_read_one_shard_at_once() {
    let topic = fresh_topic();
    let (writer, log) = (shared(&topic).await, Arc::new(shared(&topic).await));
    let follow = |from: u64, to: u64, page: usize| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut next = from;
            while next < to {
                log.arrival(SHARD, Offset(next)).await.expect("it is open");
                for entry in log.read(SHARD, Offset(next), page).await.expect("it is in range") {
                    assert_eq!((entry.offset, &entry.bytes[..]), (Offset(next), next.to_string().as_bytes()));
                    next += 1;
                }
            }
        })
    };
    let readers = [follow(0, 3_000, 100), follow(0, 3_000, usize::MAX), follow(0, 2_000, 7)];
    for number in 0..3_000 {
        assert_eq!(append_one(&writer, SHARD, number.to_string()).await, Offset(number));
        if number == 1_000 {
            follow(0, 1_001, 1_000).await.expect("a late replay reads everything");
        }
    }
    for reader in readers {
        reader.await.expect("it reads everything, once and in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_arrival_is_told_without_being_asked_for_again() {
    let topic = fresh_topic();
    let (writer, log) = (shared(&topic).await, shared(&topic).await);
    let waiting = async {
        let mut waits = 0;
        while log.read(SHARD, Offset(0), 1).await.expect("it is in range").is_empty() {
            log.arrival(SHARD, Offset(0)).await.expect("it is open");
            waits += 1;
        }
        waits
    };
    let writing = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        append_one(&writer, SHARD, "news").await
    };
    let (waits, _) = tokio::join!(waiting, writing);
    assert!((1..=2).contains(&waits), "waited {waits} times for one entry");
    let unknown = log.arrival(ShardId(4), Offset(0)).await;
    assert!(matches!(unknown, Err(LogError::OutOfRange { .. })), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_counts_what_it_does() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Bound when the log is opened; the recorder is this thread's alone.
    let log = {
        let topic = fresh_topic();
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| metrics::with_local_recorder(&recorder, || runtime.block_on(shared(&topic))));
            opened.join().expect("it opens")
        })
    };
    append(&log, SHARD, vec![Bytes::from_static(b"12345"); 3]).await;
    log.read(SHARD, Offset(1), 1_000).await.expect("it is there");
    append(&log, SHARD, vec![Bytes::from(vec![0; MAX_ENTRY_BYTES + 1])]).await;
    let shown = handle.render();
    for line in [
        "parlance_log_entries_total 3",
        "parlance_log_written_bytes_total 15",
        "parlance_log_reads_total 1",
        "parlance_log_read_bytes_total 10",
        "parlance_log_appends_refused_total 1",
        "parlance_log_append_duration_seconds_count 1",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no {line} in\n{shown}");
    }
}
