//! A node adopts what another's log holds.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{keyed, log, options, records, reply, request, say, session, start, stop};
use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_actors_runtime::{
    ItemQuery, Limits, Node, NodeOptions, Refusal,
    adoption::{Extent, Source, catch_up},
};
use parlance_cluster_log::{LocalLog, LocalLogOptions, LogError};
use parlance_cluster_protocol::{Offset, SessionKey, ShardId, TurnId};
use parlance_cluster_records::{At, Change, LocalRecords, Order, RecordStore, RecordsError, StoredItem, StoredSession};

const SCRIPT: &str = "scripted:ttft_ms=0,token_ms=0,tokens=8";
const ALL: Extent = Extent { items_below: u64::MAX, keys_after_ms: 0 };

/// A store that takes nothing, so that everything is in the log alone.
struct Full(Arc<dyn RecordStore>);

fn full() -> BoxFuture<'static, Result<(), RecordsError>> {
    async { Err(RecordsError::Unavailable("it takes nothing".into())) }.boxed()
}

impl RecordStore for Full {
    fn write(&self, _changes: Vec<Change>) -> BoxFuture<'_, Result<(), RecordsError>> {
        full()
    }

    fn put_checkpoint(&self, _: ShardId, _: Offset, _: Bytes) -> BoxFuture<'_, Result<(), RecordsError>> {
        full()
    }

    fn checkpoint(&self, shard: ShardId) -> BoxFuture<'_, Result<Option<Bytes>, RecordsError>> {
        self.0.checkpoint(shard)
    }

    fn states(&self, sessions: &[&SessionKey]) -> BoxFuture<'_, Result<Vec<Option<At<Bytes>>>, RecordsError>> {
        self.0.states(sessions)
    }

    fn items(
        &self,
        session: &SessionKey,
        from: Option<u64>,
        order: Order,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredItem>, RecordsError>> {
        self.0.items(session, from, order, limit)
    }

    fn dedupe(&self, session: &SessionKey, limit: usize) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, RecordsError>> {
        self.0.dedupe(session, limit)
    }

    fn turn(&self, tenant: &str, turn: TurnId) -> BoxFuture<'_, Result<Option<SessionKey>, RecordsError>> {
        self.0.turn(tenant, turn)
    }

    fn sessions(
        &self,
        tenant: &str,
        channel: &str,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredSession>, RecordsError>> {
        self.0.sessions(tenant, channel, after, limit)
    }
}

/// What the sessions of a directory say, told by a node whose records took nothing.
async fn unprojected(data: &std::path::Path) -> (String, String) {
    let options = options(data, SCRIPT);
    let node = start(NodeOptions { records: Arc::new(Full(options.records.clone())), ..options }).await;
    let first = say(&node, &session("one"), "hello").await;
    let accepted = node.sessions().submit(&session("one"), keyed("again", "key", 1)).await.expect("accepted");
    let second = reply(accepted).await.text.clone();
    say(&node, &session("two"), "hello").await;
    stop(node).await;
    (first, second)
}

async fn open(data: &std::path::Path) -> Source {
    let log = log(data, 4);
    // The node that was just stopped may hold them for another moment.
    drop(records(data));
    let records = Arc::new(LocalRecords::open(data.join("records")).expect("the records open"));
    catch_up(&*log, &*records, &Limits::default()).await.expect("the log is read");
    catch_up(&*log, &*records, &Limits::default()).await.expect("and once more");
    Source::new(records, &Limits::default())
}

