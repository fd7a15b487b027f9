//! What is published of turns: in order, without a gap, whatever dies meanwhile.

mod common;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{options_with_shards, reply, request, say, session, start};
use parlance_actors_runtime::{EventOptions, Node, NodeOptions};
use parlance_cluster_log::sim::{Faults, SimCluster, SimEvents, SimLog};
use parlance_cluster_protocol::{SessionKey, ShardId, TurnId};
use parlance_cluster_records::RecordStore;
use serde_json::Value;

const SHARDS: u16 = 2;
const QUICK: &str = "scripted:token_ms=0,tokens=4";
/// Far longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// One node over a log, records and events that outlive it.
struct World {
    data: tempfile::TempDir,
    log: SimCluster,
    records: Arc<dyn RecordStore>,
    events: SimEvents,
    lives: usize,
}

impl World {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let records = common::records(data.path());
        let log = SimCluster::new(11, SHARDS, Faults::NONE);
        Self { data, log, records, events: SimEvents::new(SHARDS), lives: 0 }
    }

    async fn start(&mut self) -> (Node, Arc<SimLog>) {
        self.lives += 1;
        let log = Arc::new(self.log.open());
        let scratch: &Path = &self.data.path().join(self.lives.to_string());
        std::fs::create_dir(scratch).expect("a directory");
        let events = EventOptions { cluster: "test".into(), publisher: Arc::new(self.events.clone()) };
        let node = start(NodeOptions {
            log: log.clone(),
            records: self.records.clone(),
            events: Some(events),
            ..options_with_shards(scratch, QUICK, 1)
        });
        (node.await, log)
    }

    /// As SIGKILL: nothing that the node does from now on reaches anybody.
    async fn crash(&self, (node, log): (Node, Arc<SimLog>)) {
        log.crash();
        node.drain(Duration::ZERO).await;
    }

    /// Every event once, at its first publication. Checks that what is published again was there before, and that nothing is left out.
    fn first_publications(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            let mut seen = BTreeSet::new();
            let mut last = None;
            for message in self.events.published(shard) {
                let event: Value = serde_json::from_slice(&message.payload).expect("JSON");
                let position = position(&event);
                if seen.insert(position) {
                    assert!(last < Some(position), "{position} for the first time behind {last:?}");
                    last = Some(position);
                    assert_eq!(event["subject"].as_str().map(str::as_bytes), Some(&message.key[..]));
                    all.push(event);
                }
            }
        }
        all
    }

    fn repetitions(&self) -> usize {
        let published: usize = (0..SHARDS).map(|shard| self.events.published(ShardId(shard)).len()).sum();
        published - self.first_publications().len()
    }

    /// What is told of a session's turns, in order.
    fn told(&self, session: &SessionKey) -> Vec<(String, String)> {
        let events = self.first_publications();
        let of_session = events.iter().filter(|event| event["subject"] == *session.chat);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        of_session.map(|event| (text(&event["data"]["turn"]), text(&event["type"]))).collect()
    }

    /// Waits until of each of these turns, and nothing else, its acceptance and its reply are told, in order.
    async fn wait_told(&self, session: &SessionKey, turns: &[TurnId]) {
        let types = ["parlance.turn.accepted.v1", "parlance.turn.replied.v1"];
        let expected: Vec<_> =
            turns.iter().flat_map(|turn| types.map(|kind| (turn.to_string(), kind.to_owned()))).collect();
        self.wait(&format!("told {expected:?}"), |world| world.told(session) == expected).await;
    }

    async fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < until, "not {what}: {:#?}", self.first_publications());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn position(event: &Value) -> u64 {
    let id = event["id"].as_str().expect("an id");
    let [cluster, slot, position, index] = id.split('/').collect::<Vec<_>>()[..] else { panic!("{id}") };
    assert_eq!((cluster, index), ("test", "0"));
    slot.parse::<u16>().expect("a slot");
    position.parse().expect("a position")
}

