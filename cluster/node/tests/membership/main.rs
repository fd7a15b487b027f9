//! Memberships and failure detectors of whole clusters in a simulated world.

mod world;

use parlance_cluster_node::membership::Duty;
use rand::RngExt;
use world::{Ms, World};

/// Faults happen until then.
const HEAL: Ms = 45_000;
/// From the last fault until all views are what is.
const CONVERGED_WITHIN: Ms = 20_000;

/// One thing that goes wrong, or that an operator does.
fn fault(world: &mut World) {
    let running = world.running();
    let victim = running[world.rng.random_range(0..running.len())];
    let (pause, choice) = (world.rng.random_range(1_000..15_000), world.rng.random_range(0..4));
    match world.rng.random_range(0..10) {
        0 => world.network.loss = [0, 10, 30][world.rng.random_range(0..3)],
        1 => world.network.delay = [5, 20, 200][world.rng.random_range(0..3)],
        2 => world.network.sides = running.iter().map(|&number| (number, world.rng.random_range(0..2))).collect(),
        3 => world.network.sides.clear(),
        4 => world.pause(victim, pause),
        5 => world.jump(victim, [-3_600_000, -5_000, 5_000, 3_600_000][choice]),
        // Somebody else has to be left whom an earlier process of a name can hear of the later from.
        6 if running.len() > 3 => match choice % 2 {
            0 => world.stop(victim),
            _ => world.leave(victim),
        },
        // A new node, or one that was there before.
        7 => {
            let number = world.rng.random_range(0..20);
            if !running.contains(&number) {
                world.start(number);
            }
        }
        // Restarted under the same name, at once; or while the earlier process only sleeps, and wakes up later.
        8 => {
            match choice % 2 {
                0 => world.stop(victim),
                _ => world.pause(victim, pause),
            }
            world.start(victim);
        }
        _ => {
            let weight = world.rng.random_range(1..5);
            world.update(victim, [Duty::Serving, Duty::Draining][choice % 2], weight);
        }
    }
}

/// A world of `nodes` nodes that all know each other.
fn settled(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed);
    for number in 0..nodes {
        world.start(number);
        let next = world.now + world.rng.random_range(0..300);
        world.run_until(next);
    }
    world.run_until(world.now + 10_000);
    assert_eq!(world.disagreement(), None, "seed {seed}");
    world
}

/// Has a cluster suffer; says how long it needed to recover, and the digest of all that was said.
fn ordeal(seed: u64) -> (Ms, u64) {
    let mut world = World::new(seed);
    for number in 0..world.rng.random_range(3..=20) {
        world.start(number);
    }
    while world.now < HEAL {
        let next = world.now + world.rng.random_range(200..4_000);
        world.run_until(next);
        fault(&mut world);
    }
    (world.network.loss, world.network.delay) = (0, 20);
    world.network.sides.clear();
    world.run_until(world.now.max(world.all_awake()));
    let healed = world.now;
    let mut disagreement = world.disagreement();
    while let Some(why) = &disagreement {
        assert!(world.now < healed + CONVERGED_WITHIN, "seed {seed}: at {} still: {why}", world.now);
        world.run_until(world.now + 100);
        disagreement = world.disagreement();
    }
    let recovered = world.now - healed;
    // And so it stays.
    world.run_until(world.now + 10_000);
    assert_eq!(world.disagreement(), None, "seed {seed}");
    assert!(world.violations.is_empty(), "seed {seed}: {:#?}", world.violations);
    (recovered, world.digest())
}

fn ordeals(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        ordeal(seed);
    }
}

#[test]
fn views_converge_and_the_past_stays_past_1() {
    ordeals(0..150);
}

#[test]
fn views_converge_and_the_past_stays_past_2() {
    ordeals(150..300);
}

#[test]
fn the_same_seed_is_the_same_story() {
    assert_eq!(ordeal(7), ordeal(7));
    assert_ne!(ordeal(7).1, ordeal(8).1);
}

/// From the death of a node until everybody suspects it.
fn suspected_everywhere(seed: u64) -> Ms {
    let nodes = 3 + seed as usize % 18;
    let mut world = settled(seed, nodes);
    let victim = world.rng.random_range(0..nodes);
    let dead = world.node(victim).clone();
    world.suspected.clear();
    let next = world.now + world.rng.random_range(0..1_000);
    world.run_until(next);
    let died = world.now;
    world.stop(victim);
    world.run_until(died + 5_000);
    let observers =
        world.running().into_iter().map(|number| world.suspected[&(world.node(number).clone(), dead.clone())]);
    observers.max().expect("others") - died
}

#[test]
fn the_dead_are_suspected_everywhere_in_time() {
    let mut times: Vec<_> = (0..100).map(suspected_everywhere).collect();
    times.sort_unstable();
    assert!(times[50] <= 1_500, "{times:?}");
}

/// Tests nothing: the figures that the documentation gives.
#[test]
#[ignore = "takes a while, and is for people"]
fn figures() {
    let mut times: Vec<_> = (0..300).map(suspected_everywhere).collect();
    times.sort_unstable();
    report(&format!(
        "suspected everywhere, ms: median {}, 99th percentile {}, most {}",
        times[150], times[297], times[299]
    ));
    for (loss, delay) in [(0, 20), (0, 200), (10, 20), (30, 20)] {
        let (mut falsely, mut hours) = (0, 0.0);
        for seed in 0..10 {
            let mut world = settled(seed, 10);
            (world.network.loss, world.network.delay) = (loss, delay);
            let (from, before) = (world.now, world.counts().falsely);
            world.run_until(from + 120_000);
            falsely += world.counts().falsely - before;
            hours += (90 * 120) as f64 / 3_600.0;
        }
        let rate = falsely as f64 / hours;
        report(&format!("loss {loss} %, delays to {delay} ms: {rate:.2} false suspicions per peer and hour"));
    }
    let mut recovered: Vec<_> = (0..300).map(|seed| ordeal(seed).0).collect();
    recovered.sort_unstable();
    report(&format!(
        "views agree after, ms: median {}, 99th percentile {}, most {}",
        recovered[150], recovered[297], recovered[299]
    ));
}

#[expect(clippy::print_stdout, reason = "figures are for whoever runs the test by hand")]
fn report(line: &str) {
    println!("{line}");
}

#[test]
fn nobody_is_suspected_while_nothing_happens() {
    for nodes in [3, 8, 20] {
        let mut world = settled(nodes, nodes as usize);
        let before = world.counts();
        world.run_until(120_000);
        assert_eq!(world.counts(), before);
    }
}
