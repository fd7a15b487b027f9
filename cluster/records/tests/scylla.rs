//! The store of a cluster against Apache Cassandra, which stands in for Scylla: the same driver and the same CQL.
//!
//! Most of it runs on the one server that `make services` has started, each test in a keyspace of its own; what breaks a server has its own.

mod cassandra;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cassandra::{Keyspace, Proxy, SHARED_PORT, Server, options, tls_file};
use futures_util::{FutureExt, future::BoxFuture, future::join_all};
use parlance_cluster_protocol::{Offset, Position, SessionKey, ShardId, TurnId};
use parlance_cluster_records::{
    Change, ChangeKind, Credentials, MAX_POSITION, Order, RecordStore, RecordsError, Replication, Row, ScyllaOptions,
    ScyllaRecords, TlsOptions, conformance,
};

/// Longer than anything here should take on a machine that builds as well.
const PATIENCE: Duration = Duration::from_secs(60);

impl conformance::Subject for Keyspace {
    fn open(&self) -> BoxFuture<'_, Arc<dyn RecordStore>> {
        async { Arc::new(self.open().await) as Arc<dyn RecordStore> }.boxed()
    }
}

fn session() -> SessionKey {
    SessionKey::api("tenant", "chat")
}

fn change(position: u64, kind: ChangeKind) -> Change {
    Change { position: Position(position), kind }
}

fn item(position: u64, index: u64) -> Change {
    let item = Bytes::from(format!("{position}"));
    change(position, ChangeKind::Put(Row::Item { session: session(), index, item }))
}

fn turn(position: u64, turn: u128) -> Change {
    change(position, ChangeKind::Put(Row::Turn { session: session(), turn: TurnId(turn) }))
}

fn state(position: u64, session: SessionKey) -> Change {
    change(position, ChangeKind::Put(Row::Session { session, state: "state".into() }))
}

async fn indexes(store: &ScyllaRecords) -> Vec<u64> {
    let items = store.items(&session(), None, Order::Ascending, usize::MAX).await.expect("a healthy store reads");
    items.into_iter().map(|item| item.index).collect()
}

