//! The power fails again and again under a node under load: whatever was not synced is gone, names too. What the node acknowledged must
//! be answered once, in order, all the same.

#![expect(clippy::print_stdout, reason = "the figures of an ordeal are part of its result")]

mod common;
#[path = "power/disk.rs"]
mod disk;
#[path = "power/layer.rs"]
mod layer;
mod ordeal;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use common::{Node, Place, planted};
use disk::{Anything, Disk, Nothing, Remains};
use ordeal::{Ordeal, up};

const CUTS: usize = 25;
/// Cuts that must find a turn between its acknowledgement and its reply: else they prove nothing about it.
const CUTS_WITH_OPEN_TURN: usize = 12;
/// Power cuts during a node's first start.
const FIRST_STARTS: u64 = 10;
/// A planted bug must be found within so many cuts.
const CUTS_OF_PLANTED: usize = 20;

/// Cuts the power of the disk and kills the node at the same moment.
fn cut(disk: &mut Disk, node: Node, remains: &mut dyn Remains) {
    disk.cut_power(remains, || node.signal("KILL"));
    node.kill();
    disk.power_on();
}

fn sound(data: PathBuf) -> impl Fn(&Place) -> Command {
    move |place| up(place.parlance(), &data)
}

async fn acknowledged_turns_survive(remains: &mut dyn Remains) {
    let mut disk = Disk::mount();
    let mut ordeal = Ordeal::begin(sound(disk.data()));
    for _ in 0..CUTS {
        ordeal.kill(|node| cut(&mut disk, node, remains)).await;
    }
    let open = ordeal.kills_with_open_turn;
    let report = ordeal.end().await;
    let figures = disk.figures();
    println!("{figures}");
    assert_eq!(report.violations, []);
    assert!(open >= CUTS_WITH_OPEN_TURN, "only {open} cuts found an open turn");
    assert!(figures.losses_of_something > 0, "no cut lost anything: {figures}");
    assert!(report.replied >= CUTS * 10, "the clients hardly got through: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_turns_survive_when_all_that_was_not_synced_is_lost() {
    acknowledged_turns_survive(&mut Nothing).await;
}

/// As disks do it: of what was not synced, any sectors may be there and others not.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_turns_survive_when_any_part_of_what_was_not_synced_is_lost() {
    acknowledged_turns_survive(&mut Anything).await;
}

#[test]
fn a_node_starts_after_a_power_cut_in_its_first_start() {
    for n in 0..FIRST_STARTS {
        let (place, mut disk) = (Place::new(), Disk::mount());
        let mut command = sound(disk.data())(&place);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("the binary starts");
        std::thread::sleep(Duration::from_millis(n * 15));
        disk.cut_power(&mut Nothing, || child.kill().expect("our own child"));
        child.wait().expect("our own child");
        disk.power_on();
        Node::start(&place, &mut sound(disk.data())(&place)).wait_ready();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_before_the_sync_is_found() {
    for cuts in 1..=CUTS_OF_PLANTED {
        let mut disk = Disk::mount();
        let data = disk.data();
        let mut ordeal = Ordeal::begin(move |place: &Place| up(planted(place, "ack-before-fsync"), &data));
        ordeal.kill(|node| cut(&mut disk, node, &mut Nothing)).await;
        let report = ordeal.end().await;
        if !report.violations.is_empty() {
            println!("found after {cuts} power cuts: {:?}", report.violations[0]);
            return;
        }
    }
    panic!("{CUTS_OF_PLANTED} power cuts did not show the planted bug");
}
