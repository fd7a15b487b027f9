//! Requests that nobody wants any more, in every state.

use super::*;

/// Two that hold lanes, one that computes its prompt for long, and one that waits behind the victim.
fn neighbours() -> [GenerateRequest; 3] {
    [long_request(5), request(prompt(1, 70), 20), request(prompt(3, 9), 12)]
}

/// Runs the neighbours with a victim between them, which `end` ends after so many steps. What the victim had heard by then.
fn run_with_victim(steps: usize, hangs_up_after: usize, end: impl FnOnce(&CancelHandle)) -> (Harness, Ear, [Ear; 3]) {
    let mut harness = Harness::new(3, options(12, 8));
    let [first, second, behind] = neighbours();
    let (first, second) = (harness.submit(first).0, harness.submit(second).0);
    let victim = Ear::default();
    let asked = GenerateRequest { max_tokens: 25, ..long_request(40) };
    let cancel = harness.submit_to(victim.sink_that_hangs_up_after(hangs_up_after), asked);
    let (behind, _) = harness.submit(behind);
    (0..steps).for_each(|_| assert_ne!(harness.step(), Step::Dead));
    end(&cancel);
    (harness, victim, [first, second, behind])
}

fn assert_undisturbed(mut harness: Harness, ears: &[Ear; 3], what: &str) {
    harness.run();
    for (ear, asked) in ears.iter().zip(neighbours()) {
        assert_eq!(ear.heard().essence(), expected(&asked, CONTEXT).essence(), "{what}");
    }
    assert_eq!(harness.load.now(), ReplicaLoad::default(), "{what}");
}

#[test]
fn a_cancelled_request_is_gone_within_one_step_and_its_neighbours_never_know() {
    let mut states = HashMap::<&str, u32>::new();
    for steps in 0..80 {
        let (mut harness, victim, ears) = run_with_victim(steps, usize::MAX, CancelHandle::cancel);
        let before = victim.heard();
        let state = match (victim.is_dropped(), steps) {
            (true, _) => "ended",
            (false, 0) => "queued",
            _ if before.ids.is_empty() => "prompt",
            _ => "reply",
        };
        *states.entry(state).or_default() += 1;
        harness.step();
        assert!(victim.is_dropped(), "cancelled after {steps} steps and still there");
        assert_eq!(victim.heard(), before, "nothing is said to a client that left");
        assert_undisturbed(harness, &ears, &format!("cancelled after {steps} steps"));
    }
    assert_eq!(states.len(), 4, "not every state was met: {states:?}");
}

#[test]
fn a_client_that_hangs_up_is_gone_at_once_and_its_neighbours_never_know() {
    for events in 1..25 {
        let (mut harness, victim, ears) = run_with_victim(0, events, |_| ());
        while victim.heard().events < events {
            assert_eq!(harness.step(), Step::Worked);
        }
        assert!(victim.is_dropped(), "hung up at event {events} and still there");
        assert_undisturbed(harness, &ears, &format!("hung up at event {events}"));
    }
}

#[test]
fn a_lane_that_was_given_back_is_the_next_ones_within_a_step() {
    // Steps before the cancellation: queued, in its prompt, in its reply.
    for steps in [0, 1, 3, 12] {
        let mut harness = Harness::new(1, options(8, 8));
        let (ear, cancel) = harness.submit(long_request(20));
        let neighbour = request(prompt(3, 10), 10);
        let (other, _) = harness.submit(neighbour.clone());
        (0..steps).for_each(|_| assert_ne!(harness.step(), Step::Dead));
        let before = ear.heard();
        assert_eq!(before.ids.is_empty(), steps < 3);
        cancel.cancel();
        harness.step();
        assert!(ear.is_dropped());
        assert_eq!(harness.load.now(), ReplicaLoad { running: 1, waiting: 0 }, "the neighbour has the lane");
        harness.run();
        assert_eq!(ear.heard(), before);
        assert_eq!(other.heard().essence(), expected(&neighbour, CONTEXT).essence());
    }
}

#[test]
fn a_sink_that_hangs_up_or_panics_frees_the_lane() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let ear = Ear::default();
    harness.submit_to(ear.sink_that_hangs_up_after(3), long_request(5));
    harness.submit_to(Box::new(|_| panic!("a broken client")), long_request(5));
    for _ in 0..4 {
        harness.step();
    }
    assert_eq!((ear.heard().ids.len(), ear.heard().end), (3, None));
    assert_eq!(harness.load.now(), ReplicaLoad::default());
    assert_eq!(harness.step(), Step::Idle);
}
