//! Several nodes in one process: over a simulated log that all of them share, one record store, and links of the in-process network.

mod common;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{finish, keyed, mark, options_with_shards, reply, request, session};
use futures_util::FutureExt as _;
use parlance_actors_runtime::{ClusterOptions, EventOptions, Limits, Node, NodeOptions, TurnEvent, TurnOutcome};
use parlance_cluster_log::sim::{Faults, SimCluster, SimEvents, SimLog};
use parlance_cluster_node::{
    identity::{BootId, Incarnation, NodeName},
    links::network::Network,
    membership::Versions,
    placement::Weight,
};
use parlance_cluster_protocol::{SessionKey, TurnId};
use parlance_cluster_records::RecordStore;

const SHARDS: u16 = 8;
/// Far longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Some nodes over one log and one record store.
struct World {
    data: tempfile::TempDir,
    log: SimCluster,
    records: Arc<dyn RecordStore>,
    events: SimEvents,
    network: Network,
    nodes: Vec<Member>,
    script: &'static str,
    boots: u64,
}

struct Member {
    name: NodeName,
    node: Node,
    log: Arc<SimLog>,
}

fn address(name: &str) -> String {
    let number = name.bytes().last().expect("names are not empty");
    format!("127.0.0.1:{}", 7_000 + u16::from(number))
}

impl World {
    async fn of(names: &[&str], script: &'static str) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let records = common::records(data.path());
        let log = SimCluster::new(7, SHARDS, Faults::NONE);
        let (network, events) = (Network::new(7), SimEvents::new(SHARDS));
        let mut world = Self { data, log, records, events, network, nodes: vec![], script, boots: 0 };
        for name in names {
            world.add(name).await;
        }
        world.settled().await;
        world
    }

    async fn add(&mut self, name: &str) {
        self.add_with(name, true).await;
    }

    /// Without models a node is owner and ingress alone.
    async fn add_with(&mut self, name: &str, has_models: bool) {
        self.boots += 1;
        let me = Incarnation { name: name.parse().expect("a name"), boot: BootId(self.boots) };
        let network = self.network.clone();
        let (incarnation, at) = (me.clone(), address(name));
        let connect = Arc::new(move |handler, observer| {
            let links = network.join(incarnation.clone(), &at, handler, observer);
            async move { Ok(links) }.boxed()
        });
        let cluster = ClusterOptions {
            id: "test".into(),
            me: me.clone(),
            zone: None,
            weight: Weight::ONE,
            address: address(name),
            seeds: ["a", "b", "c"].map(address).to_vec(),
            versions: Versions { oldest: 1, newest: 1 },
            detector: Default::default(),
            membership: Default::default(),
            moves_at_once: 4,
            connect,
        };
        let log = Arc::new(self.log.open());
        let scratch: &Path = &self.data.path().join(format!("{name}-{}", self.boots));
        std::fs::create_dir(scratch).expect("a directory");
        let options = NodeOptions {
            node: name.into(),
            log: log.clone(),
            records: self.records.clone(),
            limits: Limits { session_idle: Duration::from_secs(60), ..Limits::default() },
            cluster: Some(cluster),
            events: Some(EventOptions { cluster: "test".into(), publisher: Arc::new(self.events.clone()) }),
            ..options_with_shards(scratch, self.script, 1)
        };
        let models = if has_models { options.models } else { vec![] };
        let node = Node::start(NodeOptions { models, ..options }).await.expect("the node starts");
        self.nodes.push(Member { name: me.name, node, log });
    }

    fn node(&self, name: &str) -> &Node {
        &self.nodes.iter().find(|member| member.name.as_str() == name).expect("it is there").node
    }

    /// As SIGKILL: nothing that the node does from now on reaches anybody.
    fn kill(&mut self, name: &str) {
        let index = self.nodes.iter().position(|member| member.name.as_str() == name).expect("it is there");
        let member = self.nodes.remove(index);
        self.network.kill(&member.name);
        member.log.crash();
        tokio::spawn(async move { member.node.drain(Duration::ZERO).await });
    }

    /// Waits until every shard is owned once, no more than one from even, and every node says so.
    async fn settled(&self) {
        let least = usize::from(SHARDS) / self.nodes.len();
        self.wait("every shard owned and balanced", |world| {
            let owned: Vec<usize> = world.nodes.iter().map(|member| member.node.status().shards_owned).collect();
            let ready = world.nodes.iter().all(|member| member.node.readiness().ready);
            ready
                && owned.iter().sum::<usize>() == usize::from(SHARDS)
                && owned.iter().all(|owned| (least..=least + 1).contains(owned))
        })
        .await;
    }

