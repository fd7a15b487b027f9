//! A node under load is killed again and again. What it acknowledged must be answered once, in order, all the same.

mod common;
mod load;

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use common::{Node, Place};
use load::Load;
use parlance_loadtest::checker::Report;

const CLIENTS: u32 = 50;
/// Slow enough that turns are open most of the time, and quick enough that many are answered between two kills.
const MODEL: &str = "scripted:ttft_ms=20,token_ms=2,tokens=12";
const KILLS: usize = 100;
/// Kills that must find a turn between its acknowledgement and its reply: else they prove nothing about it.
const KILLS_WITH_OPEN_TURN: usize = 60;
/// A planted bug must be found within so many kills.
const KILLS_OF_PLANTED: usize = 60;
/// Between two checks for a planted bug.
const KILLS_PER_CHECK: usize = 10;

/// What happened so far.
struct Ordeal {
    place: Place,
    load: Arc<Load>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    node: Option<Node>,
    make: fn(&Place) -> Command,
    kills: usize,
    kills_with_open_turn: usize,
}

impl Ordeal {
    fn begin(make: fn(&Place) -> Command) -> Self {
        let place = Place::new();
        let node = Node::start(&place, &mut make(&place));
        let load = Load::new(node.address().port());
        let clients = (0..CLIENTS).map(|client| tokio::spawn(load.clone().client(client))).collect();
        Self { place, load, clients, node: Some(node), make, kills: 0, kills_with_open_turn: 0 }
    }

    /// Lets the node live for a random moment, kills it, and starts it again on the same data.
    async fn kill(&mut self) {
        let moment = Duration::from_millis(rand::random_range(50..350));
        tokio::time::sleep(moment).await;
        let node = self.node.take().expect("it runs");
        node.kill();
        self.kills += 1;
        self.kills_with_open_turn += usize::from(self.load.open_turns() > 0);
        let node = Node::start(&self.place, &mut (self.make)(&self.place));
        self.load.node_is_at(node.address().port());
        self.node = Some(node);
    }

    /// Lets every client finish its message, and compares what they saw with what is recorded.
    async fn end(mut self) -> Report {
        self.load.stop();
        for client in std::mem::take(&mut self.clients) {
            client.await.expect("a client goes on until it is answered");
        }
        let report = self.load.check(CLIENTS).await;
        println!("{} kills, {} with an open turn; {report}", self.kills, self.kills_with_open_turn);
        report
    }
}

fn up(mut command: Command, place: &Place) -> Command {
    command.args(["up", "--listen", "127.0.0.1:0", "--model", MODEL, "--data"]).arg(place.data());
    command
}

fn sound(place: &Place) -> Command {
    up(place.parlance(), place)
}

fn acknowledges_too_early(place: &Place) -> Command {
    let planted = Path::new(env!("CARGO_BIN_EXE_parlance")).with_file_name("parlance-planted");
    let remedy = "cargo build --release -p parlance --features planted-bugs --bin parlance-planted";
    assert!(planted.exists(), "{} is missing; make it: {remedy}", planted.display());
    let mut command = Command::new(planted);
    command.env("HOME", place.path()).env("PARLANCE_PLANTED_BUG", "ack-before-append");
    up(command, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_turns_survive_sigkill() {
    let mut ordeal = Ordeal::begin(sound);
    for _ in 0..KILLS {
        ordeal.kill().await;
    }
    let open = ordeal.kills_with_open_turn;
    let report = ordeal.end().await;
    assert_eq!(report.violations, []);
    assert!(open >= KILLS_WITH_OPEN_TURN, "only {open} kills found an open turn");
    assert!(report.replied >= KILLS * 10, "the clients hardly got through: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_before_the_append_is_found() {
    let mut kills = 0;
    while kills < KILLS_OF_PLANTED {
        let mut ordeal = Ordeal::begin(acknowledges_too_early);
        for _ in 0..KILLS_PER_CHECK {
            ordeal.kill().await;
        }
        kills += KILLS_PER_CHECK;
        if !ordeal.end().await.violations.is_empty() {
            return;
        }
    }
    panic!("{kills} kills did not show the planted bug");
}
