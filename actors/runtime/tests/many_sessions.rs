//! 100,000 sessions of one turn, of which a few are visited again after a restart.

mod common;

use std::time::Duration;

use common::*;
use parlance_actors_runtime::{ItemQuery, Limits, Node, NodeOptions, Refusal};
use parlance_cluster_protocol::SessionKey;

const SESSIONS: usize = 100_000;
const CALLERS: usize = 256;
/// Sessions in memory at once.
const LIVE: usize = 5_000;
/// One session in a hundred is visited again.
const VISIT_EVERY: usize = 100;
const ALL: ItemQuery = ItemQuery { from: None, descending: false, limit: 10 };

async fn start_small(data: &std::path::Path) -> Node {
    let limits = Limits { session_idle: Duration::from_millis(200), live_sessions: LIVE, ..Limits::default() };
    start(NodeOptions { limits, ..options(data, "scripted:tokens=4") }).await
}

/// As a client does that is told to try again a little later.
async fn say_patiently(node: &Node, session: &SessionKey, text: &str) {
    loop {
        match node.sessions().submit(session, request(text)).await {
            Err(Refusal::Overloaded { retry_after, .. }) => tokio::time::sleep(retry_after).await,
            accepted => return drop(reply(accepted.expect("accepted")).await),
        }
    }
}

fn name(n: usize) -> String {
    format!("session-{n}")
}

#[tokio::test(flavor = "multi_thread")]
async fn passivated_sessions_come_back_with_their_history() {
    let data = tempfile::tempdir().expect("a directory");
    let node = start_small(data.path()).await;
    let callers = (0..CALLERS).map(|caller| {
        let node = node.clone();
        tokio::spawn(async move {
            for n in (caller..SESSIONS).step_by(CALLERS) {
                say_patiently(&node, &session(&name(n)), &format!("first of {n}")).await;
                let live = node.status().live_sessions;
                assert!(live <= LIVE, "{live} sessions are in memory");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("the caller got its answers");
    }
    stop(node).await;

    let node = start_small(data.path()).await;
    assert_eq!(node.status().live_sessions, 0, "a start brings no session into memory");
    for n in (0..SESSIONS).step_by(VISIT_EVERY) {
        let session = session(&name(n));
        let reply = say(&node, &session, &format!("second of {n}")).await;
        assert!(reply.starts_with(&mark(&format!("second of {n}"))));
        let items = node.sessions().items(&session, ALL).await.expect("readable").expect("there");
        let said: Vec<_> = items.iter().map(|item| item.text.clone()).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert_eq!((&*said[0], &*said[2]), (&*format!("first of {n}"), &*format!("second of {n}")));
        assert!(said[1].starts_with(&mark(&said[0])));
    }
    stop(node).await;
}
