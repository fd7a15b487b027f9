//! The cases of the suite, one promise each.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use parlance_cluster_protocol::{Offset, Position, SessionKey, ShardId, TurnId};

use super::Subject;
use crate::{At, Change, ChangeKind, MAX_POSITION, Order, RecordStore, Row};

type Store = Arc<dyn RecordStore>;

const ALL: usize = 1_000;

fn chat(name: &str) -> SessionKey {
    SessionKey::api("tenant", name)
}

fn put(position: u64, row: Row) -> Change {
    Change { position: Position(position), kind: ChangeKind::Put(row) }
}

fn state(position: u64, session: &SessionKey, value: &'static str) -> Change {
    put(position, Row::Session { session: session.clone(), state: value.into() })
}

fn item(position: u64, session: &SessionKey, index: u64, value: &'static str) -> Change {
    put(position, Row::Item { session: session.clone(), index, item: value.into() })
}

fn turn(position: u64, session: &SessionKey, turn: u128) -> Change {
    put(position, Row::Turn { session: session.clone(), turn: TurnId(turn) })
}

fn dedupe(position: u64, session: &SessionKey, id: &str, value: &'static str) -> Change {
    put(position, Row::Dedupe { session: session.clone(), event_id: id.into(), outcome: value.into() })
}

fn delivery(position: u64, session: &SessionKey, key: &str) -> Change {
    put(position, Row::Delivery { session: session.clone(), key: key.into(), state: "sent".into() })
}

fn forget(position: u64, session: &SessionKey, id: &str) -> Change {
    let kind = ChangeKind::ForgetDedupe { session: session.clone(), event_id: id.into() };
    Change { position: Position(position), kind }
}

fn truncate(position: u64, session: &SessionKey, from: u64) -> Change {
    Change { position: Position(position), kind: ChangeKind::TruncateItems { session: session.clone(), from } }
}

fn erase(position: u64, session: &SessionKey) -> Change {
    Change { position: Position(position), kind: ChangeKind::EraseSession { session: session.clone() } }
}

async fn write(store: &Store, changes: impl IntoIterator<Item = Change>) {
    store.write(changes.into_iter().collect()).await.expect("a healthy store takes writes");
}

async fn items(store: &Store, session: &SessionKey) -> Vec<(u64, Bytes)> {
    page(store, session, None, Order::Ascending, ALL).await
}

async fn page(store: &Store, session: &SessionKey, from: Option<u64>, order: Order, limit: usize) -> Vec<(u64, Bytes)> {
    let items = store.items(session, from, order, limit).await.expect("a healthy store reads");
    items.into_iter().map(|item| (item.index, item.item)).collect()
}

async fn ids(store: &Store, session: &SessionKey) -> Vec<(String, Bytes)> {
    store.dedupe(session, ALL).await.expect("a healthy store reads")
}

async fn state_of(store: &Store, session: &SessionKey) -> Option<(u64, Bytes)> {
    let state = store.session(session).await.expect("a healthy store reads");
    state.map(|At { position, value }| (position.0, value))
}

async fn session_of(store: &Store, tenant: &str, turn: u128) -> Option<SessionKey> {
    store.turn(tenant, TurnId(turn)).await.expect("a healthy store reads")
}

async fn listed(store: &Store, after: Option<&SessionKey>, limit: usize) -> Vec<SessionKey> {
    let sessions = store.sessions("tenant", "api", after, limit).await.expect("a healthy store reads");
    sessions.into_iter().map(|(session, _)| session).collect()
}

async fn checkpoint(store: &Store, shard: u16) -> Option<Bytes> {
    store.checkpoint(ShardId(shard)).await.expect("a healthy store reads")
}

