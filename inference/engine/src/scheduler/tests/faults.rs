//! Models that fail: who is told what, and when the engine gives up.

use super::*;

#[test]
fn a_failed_step_fails_its_batch_and_nobody_else() {
    for poison in [MAKES_PANIC, MAKES_ERROR] {
        let mut harness = Harness::new(3, options(6, 6));
        // Decoding, in the failing step; the poisoned; one whose prompt waits for its chunk; one that waits for a lane.
        let (decoding, _) = harness.submit(long_request(5));
        harness.step();
        let (poisoned, _) = harness.submit(request([prompt(1, 4), vec![poison]].concat(), 5));
        let rest = [request(prompt(2, 30), 9), request(prompt(3, 9), 9)];
        let rest = rest.map(|request| (harness.submit(request.clone()).0, expected(&request, CONTEXT)));
        harness.step();
        for ear in [decoding, poisoned] {
            assert!(
                matches!(ear.heard().end, Some(Err(EngineError::ModelFailed(message))) if message.contains("asked to"))
            );
        }
        harness.run();
        for (ear, expected) in rest {
            assert_eq!(ear.heard().essence(), expected.essence());
        }
    }
}

#[test]
fn a_logit_that_is_not_finite_fails_its_own_request() {
    let mut harness = Harness::new(2, EngineOptions::default());
    let neighbour = long_request(5);
    let (ear, _) = harness.submit(neighbour.clone());
    let (poisoned, _) = harness.submit(GenerateRequest { affinity: 3, ..request(vec![1, MAKES_NAN, 2], 5) });
    harness.run();
    assert!(matches!(poisoned.heard().end, Some(Err(EngineError::ModelFailed(m))) if m.contains("not finite")));
    assert_eq!(ear.heard().essence(), expected(&neighbour, CONTEXT).essence());
    // Nothing is built on the cache that the bad number came from.
    let (next, _) = harness.submit(GenerateRequest { affinity: 3, ..request(vec![1, 2, 3], 5) });
    harness.run();
    assert_eq!(next.heard().cached(), 0);
}

#[test]
fn a_model_that_always_fails_is_given_up_and_everyone_is_told() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let ears: Vec<_> = (0..5).map(|_| harness.submit(request(vec![MAKES_PANIC], 5)).0).collect();
    assert_eq!([harness.step(), harness.step(), harness.step()], [Step::Worked, Step::Worked, Step::Dead]);
    for (at, ear) in ears.iter().enumerate() {
        match ear.heard().end {
            Some(Err(EngineError::ModelFailed(_))) => assert!(at < 3),
            Some(Err(EngineError::Stopped)) => assert!(at >= 3),
            other => panic!("request {at} ended with {other:?}"),
        }
    }
    assert_eq!(harness.load.now(), ReplicaLoad::default());
}

#[test]
fn a_model_that_says_so_is_given_up_at_once() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let ears = [request(vec![MAKES_STOP], 5), request(vec![1], 5)].map(|request| harness.submit(request).0);
    assert_eq!(harness.step(), Step::Dead);
    assert_eq!(ears[0].heard().end, Some(Err(EngineError::ModelFailed(GAVE_UP.into()))));
    assert_eq!(ears[1].heard().end, Some(Err(EngineError::Stopped)));
}

#[test]
fn a_model_whose_logits_are_never_finite_is_given_up() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let ears: Vec<_> = (0..5).map(|_| harness.submit(request(vec![MAKES_NAN], 5)).0).collect();
    assert_eq!([harness.step(), harness.step(), harness.step()], [Step::Worked, Step::Worked, Step::Dead]);
    let stopped = ears.iter().filter(|ear| ear.heard().end == Some(Err(EngineError::Stopped))).count();
    assert_eq!(stopped, 2);
}

#[test]
fn failures_that_are_not_in_a_row_are_forgiven() {
    let mut harness = Harness::new(1, EngineOptions::default());
    for poison in [MAKES_NAN, MAKES_ERROR, MAKES_PANIC].repeat(3) {
        let (failed, _) = harness.submit(request(vec![poison], 5));
        let well = request(prompt(7, 5), 5);
        let (ear, _) = harness.submit(well.clone());
        harness.run();
        assert!(matches!(failed.heard().end, Some(Err(EngineError::ModelFailed(_)))));
        assert_eq!(ear.heard().essence(), expected(&well, CONTEXT).essence());
    }
}

#[test]
fn an_engine_that_is_dropped_leaves_nobody_waiting() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let ears = [long_request(5), long_request(5)].map(|request| harness.submit(request).0);
    harness.step();
    drop(harness);
    assert!(ears.iter().all(|ear| ear.heard().end == Some(Err(EngineError::Stopped))));
}
