//! Durable turns on one node, over the real embedded log and records.

mod common;

use std::{sync::Arc, time::Duration};

use common::*;
use parlance_actors_runtime::{ItemQuery, Limits, Node, NodeOptions, Refusal, TurnOutcome};
use parlance_cluster_protocol::{FinishReason, ItemsAdded, Role, SessionOpened, TurnId};

const ALL: ItemQuery = ItemQuery { from: None, descending: false, limit: 1_000 };

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_answered_and_recorded() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted")).await;
    let reply = say(&node, &session("one"), "hello").await;
    assert!(reply.starts_with(&mark("hello")), "{reply}");
    let items = node.sessions().items(&session("one"), ALL).await.expect("readable").expect("there");
    let said: Vec<_> = items.iter().map(|item| (item.role, item.text.as_str())).collect();
    assert_eq!(said, [(Role::User, "hello"), (Role::Assistant, &*reply)]);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_survives_drain_and_restart() {
    let data = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let node = start(options(data.path(), "scripted")).await;
        for chat in 0..10 {
            say(&node, &session(&format!("chat-{chat}")), &format!("round {round} of {chat}")).await;
        }
        stop(node).await;
    }
    let node = start(options(data.path(), "scripted")).await;
    for chat in 0..10 {
        let items =
            node.sessions().items(&session(&format!("chat-{chat}")), ALL).await.expect("readable").expect("there");
        let said: Vec<_> = items.iter().filter(|item| item.role == Role::User).map(|item| item.text.clone()).collect();
        assert_eq!(said, [0, 1, 2].map(|round| format!("round {round} of {chat}")));
        assert_eq!(items.len(), 6);
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_of_one_session_are_answered_in_order() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted:ttft_ms=5")).await;
    let session = session("ordered");
    let mut accepted = Vec::new();
    for n in 0..6 {
        accepted.push(node.sessions().submit(&session, request(&format!("turn {n}"))).await.expect("accepted"));
    }
    for (n, accepted) in accepted.into_iter().enumerate() {
        assert!(reply(accepted).await.text.starts_with(&mark(&format!("turn {n}"))));
    }
    let items = node.sessions().items(&session, ALL).await.expect("readable").expect("there");
    let roles: Vec<_> = items.iter().map(|item| item.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant].repeat(6));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_refused_at_once() {
    let data = tempfile::tempdir().expect("a directory");
    let limits = Limits { queued_turns_per_session: 2, ..Limits::default() };
    let node = start(NodeOptions { limits, ..options(data.path(), "scripted:ttft_ms=300") }).await;
    let session = session("busy");
    let first = node.sessions().submit(&session, request("1")).await.expect("accepted");
    let second = node.sessions().submit(&session, request("2")).await.expect("accepted");
    let third = node.sessions().submit(&session, request("3")).await;
    assert!(matches!(third, Err(Refusal::SessionBusy { .. })), "{third:?}");
    reply(first).await;
    reply(second).await;
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_joins_within_the_tenant_and_across_restarts() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted:ttft_ms=50")).await;
    let session = session("keyed");
    let first = node.sessions().submit(&session, keyed("pay", "key-1", 1)).await.expect("accepted");
    let again = node.sessions().submit(&session, keyed("pay", "key-1", 1)).await.expect("joined");
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.turn, again.turn);
    let (turn, text) = (first.turn, reply(first).await.text.clone());
    assert_eq!(reply(again).await.text, text);
    for conflicting in [keyed("other", "key-1", 2)] {
        let conflict = node.sessions().submit(&session, conflicting).await;
        assert_eq!(conflict.err(), Some(Refusal::IdempotencyConflict));
    }
    let elsewhere = node.sessions().submit(&common::session("elsewhere"), keyed("pay", "key-1", 1)).await;
    assert_eq!(elsewhere.err(), Some(Refusal::IdempotencyConflict), "a key belongs to the tenant");
    stop(node).await;

    let node = start(options(data.path(), "scripted")).await;
    let late = node.sessions().submit(&session, keyed("pay", "key-1", 1)).await.expect("joined");
    assert!(late.replayed);
    assert_eq!(late.turn, turn);
    assert_eq!(reply(late).await.text, text);
    let items = node.sessions().items(&session, ALL).await.expect("readable").expect("there");
    assert_eq!(items.len(), 2, "it ran once");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_a_turn_with_what_there_is() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted:token_ms=30,tokens=500")).await;
    let session = session("stopped");
    let accepted = node.sessions().submit(&session, request("go on for ever")).await.expect("accepted");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.sessions().stop(&session, None).await, Ok(true));
    let replied = reply(accepted).await;
    assert_eq!(replied.finish, FinishReason::Cancelled);
    assert!(replied.text.starts_with(&mark("go on for ever")));
    assert_eq!(node.sessions().stop(&session, None).await, Ok(false));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_on_when_its_client_leaves_and_can_be_watched_again() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted:token_ms=10,tokens=20")).await;
    let session = session("left");
    let accepted = node.sessions().submit(&session, request("stay")).await.expect("accepted");
    let turn = accepted.turn;
    drop(accepted);
    let stream = node.sessions().watch(&session, turn).await.expect("reachable").expect("running");
    let (text, _) = finish(stream).await;
    let stream = node.sessions().watch(&session, turn).await.expect("reachable").expect("recorded");
    assert_eq!(finish(stream).await.0, text);
    let unknown = node.sessions().watch(&session, TurnId(1)).await.expect("reachable");
    assert!(unknown.is_none());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_turn_is_answered_after_a_crash() {
    let data = tempfile::tempdir().expect("a directory");
    let session = session("crashed");
    let node = start(options(data.path(), "scripted:ttft_ms=60000")).await;
    let accepted = node.sessions().submit(&session, request("survive")).await.expect("accepted");
    let turn = accepted.turn;
    // No drain to speak of: the turn is still open when the actors stop.
    node.drain(Duration::ZERO).await;
    drop((node, accepted));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let node = start(options(data.path(), "scripted")).await;
    let stream = node.sessions().watch(&session, turn).await.expect("reachable").expect("taken up again");
    let (text, outcome) = finish(stream).await;
    assert!(text.starts_with(&mark("survive")), "{text} {outcome:?}");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_leave_memory_and_come_back() {
    let data = tempfile::tempdir().expect("a directory");
    let limits = Limits { session_idle: Duration::from_millis(100), ..Limits::default() };
    let node = start(NodeOptions { limits, ..options(data.path(), "scripted") }).await;
    for chat in 0..200 {
        say(&node, &session(&format!("idle-{chat}")), "first").await;
    }
    for _ in 0..200 {
        if node.status().live_sessions == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.status().live_sessions, 0);
    say(&node, &session("idle-7"), "second").await;
    let items = node.sessions().items(&session("idle-7"), ALL).await.expect("readable").expect("there");
    assert_eq!(items.len(), 4);
    assert_eq!(node.status().live_sessions, 1);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_are_opened_extended_listed_and_deleted() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start(options(data.path(), "scripted")).await;
    let sessions = node.sessions();
    let key = session("managed");
    let opened = SessionOpened { system_prompt: Some("be brief".into()), ..SessionOpened::default() };
    sessions.open(&key, opened.clone(), None).await.expect("opened");
    assert_eq!(sessions.open(&key, opened, None).await.err(), Some(Refusal::SessionExists));
    let added = ItemsAdded { items: vec![item(Role::User, "a"), item(Role::Assistant, "b")] };
    let added = sessions.add_items(&key, added, None).await.expect("added");
    assert_eq!(added.iter().map(|item| item.index).collect::<Vec<_>>(), [0, 1]);
    let listed = sessions.list("default", "api", None, 10).await.expect("readable");
    assert_eq!(listed.iter().map(|info| &info.session).collect::<Vec<_>>(), [&key]);
    assert!(sessions.list("other", "api", None, 10).await.expect("readable").is_empty());
    sessions.delete(&key, None).await.expect("deleted");
    assert_eq!(sessions.info(&key).await.expect("readable"), None);
    let refused = sessions.submit(&key, request("too late")).await;
    assert_eq!(refused.err(), Some(Refusal::SessionNotFound));
    let unknown = parlance_actors_runtime::TurnRequest { create: false, ..request("nobody") };
    assert_eq!(sessions.submit(&session("unknown"), unknown).await.err(), Some(Refusal::SessionNotFound));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_without_a_reply_fails_at_its_deadline() {
    let data = tempfile::tempdir().expect("a directory");
    let limits = Limits { turn_deadline: Duration::from_millis(300), ..Limits::default() };
    let node = start(NodeOptions { limits, ..options(data.path(), "scripted:ttft_ms=60000") }).await;
    let accepted = node.sessions().submit(&session("late"), request("never")).await.expect("accepted");
    let (_, outcome) = finish(accepted.stream).await;
    let TurnOutcome::Failed(failed) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failed.code, "deadline_exceeded");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_at_once_get_their_own_answers() {
    let data = tempfile::tempdir().expect("a directory");
    let node = Arc::new(start(options(data.path(), "scripted")).await);
    let callers = (0..64).map(|caller| {
        let node = node.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                let text = format!("{caller} says {n}");
                let reply = say(&node, &session(&format!("many-{caller}")), &text).await;
                assert!(reply.starts_with(&mark(&text)));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("the caller got its answers");
    }
    stop(Node::clone(&node)).await;
}
