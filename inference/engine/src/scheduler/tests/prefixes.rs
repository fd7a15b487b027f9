//! What requests need not compute, since others have.

use super::*;

fn keeping(kept_tokens: usize) -> EngineOptions {
    EngineOptions { kept_tokens: Some(kept_tokens), ..EngineOptions::default() }
}

/// Asks, and says how many tokens of the prompt were cached. The answer must be as if none were.
fn cached(harness: &mut Harness, tenant: &str, asked: GenerateRequest) -> u32 {
    let asked = GenerateRequest { tenant: tenant.into(), ..asked };
    let (ear, _) = harness.submit(asked.clone());
    harness.run();
    assert_eq!(ear.heard().essence(), expected(&asked, CONTEXT).essence());
    ear.heard().cached()
}

/// Tokens that the model computed so far.
fn computed(harness: &Harness) -> usize {
    harness.model.steps.iter().flatten().map(|(_, tokens)| tokens).sum()
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let mut harness = Harness::new(3, keeping(240));
    let first = long_request(50);
    let (ear, _) = harness.submit(first.clone());
    harness.run();
    let mut tokens = [first.prompt.tokens.clone(), ear.heard().ids].concat();
    tokens.extend(prompt(99, 10));
    // The reply's last token was never computed; everything else is there, and once more for another tenant nothing.
    assert_eq!(cached(&mut harness, "u", request(tokens.clone(), 5)), 0);
    let before = computed(&harness);
    assert_eq!(cached(&mut harness, "t", request(tokens.clone(), 1)), 89);
    assert_eq!(computed(&harness) - before, 11);
    assert_eq!(cached(&mut harness, "t", request(tokens.clone(), 1)), 99, "one token is always left to compute");
    assert_eq!(cached(&mut harness, "t", first), 49);
}

#[test]
fn a_beginning_is_shared_while_its_requests_run_but_never_between_tenants() {
    let mut harness = Harness::new(4, options(64, 8));
    let system = prompt(5, 41);
    let asked = |n| GenerateRequest { max_tokens: 40, ..request([&system[..], &prompt(n, 9)].concat(), 40) };
    // The first runs on; the others come while it does.
    let first = (100..).map(asked).find(|asked| expected(asked, CONTEXT).ids.len() == 40).expect("one in three does");
    let (running, _) = harness.submit(first);
    harness.step();
    for (tenant, shared) in [("t", 40), ("u", 0), ("t", 41), ("u", 41)] {
        let asked = GenerateRequest { tenant: tenant.into(), max_tokens: 1, ..asked(shared.into()) };
        let (ear, _) = harness.submit(asked.clone());
        while ear.heard().end.is_none() {
            harness.step();
        }
        assert_eq!(ear.heard().essence(), expected(&asked, CONTEXT).essence());
        // The rest of a block can be copied once whoever filled it has ended or gone on to the next.
        assert!(ear.heard().cached() >= shared, "{tenant}: {} of {shared}", ear.heard().cached());
        assert!(shared > 0 || ear.heard().cached() == 0, "found what another tenant has");
    }
    assert!(running.heard().end.is_none());
}

#[test]
fn requests_that_come_together_compute_their_beginning_once() {
    let mut harness = Harness::new(4, options(16, 16));
    let system = prompt(5, 60);
    let asked: Vec<_> = (0..4).map(|n| request([&system[..], &prompt(n, 5)].concat(), 2)).collect();
    let ears: Vec<_> = asked.iter().map(|asked| harness.submit(asked.clone()).0).collect();
    harness.run();
    for (asked, ear) in asked.iter().zip(&ears) {
        assert_eq!(ear.heard().essence(), expected(asked, CONTEXT).essence());
    }
    assert_eq!([0, 1, 2, 3].map(|n: usize| ears[n].heard().cached()), [0, 60, 60, 60]);
    assert_eq!(computed(&harness), 65 + 3 * 5 + ears.iter().map(|ear| ear.heard().ids.len() - 1).sum::<usize>());
}

#[test]
fn nothing_is_kept_where_nothing_may_be() {
    let mut harness = Harness::new(2, keeping(0));
    for _ in 0..3 {
        assert_eq!(cached(&mut harness, "t", request(prompt(1, 50), 5)), 0);
    }
}

#[test]
fn requests_wait_for_memory_in_order() {
    // Memory for one and a half: the second waits, and so does the third, though it would fit.
    let mut harness = Harness::over(FakeModel::with_blocks(3, CONTEXT, 45), EngineOptions::default());
    let asked = [request(prompt(1, 80), 40), request(prompt(2, 80), 40), request(prompt(3, 8), 4)];
    let ears = asked.clone().map(|asked| harness.submit(asked).0);
    harness.step();
    assert_eq!(harness.load.now(), ReplicaLoad { running: 1, waiting: 2 });
    harness.run();
    for (asked, ear) in asked.iter().zip(&ears) {
        assert_eq!(ear.heard().essence(), expected(asked, CONTEXT).essence());
    }
}

#[test]
fn what_no_longer_fits_after_a_failure_is_told() {
    // Two share 40 of their 50 tokens. After a failure each needs all of its own, for which there is not memory enough.
    let mut harness = Harness::over(FakeModel::with_blocks(3, CONTEXT, 30), options(51, 51));
    let system = prompt(5, 40);
    let asked = |n, length| request([&system[..], &prompt(n, length)].concat(), 1);
    assert_eq!(cached(&mut harness, "t", asked(1, 2)), 0);
    let poison = GenerateRequest { tenant: "u".into(), ..request(vec![MAKES_ERROR], 1) };
    let (poisoned, _) = harness.submit(poison);
    let ears = [2, 3, 4].map(|n| harness.submit(asked(n, 60)).0);
    harness.run();
    assert!(matches!(poisoned.heard().end, Some(Err(EngineError::ModelFailed(_)))));
    for (n, ear) in (2..).zip(&ears) {
        match ear.heard().end {
            Some(Ok(_)) => assert_eq!(ear.heard().essence(), expected(&asked(n, 60), CONTEXT).essence()),
            Some(Err(EngineError::ModelFailed(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(harness.load.now(), ReplicaLoad::default());
}