    async fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() >= until {
                let views: Vec<_> = self.nodes.iter().map(|member| member.node.cluster()).collect();
                panic!("not {what}: {views:#?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Of each turn of this session what is told, in the order of its first publication. Checks that what is published again was there before.
    fn told(&self, session: &SessionKey) -> Vec<(String, String)> {
        let shard = parlance_cluster_protocol::shard_of_slot(session.slot(), SHARDS);
        let (mut seen, mut last, mut told) = (BTreeSet::new(), None, Vec::new());
        for message in self.events.published(shard) {
            let event: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
            let position: Option<u64> = text(&event["id"]).split('/').nth(2).map(|p| p.parse().expect("a position"));
            if seen.insert(position) {
                assert!(last < position, "{position:?} for the first time behind {last:?}");
                last = position;
                if event["subject"] == *session.chat {
                    told.push((text(&event["data"]["turn"]), text(&event["type"])));
                }
            }
        }
        told
    }

    async fn stop(self) {
        for member in &self.nodes {
            member.node.drain(Duration::ZERO).await;
        }
    }
}

/// A session whose shard the node owns.
fn session_of(world: &World, owner: &str) -> SessionKey {
    let view = world.node(owner).cluster().expect("a cluster");
    (0..10_000)
        .map(|n| session(&format!("chat-{n}")))
        .find(|key| {
            let shard = parlance_cluster_protocol::shard_of_slot(key.slot(), SHARDS);
            view.shards[usize::from(shard.0)].owner.as_deref() == Some(owner)
        })
        .expect("some session lives there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_reached_from_every_node() {
    let world = World::of(&["a", "b", "c"], "scripted:token_ms=1,tokens=16").await;
    let chat = session_of(&world, "b");
    for (number, name) in ["a", "b", "c", "a"].into_iter().enumerate() {
        let text = format!("message {number}");
        let accepted = world.node(name).sessions().submit(&chat, request(&text)).await.expect("accepted");
        let replied = reply(accepted).await;
        assert!(replied.text.starts_with(&mark(&text)), "{replied:?}");
    }
    for name in ["a", "b", "c"] {
        let info = world.node(name).sessions().info(&chat).await.expect("readable").expect("it exists");
        assert_eq!((info.turns, info.items), (4, 8), "{name}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_bound_once_wherever_the_calls_come_in() {
    let world = World::of(&["a", "b", "c"], "scripted:token_ms=1,tokens=16").await;
    let chat = session_of(&world, "c");
    let mut turns = Vec::new();
    for name in ["a", "b", "c"] {
        let accepted = world.node(name).sessions().submit(&chat, keyed("once", "the-key", 1)).await.expect("accepted");
        turns.push((accepted.turn, accepted.replayed));
        reply(accepted).await;
    }
    assert!(turns.iter().all(|(turn, _)| *turn == turns[0].0), "{turns:?}");
    assert_eq!(turns.iter().map(|(_, replayed)| *replayed).collect::<Vec<_>>(), [false, true, true]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_gets_its_share_and_no_turn_fails_meanwhile() {
    let mut world = World::of(&["a", "b"], "scripted:token_ms=2,tokens=16").await;
    let (going, clients) = clients(&world, &["a", "b"], 12);
    world.add("c").await;
    world.settled().await;
    drop(going);
    for client in clients {
        client.await.expect("every turn was answered");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_s_shards_are_taken_over_and_its_open_turns_answered() {
    let mut world = World::of(&["a", "b", "c"], "scripted:ttft_ms=20,token_ms=25,tokens=60").await;
    let chat = session_of(&world, "b");
    let accepted = world.node("a").sessions().submit(&chat, request("survive")).await.expect("accepted");
    let turn = accepted.turn;
    let mut stream = accepted.stream;
    let first = stream.next().await;
    assert!(matches!(first, Some(TurnEvent::Delta { .. })), "{first:?}");
    world.kill("b");
    loop {
        match stream.next().await {
            Some(TurnEvent::Delta { .. }) => {}
            Some(TurnEvent::Interrupted) => break,
            other => panic!("its node is gone: {other:?}"),
        }
    }
    let stream = world.node("a").sessions().watch(&chat, turn).await.expect("found again").expect("it is there");
    let (text, outcome) = finish(stream).await;
    assert!(text.starts_with(&mark("survive")) && matches!(outcome, TurnOutcome::Replied(_)), "{text} {outcome:?}");
    world.settled().await;
    // The same name again: another start of it.
    world.add("b").await;
    world.settled().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_fails_no_turn() {
    let mut world = World::of(&["a", "b", "c"], "scripted:token_ms=2,tokens=16").await;
    let (going, clients) = clients(&world, &["a", "b"], 12);
    let index = world.nodes.iter().position(|member| member.name.as_str() == "c").expect("it is there");
    let leaving = world.nodes.remove(index);
    leaving.node.drain(Duration::from_secs(20)).await;
    assert_eq!(leaving.node.status().shards_owned, 0);
    world.settled().await;
    drop(going);
    for client in clients {
        client.await.expect("every turn was answered");
    }
    let view = world.node("a").cluster().expect("a cluster");
    assert_eq!(view.nodes.iter().find(|node| node.name == "c").map(|node| node.standing), Some("left"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_drains_a_node_and_moves_a_shard() {
    let world = World::of(&["a", "b", "c"], "scripted").await;
    world.node("a").drain_node("b", true).await.expect("told");
    world.wait("b empty", |world| world.node("b").status().shards_owned == 0).await;
    world.node("c").drain_node("b", false).await.expect("told");
    world.settled().await;
    let nobody = world.node("a").drain_node("nobody", true).await.expect_err("no such node");
    assert_eq!(nobody.to_string(), "there is no node nobody; there are: a, b, c");
    let view = world.node("a").cluster().expect("a cluster");
    // From a node with one more to one with one less: it stays there.
    let most = view.nodes.iter().max_by_key(|node| node.shards).expect("there are nodes").name.clone();
    let least = view.nodes.iter().min_by_key(|node| node.shards).expect("there are nodes").name.clone();
    let moves = view.shards.iter().find(|shard| shard.owner.as_ref() == Some(&most)).expect("it owns some").shard;
    let nowhere = world.node("a").move_shard(99, "a").await.expect_err("no such shard");
    assert_eq!(nowhere.to_string(), "there is no shard 99; they are numbered from 0 to 7");
    world.node("a").move_shard(moves.into(), &least).await.expect("told");
    world
        .wait("the shard moved", |world| {
            let view = world.node("a").cluster().expect("a cluster");
            view.shards[usize::from(moves)].owner.as_ref() == Some(&least)
        })
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_in_order_wherever_the_shard_is() {
    let mut world = World::of(&["a", "b", "c"], "scripted:token_ms=0,tokens=4").await;
    let chat = session_of(&world, "a");
    let mut turns: Vec<TurnId> = Vec::new();
    for round in 0..4 {
        for number in 0..5 {
            let node = &world.nodes[0].node;
            let text = format!("{number} of round {round}");
            let accepted = node.sessions().submit(&chat, request(&text)).await.expect("accepted");
            turns.push(accepted.turn);
            reply(accepted).await;
        }
        match round {
            // Handed over while nothing can be published.
            0 => {
                world.events.set_failing(true);
                world.node("b").drain_node("a", true).await.expect("told");
                world.wait("a empty", |world| world.node("a").status().shards_owned == 0).await;
            }
            1 => {
                world.events.set_failing(false);
                world.node("b").drain_node("a", false).await.expect("told");
                world.settled().await;
            }
            2 => {
                let owner = owner_of(&world, &chat);
                world.kill(&owner);
                world.settled().await;
            }
            _ => {}
        }
    }
    let types = ["parlance.turn.accepted.v1", "parlance.turn.replied.v1"];
    let told: Vec<_> = turns.iter().flat_map(|turn| types.map(|kind| (turn.to_string(), kind.to_owned()))).collect();
    world.wait("everything told", |world| world.told(&chat) == told).await;
    world.stop().await;
}

fn owner_of(world: &World, session: &SessionKey) -> String {
    let view = world.nodes[0].node.cluster().expect("a cluster");
    let shard = parlance_cluster_protocol::shard_of_slot(session.slot(), SHARDS);
    view.shards[usize::from(shard.0)].owner.clone().expect("it is owned")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_loses_its_shards_and_comes_back() {
    let world = World::of(&["a", "b", "c"], "scripted:token_ms=1,tokens=16").await;
    for other in ["a", "b"] {
        world.network.cut(&"c".parse().expect("a name"), &other.parse().expect("a name"));
    }
    world
        .wait("its shards taken", |world| {
            ["a", "b"].map(|name| world.node(name).status().shards_owned).iter().sum::<usize>() == usize::from(SHARDS)
        })
        .await;
    let chat = session_of(&world, "a");
    let accepted = world.node("b").sessions().submit(&chat, request("still there")).await.expect("accepted");
    reply(accepted).await;
    world.network.heal();
    world.settled().await;
    let accepted = world.node("c").sessions().submit(&chat, request("again")).await.expect("accepted");
    reply(accepted).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_anywhere_answer_for_sessions_everywhere() {
    let mut world = World::of(&["a", "b"], "scripted:ttft_ms=5,token_ms=2,tokens=30").await;
    world.add_with("c", false).await;
    world.settled().await;
    let chat = session_of(&world, "c");
    world
        .wait("c knows of models", |world| {
            let node = world.node("c").clone();
            node.models().list().is_empty() && node.readiness().ready
        })
        .await;
    for (number, name) in ["c", "a", "c"].into_iter().enumerate() {
        let text = format!("message {number}");
        let mut turn = request(&text);
        turn.options.model = "scripted".into();
        let accepted = world.node(name).sessions().submit(&chat, turn).await.expect("accepted");
        assert!(reply(accepted).await.text.starts_with(&mark(&text)));
    }
    let mut unknown = request("to nobody");
    unknown.options.model = "nothing".into();
    let refused = world.node("c").sessions().submit(&chat, unknown).await.expect_err("nobody has it");
    assert_eq!(refused.code(), "model_not_found");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_on_when_its_model_s_node_dies() {
    let mut world = World::of(&["a", "b"], "scripted:ttft_ms=20,token_ms=25,tokens=80").await;
    world.add_with("c", false).await;
    world.settled().await;
    let chat = session_of(&world, "c");
    let accepted = world.node("c").sessions().submit(&chat, request("survive")).await.expect("accepted");
    let mut stream = accepted.stream;
    let mut shown = String::new();
    while shown.len() < 40 {
        match stream.next().await {
            Some(TurnEvent::Delta { text, .. }) => shown.push_str(&text),
            other => panic!("after {shown:?}: {other:?}"),
        }
    }
    let working = ["a", "b"].into_iter().find(|name| world.node(name).models().list()[0].load.running > 0);
    world.kill(working.expect("one of them works"));
    let (rest, outcome) = finish(stream).await;
    let TurnOutcome::Replied(replied) = outcome else { panic!("{outcome:?}") };
    assert_eq!(shown + &rest, replied.text, "it goes on where it was");
    assert!(replied.text.starts_with(&mark("survive")));
    world.stop().await;
}

/// Clients that talk to these nodes until the sender is dropped; each turn has to be answered with its own mark.
fn clients(
    world: &World,
    names: &[&str],
    count: usize,
) -> (tokio::sync::watch::Sender<()>, Vec<tokio::task::JoinHandle<()>>) {
    let (going, gone) = tokio::sync::watch::channel(());
    let clients = (0..count).map(|client| {
        let node = world.node(names[client % names.len()]).clone();
        let mut gone = gone.clone();
        tokio::spawn(async move {
            let chat = session(&format!("client-{client}"));
            for n in 0.. {
                let text = format!("{n} of client {client}");
                let accepted = node.sessions().submit(&chat, request(&text)).await.expect("a turn was refused");
                let (turn, mut stream) = (accepted.turn, accepted.stream);
                let text_of_reply = loop {
                    match stream.next().await {
                        Some(TurnEvent::Ended(TurnOutcome::Replied(replied))) => break replied.text.clone(),
                        Some(TurnEvent::Delta { .. }) => {}
                        Some(TurnEvent::Interrupted) => {
                            stream = node.sessions().watch(&chat, turn).await.expect("reachable").expect("it is there");
                        }
                        other => panic!("turn {turn}: {other:?}"),
                    }
                };
                assert!(text_of_reply.starts_with(&mark(&text)), "{text_of_reply}");
                if gone.has_changed().is_err() {
                    return;
                }
            }
            let _ = gone.changed().await;
        })
    });
    let clients = clients.collect();
    (going, clients)
}
