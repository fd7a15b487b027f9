//! The simulated log behind the port: a faultless one keeps every promise of the port, a failing one fails by its seed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use parlance_cluster_log::{
    AppendOutcome, EventMessage, EventPublisher, LogError, ShardLog,
    conformance::{self, append, append_one},
    sim::{Fault, Faults, SimCluster, SimEvents, SimLog},
};
use parlance_cluster_protocol::{Offset, ShardId};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

const SHARD: ShardId = ShardId(1);
/// Every delay of a single append is shorter.
const LONG: Duration = Duration::from_secs(2);

fn entries(count: u8) -> Vec<Bytes> {
    (0..count).map(|number| Bytes::from(vec![number])).collect()
}

fn failing(fault: Fault) -> SimCluster {
    SimCluster::new(3, 2, Faults::each(0).with(fault, 1_000))
}

fn landed(cluster: &SimCluster) -> usize {
    cluster.entries(SHARD).len()
}

#[tokio::test]
async fn keeps_the_promises_of_the_port() {
    conformance::check_all(|| {
        let cluster = SimCluster::new(1, 4, Faults::NONE);
        async move || {
            let log: Arc<dyn ShardLog> = Arc::new(cluster.open());
            log
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_append_is_unknown_and_never_lands() {
    let cluster = failing(Fault::Lost);
    let start = Instant::now();
    assert_eq!(append(&cluster.open(), SHARD, entries(1)).await, [AppendOutcome::Unknown]);
    assert!(start.elapsed() >= Duration::from_millis(100), "it was given up when it timed out");
    sleep(LONG).await;
    assert_eq!(landed(&cluster), 0);
    assert_eq!(cluster.counts().of(Fault::Lost), 1);
}

#[tokio::test(start_paused = true)]
async fn an_append_whose_answer_is_lost_is_unknown_and_there() {
    let cluster = failing(Fault::AnswerLost);
    assert_eq!(append(&cluster.open(), SHARD, entries(2)).await, [AppendOutcome::Unknown; 2]);
    assert_eq!(landed(&cluster), 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_append_is_unknown_and_lands_afterwards() {
    let cluster = failing(Fault::LandedLate);
    assert_eq!(append(&cluster.open(), SHARD, entries(1)).await, [AppendOutcome::Unknown]);
    assert_eq!(landed(&cluster), 0);
    sleep(LONG).await;
    assert_eq!(landed(&cluster), 1);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_append_is_told_its_first_offset() {
    let cluster = failing(Fault::Duplicated);
    assert_eq!(append_one(&cluster.open(), SHARD, "x").await, Offset(0));
    sleep(LONG).await;
    assert_eq!(landed(&cluster), 2);
}

#[tokio::test(start_paused = true)]
async fn delayed_appends_are_overtaken() {
    let cluster = failing(Fault::Delayed);
    let log = cluster.open();
    let outcomes = futures_util::future::join_all((0..8).map(|_| append(&log, SHARD, entries(1)))).await;
    let offsets: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(offsets.iter().all(|outcome| matches!(outcome, AppendOutcome::At(_))), "{offsets:?}");
    assert!(offsets != (0..8).map(|at| AppendOutcome::At(Offset(at))).collect::<Vec<_>>(), "none was overtaken");
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_misses_the_end_and_nothing_else() {
    let cluster = failing(Fault::StaleRead);
    let log = cluster.open();
    append(&log, SHARD, entries(20)).await;
    let read = log.read(SHARD, Offset(0), usize::MAX).await.expect("it is open");
    assert!((12..20).contains(&read.len()), "{} of 20", read.len());
    cluster.set_faults(Faults::NONE);
    assert_eq!(log.read(SHARD, Offset(0), usize::MAX).await.expect("it is open").len(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_a_paused_process_sent_lands_when_it_goes_on() {
    let cluster = failing(Fault::Crash);
    let (zombie, other) = (cluster.open(), cluster.open());
    let (done, sent) = oneshot::channel();
    // The receiver lives to the end of the test.
    zombie.append(SHARD, entries(1), Box::new(|outcomes| drop(done.send(outcomes))));
    zombie.pause(LONG);
    assert_eq!(append_one(&other, SHARD, "first").await, Offset(0));
    assert_eq!(sent.await.expect("it is called"), [AppendOutcome::At(Offset(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_process_hears_nothing_and_half_of_what_it_sent_lands() {
    let cluster = SimCluster::new(5, 2, Faults::each(0));
    let told = Arc::new(Mutex::new(0));
    for _ in 0..100 {
        let log: SimLog = cluster.open();
        let told = told.clone();
        log.append(SHARD, entries(1), Box::new(move |_| *told.lock().expect("nobody panics") += 1));
        log.crash();
        assert!(matches!(log.read(SHARD, Offset(0), 1).await, Err(LogError::Closed)));
        assert!(matches!(log.admission(), Err(LogError::Closed)));
    }
    sleep(LONG).await;
    assert_eq!(*told.lock().expect("nobody panics"), 0);
    assert!((20..80).contains(&landed(&cluster)), "{} of 100", landed(&cluster));
    assert_eq!(cluster.counts().of(Fault::Crash), 100);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_faults() {
    async fn storm(seed: u64) -> (Vec<Vec<AppendOutcome>>, usize) {
        let cluster = SimCluster::new(seed, 2, Faults::each(100));
        let log = cluster.open();
        let outcomes = futures_util::future::join_all((0..200).map(|_| append(&log, SHARD, entries(3)))).await;
        sleep(LONG).await;
        (outcomes, landed(&cluster))
    }
    let once = storm(9).await;
    assert_eq!(once, storm(9).await);
    assert_ne!(once, storm(10).await);
    assert!(once.0.iter().flatten().any(|outcome| *outcome == AppendOutcome::Unknown));
}

#[tokio::test]
async fn events_in_memory_keep_the_promises_of_the_port() {
    let events = SimEvents::new(conformance::events::SHARDS);
    conformance::events::check_all(Arc::new(events.clone()), async |shard| events.published(shard)).await;
}

#[tokio::test]
async fn a_call_that_is_told_to_fail_publishes_the_beginning() {
    let events = SimEvents::new(2);
    let event = |key: &'static str| EventMessage { key: key.into(), payload: Bytes::new() };
    let batch = vec![event("a"), event("b"), event("c")];
    events.set_failing(true);
    events.publish(SHARD, batch.clone()).await.expect_err("it fails");
    assert_eq!((events.published(SHARD), events.failures()), (batch[..1].to_vec(), 1));
    events.set_failing(false);
    events.publish(SHARD, batch.clone()).await.expect("it does not");
    assert_eq!(events.published(SHARD)[1..], batch);
}
