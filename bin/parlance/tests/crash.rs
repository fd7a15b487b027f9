//! A node under load is killed again and again. What it acknowledged must be answered once, in order, all the same.

mod common;
mod ordeal;

use common::{Node, Place, planted};
use ordeal::{Ordeal, up};

const KILLS: usize = 100;
/// Kills that must find a turn between its acknowledgement and its reply: else they prove nothing about it.
const KILLS_WITH_OPEN_TURN: usize = 60;
/// A planted bug must be found within so many kills.
const KILLS_OF_PLANTED: usize = 60;
/// Between two checks for a planted bug.
const KILLS_PER_CHECK: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_turns_survive_sigkill() {
    let mut ordeal = Ordeal::begin(|place: &Place| up(place.parlance(), &place.data()));
    for _ in 0..KILLS {
        ordeal.kill(Node::kill).await;
    }
    let open = ordeal.kills_with_open_turn;
    let report = ordeal.end().await;
    assert_eq!(report.violations, []);
    assert_eq!(report.recorded_failures, 0, "an interruption is no failure: {report}");
    assert!(open >= KILLS_WITH_OPEN_TURN, "only {open} kills found an open turn");
    assert!(report.replied >= KILLS * 10, "the clients hardly got through: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_before_the_append_is_found() {
    let mut kills = 0;
    while kills < KILLS_OF_PLANTED {
        let mut ordeal = Ordeal::begin(|place: &Place| up(planted(place, "ack-before-append"), &place.data()));
        for _ in 0..KILLS_PER_CHECK {
            ordeal.kill(Node::kill).await;
        }
        kills += KILLS_PER_CHECK;
        if !ordeal.end().await.violations.is_empty() {
            return;
        }
    }
    panic!("{kills} kills did not show the planted bug");
}
