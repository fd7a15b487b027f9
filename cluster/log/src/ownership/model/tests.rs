//! The clusters that are explored, and what must be found in them.

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::{Actor, Cluster};
use crate::ownership::{Rule, Rules};

const fn actor(name: &'static str, claims: u8, proposals: u8, releases: u8) -> Actor {
    Actor { name, claims, proposals, releases }
}

fn cluster(actors: &[Actor], time_outs: u8) -> Cluster {
    Cluster { actors: actors.to_vec(), time_outs, duplicates: 0, window: 2, rules: Rules::ALL }
}

/// Explores a cluster to the last state.
fn explore(what: &str, cluster: Cluster) {
    let start = Instant::now();
    let checker = cluster.checker().threads(2).spawn_bfs().join();
    report(what, &checker, start);
    checker.assert_properties();
}

/// Explores a cluster without one rule until a harm is found; the properties that broke.
fn harm(rule: Rule, cluster: &Cluster) -> Vec<&'static str> {
    let start = Instant::now();
    let cluster = Cluster { rules: Rules::without(rule), ..cluster.clone() };
    let checker = cluster.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    report(&format!("without {rule:?}"), &checker, start);
    let found = checker.discoveries();
    let properties = checker.model().properties().into_iter();
    let always = properties.filter(|property| property.expectation == Expectation::Always);
    always.map(|property| property.name).filter(|name| found.contains_key(name)).collect()
}

#[expect(clippy::print_stdout, reason = "the number of states is the result that people look for")]
fn report(what: &str, checker: &impl Checker<Cluster>, start: Instant) {
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{what}: {states} states, depth {depth}, {:.1} s", start.elapsed().as_secs_f32());
}

/// Whether the clusters that take minutes are wanted.
fn large() -> bool {
    std::env::var("PARLANCE_MODEL").is_ok_and(|size| size == "large")
}

/// Two appends in flight, two of them time out, a rival claims.
#[test]
fn two_nodes_with_a_pipeline() {
    explore("two nodes, pipeline", cluster(&[actor("a", 1, 2, 0), actor("b", 1, 0, 0)], 2));
    if large() {
        explore("two nodes, both recording", cluster(&[actor("a", 1, 2, 0), actor("b", 1, 1, 0)], 1));
        explore("two nodes, a barrier repeated", cluster(&[actor("a", 2, 2, 0), actor("b", 1, 0, 0)], 2));
    }
}

/// Both record; either may be deposed, and the deposed one may come back.
#[test]
fn two_nodes_that_depose_each_other() {
    explore("two nodes, deposed", cluster(&[actor("a", 1, 1, 0), actor("b", 1, 1, 0)], 2));
    if large() {
        explore("two nodes, deposed twice", cluster(&[actor("a", 2, 1, 0), actor("b", 2, 1, 0)], 1));
    }
}

/// The log repeats an append.
#[test]
fn two_nodes_and_appends_that_land_twice() {
    let repeating = |actors: &[Actor], time_outs| Cluster { duplicates: 1, ..cluster(actors, time_outs) };
    explore("two nodes, landing twice", repeating(&[actor("a", 1, 1, 0), actor("b", 1, 0, 0)], 1));
    if large() {
        explore("two nodes, pipeline landing twice", repeating(&[actor("a", 1, 2, 0), actor("b", 1, 0, 0)], 1));
    }
}

/// The second process is the first one's restart, while the first one may still be about, with appends under way.
#[test]
fn a_restart_under_the_same_name() {
    explore("restart", cluster(&[actor("a", 1, 1, 0), actor("a", 1, 1, 0)], 1));
    explore("restart after a release", cluster(&[actor("a", 1, 1, 1), actor("a", 1, 0, 0)], 1));
}

/// A rival and a restart claim at the same time.
#[test]
fn three_nodes() {
    explore("three nodes", cluster(&[actor("a", 0, 1, 0), actor("b", 1, 0, 0), actor("a", 1, 0, 0)], 1));
    if large() {
        explore("three nodes, resolving", cluster(&[actor("a", 1, 1, 0), actor("b", 1, 0, 0), actor("a", 1, 0, 0)], 1));
        explore("three nodes, recording", cluster(&[actor("a", 0, 1, 0), actor("b", 1, 1, 0), actor("a", 1, 1, 0)], 0));
    }
}

#[test]
fn without_any_one_rule_harm_is_found() {
    let pipeline = cluster(&[actor("a", 1, 2, 0), actor("b", 1, 1, 0)], 1);
    let namesakes = cluster(&[actor("a", 0, 0, 0), actor("b", 1, 0, 0), actor("b", 1, 0, 0)], 1);
    let expected = [
        (Rule::ClaimChain, &pipeline, "a dead claim stays dead"),
        (Rule::ClaimNonce, &namesakes, "an epoch has one owner"),
        (Rule::CurrentEpoch, &pipeline, "what was called failed is not valid"),
        (Rule::NextSeq, &pipeline, "valid records are in order, none twice"),
        (Rule::AckOrder, &pipeline, "what was called committed is valid"),
        (Rule::AckGap, &pipeline, "what was called committed is valid"),
        (Rule::Barrier, &pipeline, "what was called failed is not valid"),
    ];
    for (rule, cluster, property) in expected {
        assert!(harm(rule, cluster).contains(&property), "without {rule:?}, another harm was found first");
    }
}