async fn refusal(options: ScyllaOptions) -> RecordsError {
    ScyllaRecords::open(options).await.expect_err("it cannot be opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    conformance::run(Keyspace::new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_the_model() {
    conformance::play(Keyspace::new, 0..4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_and_repeated_changes_converge() {
    conformance::converge(Keyspace::new, 0..4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_listing_is_paged_in_order() {
    let keyspace = Keyspace::new().await;
    let store = keyspace.open().await;
    let mut sessions: Vec<_> =
        (0..500).map(|n| SessionKey::api("tenant", format!("chat {}", n * 7_919 % 1_000))).collect();
    store.write(sessions.iter().map(|session| state(1, session.clone())).collect()).await.expect("written");
    sessions.sort_by_key(SessionKey::encode);
    for limit in [7, 100, 499, 500, 1_000] {
        let mut listed: Vec<SessionKey> = Vec::new();
        while listed.len() < sessions.len() {
            let page = store.sessions("tenant", "api", listed.last(), limit).await.expect("read");
            assert_eq!(page.len(), limit.min(sessions.len() - listed.len()), "pages are full until the end");
            listed.extend(page.into_iter().map(|(session, _)| session));
        }
        assert!(listed == sessions, "by {limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_leaves_nothing_of_the_session_but_its_state() {
    let keyspace = Keyspace::new().await;
    let store = keyspace.open().await;
    let kept = |kind| change(1, ChangeKind::Put(kind));
    let mut changes: Vec<_> = (0..300).map(|n| turn(1, n)).chain((0..300).map(|n| item(1, n))).collect();
    changes.push(kept(Row::Dedupe { session: session(), event_id: "e".into(), outcome: "o".into() }));
    changes.push(kept(Row::Delivery { session: session(), key: "d".into(), state: "s".into() }));
    changes.push(state(1, session()));
    store.write(changes.clone()).await.expect("written");
    let erase = change(2, ChangeKind::EraseSession { session: session() });
    store.write(vec![erase.clone()]).await.expect("erased");
    // Again from the log, as after a stale checkpoint.
    for batch in changes.chunks(100) {
        store.write(batch.to_vec()).await.expect("written");
    }
    store.write(vec![erase]).await.expect("erased");
    for table in ["items", "turns", "turns_of_sessions", "dedupe", "deliveries"] {
        assert_eq!(keyspace.count(table).await, 0, "{table}");
    }
    assert_eq!((keyspace.count("states").await, keyspace.count("sessions").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_checkpoint_never_replaces_one_that_covers_more() {
    let keyspace = Keyspace::new().await;
    let (owner, deposed) = (keyspace.open().await, keyspace.open().await);
    let put = async |store: &ScyllaRecords, upto, value: &'static str| {
        store.put_checkpoint(ShardId(3), Offset(upto), value.into()).await.expect("written");
        store.checkpoint(ShardId(3)).await.expect("read")
    };
    assert_eq!(put(&deposed, 0, "none").await, Some("none".into()));
    assert_eq!(put(&deposed, 5, "five").await, Some("five".into()));
    assert_eq!(put(&owner, 9, "nine").await, Some("nine".into()));
    assert_eq!(put(&deposed, 7, "seven").await, Some("nine".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused_and_writes_nothing() {
    let keyspace = Keyspace::new().await;
    let store = keyspace.open().await;
    let too_high = store.write(vec![item(1, 0), item(MAX_POSITION.0 + 1, 1)]).await;
    assert!(matches!(too_high, Err(RecordsError::PositionTooHigh { .. })), "{too_high:?}");
    let large = Bytes::from(vec![7; 8 << 20]);
    let put = |item| change(1, ChangeKind::Put(Row::Item { session: session(), index: 2, item }));
    let too_large = store.write(vec![item(1, 0), put([&large[..], b"."].concat().into())]).await;
    assert!(matches!(too_large, Err(RecordsError::TooLarge { .. })), "{too_large:?}");
    assert_eq!(indexes(&store).await, [0; 0]);
    store.write(vec![put(large)]).await.expect("the largest is taken");
    assert_eq!(indexes(&store).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_centre_that_is_gone_is_done_without() {
    let keyspace = Keyspace::new().await;
    for datacenter in ["datacenter1", "elsewhere"] {
        let options = ScyllaOptions { datacenter: Some(datacenter.into()), ..keyspace.options.clone() };
        let store = ScyllaRecords::open(options).await.expect("opens");
        store.write(vec![item(1, 0)]).await.expect("written");
        assert_eq!(indexes(&store).await, [0], "by {datacenter}");
    }
}

/// The servers have done what they were told, and nobody heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_made_again_without_harm() {
    let keyspace = Keyspace::new().await;
    let direct = keyspace.open().await;
    let proxy = Proxy::start(SHARED_PORT);
    let short = Duration::from_millis(500);
    let nodes = vec![format!("127.0.0.1:{}", proxy.port)];
    let hurried = ScyllaOptions { nodes, request_timeout: short, deadline: 2 * short, ..keyspace.options.clone() };
    let store = ScyllaRecords::open(hurried).await.expect("opens through the proxy");
    store.write(vec![item(1, 0), item(1, 1), item(1, 2), turn(1, 1)]).await.expect("written");

    proxy.lose_results(true);
    let changes = vec![
        item(2, 1),
        change(2, ChangeKind::TruncateItems { session: session(), from: 1 }),
        change(3, ChangeKind::EraseSession { session: session() }),
        item(3, 7),
    ];
    let unknown = store.write(changes.clone()).await;
    assert!(matches!(unknown, Err(RecordsError::TimedOut { .. })), "{unknown:?}");
    assert!(proxy.lost() > 0 && !store.is_up());
    assert_eq!(indexes(&direct).await, [0, 1, 7], "done all the same, but for the erasure, which began with a read");

    direct.write(vec![item(4, 2)]).await.expect("another node goes on");
    proxy.lose_results(false);
    let begun = Instant::now();
    while store.write(changes.clone()).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "it does not recover");
    }
    assert_eq!(indexes(&direct).await, [2, 7]);
    assert_eq!(store.turn("tenant", TurnId(1)).await.expect("read"), None);
    assert!(store.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once_whoever_starts_and_a_newer_layout_is_refused() {
    let keyspace = Keyspace::new().await;
    let opened = join_all((0..4).map(|_| ScyllaRecords::open(keyspace.options.clone()))).await;
    for store in &opened {
        store.as_ref().expect("all that start at once open").write(vec![item(1, 0)]).await.expect("written");
    }
    drop(opened);
    assert_eq!(indexes(&keyspace.open().await).await, [0], "the second start finds it");
    assert_eq!(keyspace.count("schema_versions").await, 1);

    // As a node leaves it that died in its first migration.
    keyspace.run("TRUNCATE {}.schema_versions").await;
    keyspace.run("DROP TABLE {}.checkpoints").await;
    let store = keyspace.open().await;
    assert_eq!((indexes(&store).await, store.checkpoint(ShardId(0)).await.expect("read")), (vec![0], None));

    keyspace.run("INSERT INTO {}.schema_versions (version) VALUES (7)").await;
    let refused = refusal(keyspace.options.clone()).await;
    assert!(matches!(refused, RecordsError::NewerSchema { found: 7, supported: 1, .. }), "{refused:?}");
    assert!(refused.to_string().contains("upgrade parlance"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_with_its_remedy() {
    let keyspace = Keyspace::new().await;
    let good = || ScyllaOptions { open_timeout: Duration::from_secs(1), ..keyspace.options.clone() };
    let told = async |options, words: &[&str]| {
        let begun = Instant::now();
        let said = refusal(options).await.to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("open sesame"), "{said}");
        begun.elapsed()
    };
    let user = |user: &str| Some(Credentials { user: user.into(), password: "open sesame".into() });
    told(ScyllaOptions { credentials: user("cassandra"), ..good() }, &["refuses the user", "the password"]).await;
    told(ScyllaOptions { credentials: user("nobody"), ..good() }, &["refuses the user", "the password"]).await;
    told(ScyllaOptions { credentials: None, ..good() }, &["refuses the user", "none are configured"]).await;
    told(ScyllaOptions { replication: None, ..good() }, &["no keyspace test_", "create it"]).await;
    told(ScyllaOptions { keyspace: "no-name".into(), ..good() }, &["keyspace cannot be used"]).await;
    // Nobody listens on port 1.
    let nodes = vec!["127.0.0.1:1".to_owned()];
    let took = told(ScyllaOptions { nodes, ..good() }, &["cannot reach", "127.0.0.1:1", "check that it runs"]).await;
    assert!(took < good().open_timeout + good().deadline, "{took:?}");
    told(ScyllaOptions { nodes: vec!["nowhere.invalid".into()], ..good() }, &["cannot reach", "nowhere.invalid"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_the_right_authority_and_our_certificate() {
    let keyspace = Keyspace::new().await;
    let certificate = Some((tls_file("client.crt"), tls_file("client.key")));
    let good = TlsOptions { authorities: tls_file("ca.pem"), certificate, server_name: None };
    let with = |tls| ScyllaOptions { tls: Some(tls), open_timeout: Duration::from_secs(2), ..keyspace.options.clone() };
    let store = ScyllaRecords::open(ScyllaOptions { open_timeout: PATIENCE, ..with(good.clone()) }).await;
    let store = store.expect("opens over TLS");
    store.write(vec![item(1, 0)]).await.expect("written");
    assert_eq!(indexes(&keyspace.open().await).await, [0]);

    let refused = async |tls, words: &str| {
        let refused = refusal(with(tls)).await;
        assert!(refused.to_string().contains(words), "{refused}");
    };
    refused(TlsOptions { certificate: None, ..good.clone() }, "no certificate of ours is configured").await;
    refused(TlsOptions { authorities: tls_file("client.crt"), ..good.clone() }, "certificate").await;
    refused(TlsOptions { server_name: Some("elsewhere".into()), ..good.clone() }, "not valid for name").await;
    refused(TlsOptions { authorities: tls_file("server.key"), ..good.clone() }, "TLS authorities cannot be used").await;
    let named = TlsOptions { server_name: Some("localhost".into()), ..good };
    assert_eq!(indexes(&ScyllaRecords::open(with(named)).await.expect("opens by name")).await, [0]);
}

/// In one test, since a server takes its time to start.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_dies_and_comes_back_is_told_of_in_time_and_found_again() {
    let server = Server::start();
    let options = ScyllaOptions {
        request_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(2),
        open_timeout: PATIENCE,
        ..options(server.port, "parlance")
    };
    let store = Arc::new(ScyllaRecords::open(options.clone()).await.expect("opens"));
    store.write(vec![item(1, 0)]).await.expect("written");

    server.halt();
    let hung = failure(&store).await;
    assert!(matches!(hung, RecordsError::TimedOut { .. } | RecordsError::Unreachable { .. }), "{hung:?}");
    server.signal("-CONT");
    written(&store, item(2, 1)).await;

    server.kill();
    let gone = failure(&store).await;
    assert!(matches!(gone, RecordsError::Unreachable { .. }), "{gone:?}");
    let opening = tokio::spawn(ScyllaRecords::open(options));
    tokio::task::block_in_place(|| server.restart());
    written(&store, item(3, 2)).await;
    assert_eq!(indexes(&store).await, [0, 1, 2], "with what was acknowledged before");
    let late = opening.await.expect("no panic").expect("waits for the server at the start");
    assert_eq!(indexes(&late).await, [0, 1, 2]);
}

/// By hand: `cargo test --release -p parlance-cluster-records --test scylla -- --ignored`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "three servers take a minute and 3 GB, and time to hear of each other"]
async fn three_servers_go_on_without_one_and_say_so_without_two() {
    let servers = Server::start_three().await;
    let options = |first: usize| ScyllaOptions {
        nodes: (0..3).map(|n| servers[(first + n) % 3].node()).collect(),
        replication: Some(Replication::Everywhere(3)),
        credentials: Some(Credentials { user: "parlance".into(), password: "parlance".into() }),
        open_timeout: PATIENCE,
        ..options(servers[0].port, "parlance")
    };
    let opened = join_all((0..6).map(|first| ScyllaRecords::open(options(first)))).await;
    let stores: Vec<_> = opened.into_iter().map(|store| store.expect("all that start at once open")).collect();
    let [one, other] = &stores[..2] else { panic!("there are six") };
    one.write((0..100).map(|n| item(1, n)).collect()).await.expect("written");

    servers[0].kill();
    one.write((0..100).map(|n| item(2, n + 50)).collect()).await.expect("two of three are a quorum");
    one.put_checkpoint(ShardId(0), Offset(2), "two".into()).await.expect("written");
    assert_eq!(other.checkpoint(ShardId(0)).await.expect("read"), Some("two".into()));
    assert_eq!(indexes(other).await, (0..150).collect::<Vec<_>>(), "with the rows before it");
    let late = ScyllaRecords::open(options(0)).await.expect("opens by the servers that are left");
    assert_eq!(indexes(&late).await.len(), 150);

    servers[1].kill();
    let refused = failure(one).await;
    assert!(matches!(refused, RecordsError::Unavailable(_) | RecordsError::TimedOut { .. }), "{refused:?}");
    tokio::task::block_in_place(|| servers[0].restart());
    written(one, item(3, 150)).await;
    assert_eq!(indexes(one).await, (0..151).collect::<Vec<_>>(), "what one has missed the other had");
}

/// What a write and a read come to without the server, within the deadline and some.
async fn failure(store: &ScyllaRecords) -> RecordsError {
    let begun = Instant::now();
    let failed = store.write(vec![item(1, 0)]).await.expect_err("nobody is there");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(!store.is_up());
    store.session(&session()).await.expect_err("nobody is there");
    failed
}

async fn written(store: &ScyllaRecords, change: Change) {
    let begun = Instant::now();
    while let Err(error) = store.write(vec![change.clone()]).await {
        assert!(begun.elapsed() < PATIENCE, "it does not recover: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(store.is_up());
}