async fn take_turns(node: &Node, session: &SessionKey, count: usize) -> Vec<TurnId> {
    let mut turns = Vec::new();
    for number in 0..count {
        let accepted = node.sessions().submit(session, request(&format!("message {number}"))).await.expect("accepted");
        turns.push(accepted.turn);
        reply(accepted).await;
    }
    turns
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_told_in_order() {
    let mut world = World::new();
    let (node, _) = world.start().await;
    let sessions: Vec<_> = (0..8).map(|n| session(&format!("chat-{n}"))).collect();
    let talks = sessions.iter().map(|session| take_turns(&node, session, 10));
    let turns = futures_util::future::join_all(talks).await;
    for (session, turns) in sessions.iter().zip(&turns) {
        world.wait_told(session, turns).await;
    }
    let event = &world.first_publications()[0];
    assert_eq!((&event["specversion"], &event["source"]), (&"1.0".into(), &"/parlance/test".into()));
    assert_eq!(world.repetitions(), 0, "nothing failed");
    node.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_gap() {
    let mut world = World::new();
    let chat = session("chat");
    let mut turns = Vec::new();
    for round in 0..3 {
        let node = world.start().await;
        // It dies with everything of the last round still to be told, or something.
        world.events.set_failing(round == 1);
        turns.extend(take_turns(&node.0, &chat, 7).await);
        world.crash(node).await;
        world.events.set_failing(false);
    }
    let (node, _) = world.start().await;
    world.wait_told(&chat, &turns).await;
    node.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_behind_the_checkpoint() {
    let mut world = World::new();
    let chat = session("chat");
    let (node, _) = world.start().await;
    let mut turns = take_turns(&node, &chat, 20).await;
    world.wait_told(&chat, &turns).await;
    node.drain(Duration::from_secs(5)).await;
    let (node, _) = world.start().await;
    turns.extend(take_turns(&node, &chat, 1).await);
    world.wait_told(&chat, &turns).await;
    assert!(world.repetitions() <= 2, "what the checkpoint knows to be published is not published again");
    node.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_stops_no_turn_and_loses_no_event() {
    let mut world = World::new();
    let chat = session("chat");
    let shard = parlance_cluster_protocol::shard_of_slot(chat.slot(), SHARDS);
    let oldest = |world: &World| world.log.entries(shard).first().map_or(u64::MAX, |entry| entry.offset.0);
    let (node, _) = world.start().await;
    let mut turns = take_turns(&node, &chat, 3).await;
    world.wait_told(&chat, &turns).await;
    world.events.set_failing(true);
    turns.extend(take_turns(&node, &chat, 30).await);
    world.wait("failing", |world| world.events.failures() >= 3).await;
    // Writes everything, checkpoints and trims.
    node.drain(Duration::from_secs(5)).await;
    let told = world.first_publications().iter().map(position).max().expect("some were told");
    assert!(oldest(&world) <= told + 1, "the log has to keep what is not published: {} > {told}", oldest(&world));
    let (node, log) = world.start().await;
    turns.extend(take_turns(&node, &chat, 3).await);
    world.events.set_failing(false);
    world.wait_told(&chat, &turns).await;
    assert!(world.repetitions() > 0, "a call that fails has published some");
    node.drain(Duration::from_secs(5)).await;
    drop(log);
    assert!(oldest(&world) > told + 1, "what is published may be forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_not_told() {
    let mut world = World::new();
    let (node, _) = world.start().await;
    let (chat, secret) = (session("chat"), "nobody else hears this");
    let replied = say(&node, &chat, secret).await;
    world.wait("told of the turn", |world| world.told(&chat).len() == 2).await;
    let events = world.first_publications();
    assert_eq!((&events[1]["data"]["finish"], &events[1]["data"]["model"]), (&"stop".into(), &"scripted".into()));
    for message in (0..SHARDS).flat_map(|shard| world.events.published(ShardId(shard))) {
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(!payload.contains(secret) && !payload.contains(&replied), "{payload}");
    }
    node.drain(Duration::ZERO).await;
}
