//! A node that is killed again and again under load, and started again on what is left.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use parlance_loadtest::{
    checker::Report,
    load::{Load, Patience, Targets},
};

use crate::common::{Node, Place};

const CLIENTS: u32 = 50;
/// Slow enough that turns are open most of the time, and quick enough that many are answered between two kills.
const MODEL: &str = "scripted:ttft_ms=20,token_ms=2,tokens=12";

/// What happened so far.
pub(crate) struct Ordeal {
    place: Place,
    targets: Arc<Targets>,
    load: Arc<Load>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    node: Option<Node>,
    make: Box<dyn Fn(&Place) -> Command>,
    pub(crate) kills: usize,
    /// Kills that found a turn between its acknowledgement and its reply: the others prove nothing about it.
    pub(crate) kills_with_open_turn: usize,
}

impl Ordeal {
    pub(crate) fn begin(make: impl Fn(&Place) -> Command + 'static) -> Self {
        let place = Place::new();
        let node = Node::start(&place, &mut make(&place));
        let targets = Arc::new(Targets::one(node.url("")));
        let load = Load::new(targets.clone(), Patience::default());
        let clients = (0..CLIENTS).map(|client| tokio::spawn(load.clone().client(client))).collect();
        let make = Box::new(make);
        Self { place, targets, load, clients, node: Some(node), make, kills: 0, kills_with_open_turn: 0 }
    }

    /// Lets the node live for a random moment, ends it by `kill`, and starts it again.
    pub(crate) async fn kill(&mut self, kill: impl FnOnce(Node)) {
        let moment = Duration::from_millis(rand::random_range(50..350));
        tokio::time::sleep(moment).await;
        kill(self.node.take().expect("it runs"));
        self.kills += 1;
        self.kills_with_open_turn += usize::from(self.load.recorder().open_turns() > 0);
        let node = Node::start(&self.place, &mut (self.make)(&self.place));
        self.targets.set("node", node.url(""));
        self.node = Some(node);
    }

    /// Lets every client finish its message, and compares what they saw with what is recorded.
    pub(crate) async fn end(mut self) -> Report {
        self.load.stop();
        for client in std::mem::take(&mut self.clients) {
            client.await.expect("a client goes on until it is answered");
        }
        let report = self.load.check(CLIENTS).await.expect("the node is up");
        #[expect(clippy::print_stdout, reason = "the figures of an ordeal are part of its result")]
        let () = println!("{} kills, {} with an open turn; {report}", self.kills, self.kills_with_open_turn);
        report
    }
}

/// The arguments of a node with these data.
pub(crate) fn up(mut command: Command, data: &Path) -> Command {
    command.args(["up", "--listen", "127.0.0.1:0", "--model", MODEL, "--data"]).arg(data);
    command
}