fn indexed(items: &[(u64, &'static str)]) -> Vec<(u64, Bytes)> {
    items.iter().map(|(index, value)| (*index, Bytes::from(*value))).collect()
}

fn named(ids: &[(&str, &'static str)]) -> Vec<(String, Bytes)> {
    ids.iter().map(|(id, value)| ((*id).to_owned(), Bytes::from(*value))).collect()
}

pub(super) async fn states_are_read_in_the_order_asked_for(subject: &impl Subject) {
    let store = subject.open().await;
    let (one, two, none) = (chat("one"), chat("two"), chat("none"));
    write(&store, [state(1, &one, "1"), state(2, &two, "2")]).await;
    let states = store.states(&[&two, &none, &one, &two]).await.expect("a healthy store reads");
    let values: Vec<_> = states.into_iter().map(|state| state.map(|state| state.value)).collect();
    assert_eq!(values, [Some("2".into()), None, Some("1".into()), Some("2".into())]);
    assert_eq!(store.states(&[]).await.expect("a healthy store reads"), []);
}

pub(super) async fn an_empty_store_holds_nothing(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("none");
    assert_eq!(state_of(&store, &session).await, None);
    assert_eq!(items(&store, &session).await, []);
    assert_eq!(ids(&store, &session).await, []);
    assert_eq!(session_of(&store, "tenant", 1).await, None);
    assert_eq!(listed(&store, None, ALL).await, []);
    assert_eq!(checkpoint(&store, 0).await, None);
    write(&store, []).await;
    write(&store, [truncate(1, &session, 0), erase(1, &session), forget(1, &session, "x")]).await;
    assert_eq!(listed(&store, None, ALL).await, [], "removals make no session");
}

pub(super) async fn rows_are_read_back(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("a");
    let changes = [
        state(7, &session, "state"),
        item(7, &session, 0, "hello"),
        item(7, &session, 1, "world"),
        turn(7, &session, 9),
        dedupe(7, &session, "event", "outcome"),
        delivery(7, &session, "delivery"),
    ];
    write(&store, changes).await;
    assert_eq!(state_of(&store, &session).await, Some((7, "state".into())));
    assert_eq!(items(&store, &session).await, indexed(&[(0, "hello"), (1, "world")]));
    assert_eq!(ids(&store, &session).await, named(&[("event", "outcome")]));
    assert_eq!(session_of(&store, "tenant", 9).await, Some(session.clone()));
    assert_eq!(listed(&store, None, ALL).await, [session]);
}

pub(super) async fn an_older_write_never_overwrites(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("a");
    write(&store, [state(5, &session, "new"), item(5, &session, 0, "new"), dedupe(5, &session, "id", "new")]).await;
    write(&store, [state(4, &session, "old"), item(4, &session, 0, "old"), dedupe(4, &session, "id", "old")]).await;
    assert_eq!(state_of(&store, &session).await, Some((5, "new".into())));
    assert_eq!(items(&store, &session).await, indexed(&[(0, "new")]));
    assert_eq!(ids(&store, &session).await, named(&[("id", "new")]));
    let batch = [state(7, &session, "newest"), state(6, &session, "newer"), item(6, &session, 0, "newer")];
    write(&store, batch).await;
    assert_eq!(state_of(&store, &session).await, Some((7, "newest".into())), "within one batch, too");
    assert_eq!(items(&store, &session).await, indexed(&[(0, "newer")]));
}

pub(super) async fn a_repeated_batch_changes_nothing(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("a");
    let first = || {
        [
            state(1, &session, "1"),
            item(1, &session, 0, "1"),
            item(1, &session, 1, "1"),
            dedupe(1, &session, "gone", "1"),
            dedupe(1, &session, "kept", "1"),
            turn(1, &session, 1),
        ]
    };
    let second = || {
        let removed = [truncate(2, &session, 1), forget(2, &session, "gone")];
        [state(2, &session, "2")].into_iter().chain(removed).chain([item(3, &session, 1, "3")])
    };
    write(&store, first()).await;
    write(&store, second()).await;
    for _ in 0..2 {
        assert_eq!(state_of(&store, &session).await, Some((2, "2".into())));
        assert_eq!(items(&store, &session).await, indexed(&[(0, "1"), (1, "3")]));
        assert_eq!(ids(&store, &session).await, named(&[("kept", "1")]));
        assert_eq!(session_of(&store, "tenant", 1).await, Some(session.clone()));
        write(&store, first()).await;
        write(&store, first().into_iter().chain(second())).await;
    }
}

pub(super) async fn truncation_takes_older_items_only(subject: &impl Subject) {
    let store = subject.open().await;
    let (session, other) = (chat("a"), chat("ab"));
    write(&store, (0..4).map(|index| item(1, &session, index, "1"))).await;
    write(&store, [item(1, &other, 3, "1"), item(5, &session, 3, "5"), truncate(4, &session, 2)]).await;
    assert_eq!(items(&store, &session).await, indexed(&[(0, "1"), (1, "1"), (3, "5")]));
    write(&store, [item(3, &session, 2, "late"), item(3, &session, 9, "late"), item(3, &session, 1, "3")]).await;
    assert_eq!(items(&store, &session).await, indexed(&[(0, "1"), (1, "3"), (3, "5")]), "late items stay dead");
    write(&store, [item(6, &session, 2, "6")]).await;
    assert_eq!(items(&store, &session).await, indexed(&[(0, "1"), (1, "3"), (2, "6"), (3, "5")]));
    write(&store, [truncate(2, &session, 0)]).await;
    assert_eq!(items(&store, &session).await, indexed(&[(1, "3"), (2, "6"), (3, "5")]), "a late truncation");
    assert_eq!(items(&store, &other).await, indexed(&[(3, "1")]));
}

pub(super) async fn erasure_leaves_the_state_and_newer_rows(subject: &impl Subject) {
    let store = subject.open().await;
    let (session, other) = (chat("a"), chat("a2"));
    let rows = |position, session: &SessionKey, id: u128| {
        let [state, item] = [state(position, session, "s"), item(position, session, id as u64, "i")];
        [state, item, turn(position, session, id), dedupe(position, session, &id.to_string(), "d")]
    };
    write(&store, rows(1, &session, 1).into_iter().chain(rows(1, &other, 10)).chain(rows(5, &session, 5))).await;
    write(&store, [delivery(1, &session, "k"), erase(3, &session)]).await;
    write(&store, rows(2, &session, 2)).await;
    assert_eq!(state_of(&store, &session).await, Some((5, "s".into())));
    assert_eq!(items(&store, &session).await, indexed(&[(5, "i")]));
    assert_eq!(ids(&store, &session).await, named(&[("5", "d")]));
    let turns = [session_of(&store, "tenant", 1).await, session_of(&store, "tenant", 2).await];
    assert_eq!(turns, [None, None]);
    assert_eq!(session_of(&store, "tenant", 5).await, Some(session.clone()));
    assert_eq!(items(&store, &other).await, indexed(&[(10, "i")]));
    assert_eq!(session_of(&store, "tenant", 10).await, Some(other));
}

pub(super) async fn a_forgotten_id_stays_forgotten(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("a");
    write(&store, [dedupe(1, &session, "x", "1"), dedupe(1, &session, "y", "1"), forget(3, &session, "x")]).await;
    write(&store, [dedupe(2, &session, "x", "2"), forget(3, &session, "z"), dedupe(2, &session, "z", "2")]).await;
    assert_eq!(ids(&store, &session).await, named(&[("y", "1")]));
    write(&store, [dedupe(4, &session, "x", "4"), forget(2, &session, "x")]).await;
    assert_eq!(ids(&store, &session).await, named(&[("x", "4"), ("y", "1")]));
    let limited = store.dedupe(&session, 1).await.expect("a healthy store reads");
    assert_eq!(limited.len(), 1);
}

pub(super) async fn a_write_wins_over_a_delete_of_its_own_record(subject: &impl Subject) {
    let store = subject.open().await;
    let (before, after) = (chat("before"), chat("after"));
    let removals = |session: &SessionKey| [truncate(2, session, 0), erase(2, session), forget(2, session, "id")];
    let writes = |session: &SessionKey| [item(2, session, 0, "2"), dedupe(2, session, "id", "2"), turn(2, session, 2)];
    write(&store, removals(&before).into_iter().chain(writes(&before))).await;
    assert_eq!(session_of(&store, "tenant", 2).await, Some(before.clone()));
    write(&store, writes(&after).into_iter().chain(removals(&after))).await;
    for session in [before, after] {
        assert_eq!(items(&store, &session).await, indexed(&[(0, "2")]));
        assert_eq!(ids(&store, &session).await, named(&[("id", "2")]));
    }
}

pub(super) async fn items_are_paged_from_both_ends(subject: &impl Subject) {
    let store = subject.open().await;
    let session = chat("a");
    write(&store, (0..300).map(|index| item(1, &session, index, "x"))).await;
    let indexes = async |from, order, limit| -> Vec<u64> {
        page(&store, &session, from, order, limit).await.into_iter().map(|(index, _)| index).collect()
    };
    assert_eq!(indexes(None, Order::Ascending, 3).await, [0, 1, 2]);
    assert_eq!(indexes(Some(255), Order::Ascending, 3).await, [255, 256, 257]);
    assert_eq!(indexes(Some(298), Order::Ascending, 9).await, [298, 299]);
    assert_eq!(indexes(None, Order::Descending, 3).await, [299, 298, 297]);
    assert_eq!(indexes(Some(256), Order::Descending, 3).await, [256, 255, 254]);
    assert_eq!(indexes(Some(1), Order::Descending, 9).await, [1, 0]);
    assert_eq!(indexes(Some(900), Order::Ascending, 9).await, [0; 0]);
    assert_eq!(indexes(None, Order::Ascending, 0).await, [0; 0]);
}

pub(super) async fn sessions_are_listed_in_key_order(subject: &impl Subject) {
    let store = subject.open().await;
    let mut sessions: Vec<SessionKey> = ["a", "ab", "b", "", "é", "a\0", "zzz"].map(chat).into();
    sessions.push(SessionKey { thread: "1".into(), ..chat("a") });
    sessions.push(SessionKey { account: "x".into(), ..chat("a") });
    let strangers = [
        SessionKey::in_channel("tenant", "api2", "a"),
        SessionKey::in_channel("tenant", "ap", "ia"),
        SessionKey::api("tenan", "ta"),
        SessionKey::api("tenant2", "a"),
    ];
    write(&store, sessions.iter().chain(&strangers).map(|session| state(1, session, "s"))).await;
    sessions.sort_by_key(SessionKey::encode);
    assert_eq!(listed(&store, None, ALL).await, sessions);
    let mut paged = Vec::new();
    while paged.len() < sessions.len() {
        let page = listed(&store, paged.last(), 2).await;
        assert!(!page.is_empty() && page.len() <= 2, "pages are full until the end");
        paged.extend(page);
    }
    assert_eq!(paged, sessions);
    assert_eq!(listed(&store, sessions.last(), 2).await, []);
    assert_eq!(listed(&store, Some(&chat("aa")), ALL).await[0], chat("ab"), "behind a session that is not there");
}

pub(super) async fn tenants_do_not_see_each_other(subject: &impl Subject) {
    let store = subject.open().await;
    let (mine, yours) = (SessionKey::api("a", "chat"), SessionKey::api("b", "chat"));
    write(&store, [turn(1, &mine, 1), turn(1, &yours, 2), item(1, &mine, 0, "mine"), erase(2, &yours)]).await;
    assert_eq!(session_of(&store, "a", 1).await, Some(mine.clone()));
    assert_eq!(session_of(&store, "b", 1).await, None);
    assert_eq!(session_of(&store, "a", 2).await, None);
    assert_eq!(session_of(&store, "", 1).await, None);
    assert_eq!(items(&store, &mine).await, indexed(&[(0, "mine")]));
}

pub(super) async fn checkpoints_are_kept_per_shard(subject: &impl Subject) {
    let session = chat("a");
    let store = subject.open().await;
    for (upto, (shard, value)) in (0..).zip([(0, "zero"), (1, "one"), (256, "many"), (u16::MAX, "last"), (1, "uno")]) {
        write(&store, [state(1, &session, "s")]).await;
        store
            .put_checkpoint(ShardId(shard), Offset(upto), value.into())
            .await
            .expect("a healthy store takes checkpoints");
    }
    drop(store);
    let store = subject.open().await;
    let found = [checkpoint(&store, 0).await, checkpoint(&store, 1).await, checkpoint(&store, 256).await];
    assert_eq!(found, [Some("zero".into()), Some("uno".into()), Some("many".into())]);
    assert_eq!((checkpoint(&store, u16::MAX).await, checkpoint(&store, 2).await), (Some("last".into()), None));
    assert_eq!(state_of(&store, &session).await, Some((1, "s".into())), "with the rows before it");
}

pub(super) async fn odd_ids_and_values_are_kept(subject: &impl Subject) {
    let store = subject.open().await;
    let session = SessionKey { thread: "\u{10ffff}".into(), account: "\0".into(), ..chat("a/b:c\n") };
    let large = Bytes::from(vec![0xa5; 1 << 20]);
    let put_item = |index, value: &Bytes| put(1, Row::Item { session: session.clone(), index, item: value.clone() });
    write(&store, [put_item(0, &Bytes::new()), put_item(u64::MAX, &large), state(MAX_POSITION.0, &session, "")]).await;
    assert_eq!(items(&store, &session).await, [(0, Bytes::new()), (u64::MAX, large)]);
    assert_eq!(state_of(&store, &session).await, Some((MAX_POSITION.0, Bytes::new())));
    let odd = ["", "\0", "a\0b", "ünïcode", "a"];
    write(&store, odd.iter().map(|id| dedupe(1, &session, id, "d"))).await;
    let mut found: Vec<String> = ids(&store, &session).await.into_iter().map(|(id, _)| id).collect();
    found.sort();
    let mut odd = odd.map(str::to_owned);
    odd.sort();
    assert_eq!(found, odd);
}

pub(super) async fn writers_do_not_disturb_each_other(subject: &impl Subject) {
    let store = subject.open().await;
    let sessions: Vec<SessionKey> = (0..16).map(|n| chat(&format!("writer {n}"))).collect();
    let writer = async |session: &SessionKey| {
        for position in 0..20 {
            write(&store, [item(position, session, position, "x"), state(position, session, "s")]).await;
        }
    };
    join_all(sessions.iter().map(writer)).await;
    for session in &sessions {
        assert_eq!(items(&store, session).await.len(), 20);
        assert_eq!(state_of(&store, session).await, Some((19, "s".into())));
    }
}