async fn texts(node: &Node, session: &SessionKey) -> Vec<String> {
    let query = ItemQuery { from: None, descending: false, limit: 100 };
    let items = node.sessions().items(session, query).await.expect("readable").expect("there is such a session");
    items.into_iter().map(|item| item.text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_alone_is_adopted_too() {
    let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (first, second) = unprojected(from.path()).await;
    let source = open(from.path()).await;
    let node = start(options(to.path(), SCRIPT)).await;
    let sessions = source.sessions(None, 100).await.expect("readable");
    assert_eq!(sessions.len(), 3, "two sessions and a key: {sessions:?}");
    assert_eq!(source.sessions(Some(&sessions[0]), 1).await.expect("readable")[0].key(), sessions[1].key());
    for session in &sessions {
        assert_eq!(node.sessions().compare(&session.key(), ALL).await.map(|there| there.adopted), Ok(None));
        let mut parts = source.parts(session).await.expect("readable");
        while let Some(part) = parts.next().await.expect("readable") {
            node.sessions().adopt(part.clone()).await.expect("adopted");
            node.sessions().adopt(part).await.expect("the same again changes nothing");
        }
        let there = node.sessions().compare(&session.key(), ALL).await.expect("readable");
        let here = source.compare(session, ALL).await.expect("readable");
        assert_eq!((there.adopted, there.changed), (Some(parts.digest()), false));
        assert_eq!((there.items, there.keys, there.digest), (here.items, here.keys, here.digest));
    }
    let expected = ["hello".to_owned(), first, "again".to_owned(), second.clone()];
    assert_eq!(texts(&node, &session("one")).await, expected);
    stop(node).await;
    let node = start(options(to.path(), SCRIPT)).await;
    assert_eq!(texts(&node, &session("one")).await, expected);
    let joined = node.sessions().submit(&session("one"), keyed("again", "key", 1)).await.expect("joined");
    assert!(joined.replayed);
    assert_eq!(reply(joined).await.text, second);
    say(&node, &session("one"), "go on").await;
    let key = sessions.iter().find(|found| found.name() == session("one").to_string()).expect("it is there").key();
    let there = node.sessions().compare(&key, ALL).await.expect("readable");
    assert!(there.adopted.is_some() && there.changed && there.items == 6, "{there:?}");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_part_is_refused() {
    let to = tempfile::tempdir().expect("a directory");
    let node = start(options(to.path(), SCRIPT)).await;
    for body in [Bytes::new(), Bytes::from_static(b"\x08\x01"), Bytes::from_static(&[0xff; 40])] {
        let refused = node.sessions().adopt(body).await;
        assert!(matches!(refused, Err(Refusal::InvalidValue { ref param, .. }) if param == "part"), "{refused:?}");
    }
    let refused = node.sessions().compare(b"no key", ALL).await;
    assert!(matches!(refused, Err(Refusal::InvalidValue { .. })), "{refused:?}");
    stop(node).await;
}

/// Long enough for a node to be stopped meanwhile, and no longer: the engine holds the node's log until it has answered.
const SLOW: &str = "scripted:ttft_ms=3000,token_ms=0,tokens=8";
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until nobody holds the directory.
async fn freed(data: &std::path::Path) {
    let until = Instant::now() + PATIENCE;
    let in_use = || matches!(LocalLog::open(LocalLogOptions::new(data.join("log"))), Err(LogError::InUse { .. }));
    while in_use() {
        assert!(Instant::now() < until, "the stopped node still holds its log");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn adopt_all(source: &Source, node: &Node) {
    for session in source.sessions(None, 100).await.expect("readable") {
        let mut parts = source.parts(&session).await.expect("readable");
        while let Some(part) = parts.next().await.expect("readable") {
            node.sessions().adopt(part).await.expect("adopted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_came_without_an_answer_is_answered_after_a_restart_that_nobody_asks_about() {
    let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let node = start(options(from.path(), SLOW)).await;
    node.sessions().submit(&session("one"), request("hello")).await.expect("accepted");
    node.drain(Duration::ZERO).await;
    drop(node);
    freed(from.path()).await;
    let source = open(from.path()).await;
    assert_eq!(source.sessions(None, 1).await.expect("readable")[0].open_turns(), 1);
    let node = start(options(to.path(), SLOW)).await;
    adopt_all(&source, &node).await;
    let open =
        async |node: &Node| node.sessions().info(&session("one")).await.map(|info| info.map(|i| i.open_turns.len()));
    assert_eq!(open(&node).await, Ok(Some(1)));
    node.drain(Duration::ZERO).await;
    drop(node);
    freed(to.path()).await;
    let node = start(options(to.path(), SCRIPT)).await;
    let until = Instant::now() + PATIENCE;
    while open(&node).await != Ok(Some(0)) {
        assert!(Instant::now() < until, "nobody takes the turn up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(texts(&node, &session("one")).await.len(), 2);
    stop(node).await;
}
