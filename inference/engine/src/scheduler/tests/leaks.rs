//! A million random operations, after which nothing is held.

use super::*;

/// How a request of the fuzz test ended, as far as the test brought it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Runs,
    Cancelled,
    HangsUp,
    Poisoned,
    Late,
}

#[test]
fn nothing_leaks_in_a_million_random_operations() {
    // Fewer blocks than the lanes could fill, so that requests also wait for memory.
    let fresh = || Harness::over(FakeModel::with_blocks(4, CONTEXT, 60), options(32, 8));
    let mut harness = fresh();
    let mut requests: HashMap<u64, (Fate, GenerateRequest, Ear, CancelHandle)> = HashMap::new();
    let mut ended = HashMap::<&str, u32>::new();
    for operation in 0..1_000_000u64 {
        let dice = random::bits(1, operation);
        match dice % 10 {
            0 | 1 if requests.len() < 40 => {
                let (fate, request, events) = fuzz_request(&harness, dice / 10);
                let ear = Ear::default();
                let cancel = harness.submit_to(ear.sink_that_hangs_up_after(events), request.clone());
                requests.insert(operation, (fate, request, ear, cancel));
            }
            2 if dice % 40 < 10 => {
                let victim = requests.keys().min_by_key(|key| random::bits(dice, **key)).copied();
                if let Some((fate, .., cancel)) = victim.and_then(|key| requests.get_mut(&key)) {
                    cancel.cancel();
                    *fate = Fate::Cancelled;
                }
            }
            _ => {
                let died = harness.step() == Step::Dead;
                requests.retain(|_, (fate, request, ear, _)| {
                    let over = ear.is_dropped();
                    assert!(over || !died, "an engine that died leaves somebody waiting");
                    if over {
                        *ended.entry(judge(*fate, request, ear)).or_default() += 1;
                    }
                    assert!(over || *fate != Fate::Cancelled, "cancelled and still there");
                    !over
                });
                if died {
                    *ended.entry("engines").or_default() += 1;
                    assert_eq!(harness.load.now(), ReplicaLoad::default());
                    harness = fresh();
                }
            }
        }
    }
    harness.run();
    assert!(requests.values().all(|(.., ear, _)| ear.is_dropped()));
    assert_eq!(harness.load.now(), ReplicaLoad::default());
    for way in ["finished", "cancelled", "hung up", "failed", "stopped", "late", "engines"] {
        assert!(ended.get(way).is_some_and(|&count| count > 20), "too few of {way}: {ended:?}");
    }
}

fn fuzz_request(harness: &Harness, dice: u64) -> (Fate, GenerateRequest, usize) {
    let mut tokens = prompt(dice % 5, 1 + (dice / 5 % 80) as usize);
    let (mut fate, mut deadline, mut events) = (Fate::Runs, None, usize::MAX);
    match dice / 400 % 20 {
        0 => {
            fate = Fate::Poisoned;
            tokens.push([MAKES_NAN, MAKES_ERROR, MAKES_NAN, MAKES_ERROR, MAKES_STOP][(dice / 8000 % 5) as usize]);
        }
        1 | 2 => (fate, events) = (Fate::HangsUp, 1 + (dice / 8000 % 4) as usize),
        3 | 4 => {
            fate = Fate::Late;
            deadline = Some(harness.now + Duration::from_millis(dice / 8000 % 300));
        }
        _ => {}
    }
    let tenant = ["a", "b", "c"][(dice / 16_000 % 3) as usize].to_owned();
    let affinity = dice / 48_000 % 3;
    (fate, GenerateRequest { tenant, affinity, deadline, ..request(tokens, 1 + (dice / 150_000 % 20) as u32) }, events)
}

/// Checks that an ended request ended as it may.
fn judge(fate: Fate, request: &GenerateRequest, ear: &Ear) -> &'static str {
    let heard = ear.heard();
    let whole = || heard.essence() == expected(request, CONTEXT).essence();
    match (&heard.end, fate) {
        (Some(Ok(_)), Fate::Poisoned) => panic!("{request:?} should have failed"),
        (Some(Ok((Finish::Stop | Finish::Length, _))), _) => {
            assert!(whole(), "{request:?} heard {heard:?}");
            "finished"
        }
        (Some(Err(EngineError::ModelFailed(_))), _) => "failed",
        (Some(Err(EngineError::Stopped)), _) => "stopped",
        (Some(Err(EngineError::DeadlineExceeded)), Fate::Late | Fate::Cancelled) => "late",
        (None, Fate::Cancelled) => "cancelled",
        (None, Fate::HangsUp) => "hung up",
        (end, fate) => panic!("{fate:?} ended with {end:?}"),
    }
}
