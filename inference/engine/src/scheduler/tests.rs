//! The scheduler over a model whose logits are a hash of each lane's cache: any mix-up shows in the answer.

mod prefixes;
mod probabilities;
mod speculation;

use std::{cell::Cell, collections::HashMap};

use proptest::prelude::*;

use super::*;
use crate::{
    CancelHandle, Finish, GenerateRequest, ReplicaLoad, Sampling, TokenId,
    fake::{BLOCK, Ear, FakeCodec, FakeModel, MAKES_ERROR, MAKES_NAN, MAKES_PANIC, MAKES_STOP, expected, request},
    random,
};

const CONTEXT: usize = 120;

/// A scheduler with its model and a clock that moves by 10 ms a step.
struct Harness {
    scheduler: Scheduler,
    model: FakeModel,
    load: Arc<Load>,
    now: Instant,
}

impl Harness {
    fn new(lanes: usize, options: EngineOptions) -> Self {
        Self::over(FakeModel::new(lanes, CONTEXT), options)
    }

    /// One that never guesses ahead.
    fn over(model: FakeModel, options: EngineOptions) -> Self {
        let options = EngineOptions { speculation: Speculation::Off, ..options };
        Self::guessing(model, options)
    }

    /// One that guesses ahead as the options say.
    fn guessing(model: FakeModel, options: EngineOptions) -> Self {
        let metrics = Arc::new(ReplicaMetrics::new("fake"));
        let load = Load::new(metrics.clone());
        let shape = ModelShape::of(&model);
        let scheduler = Scheduler::new(shape, FakeCodec::new(CONTEXT), options, metrics, load.clone());
        Self { scheduler, model, load, now: Instant::now() }
    }

    fn submit(&mut self, request: GenerateRequest) -> (Ear, CancelHandle) {
        let ear = Ear::default();
        let sink = ear.sink();
        (ear, self.submit_to(sink, request))
    }

    fn submit_to(&mut self, sink: Box<dyn crate::EventSink>, request: GenerateRequest) -> CancelHandle {
        let cancel = CancelHandle::default();
        let place = self.load.wait(usize::MAX).expect("no bound");
        self.scheduler.submit(Job { request, sink, cancel: cancel.clone(), submitted: self.now, _place: place });
        cancel
    }

    fn step(&mut self) -> Step {
        let now = self.now;
        self.now += Duration::from_millis(10);
        let step = self.scheduler.step(&mut self.model, || now);
        self.check();
        step
    }

    fn run(&mut self) {
        for _ in 0..100_000 {
            if self.step() == Step::Idle {
                return;
            }
        }
        panic!("the scheduler does not come to rest");
    }

    fn check(&self) {
        let held: Vec<_> = self.scheduler.running.iter().map(|running| &running.sequence).collect();
        self.scheduler.pool.check(&held);
        assert_eq!((self.load.now().running, self.scheduler.queue.running()), (held.len(), held.len()));
        if let Some(last) = self.model.steps.last() {
            let tokens: usize = last.iter().map(|(_, tokens)| tokens).sum();
            assert!(tokens <= self.scheduler.options.step_tokens.max(last.len()), "{tokens} tokens in a step");
        }
    }
}

fn options(step_tokens: usize, prefill_chunk: usize) -> EngineOptions {
    EngineOptions { step_tokens, prefill_chunk, ..EngineOptions::default() }
}

fn prompt(seed: u64, length: usize) -> Vec<TokenId> {
    (0..length as u64).map(|n| (random::bits(seed, n) % 59 + 1) as TokenId).collect()
}

/// One that generates for as long as it may: its answer has no end token in its first 40.
fn long_request(length: usize) -> GenerateRequest {
    let seeds = 0..1000;
    let found = seeds.map(|seed| request(prompt(seed, length), 40)).find(|r| expected(r, CONTEXT).ids.len() == 40);
    found.expect("one in three does")
}

prop_compose! {
    fn requests()(
        seed in any::<u64>(),
        length in 1usize..110,
        max_tokens in 0u32..40,
        temperature in prop_oneof![Just(0.0f32), Just(0.8), Just(1.5)],
        repetition_penalty in prop_oneof![Just(1.0f32), Just(1.3)],
        frequency_penalty in prop_oneof![Just(0.0f32), Just(0.7)],
        stop in prop::collection::vec(prop::sample::select(vec!["a b", "éa", "😀", "abab", "\u{fffd}b"]), 0..3),
        forced in prop_oneof![Just(0usize), 0usize..40],
        tenant in prop::sample::select(vec!["a", "b"]),
        affinity in 0u64..4,
        arrives in 0usize..30,
    ) -> (usize, GenerateRequest) {
        let sampling = Sampling { temperature, repetition_penalty, frequency_penalty, seed, ..Sampling::default() };
        // Few different beginnings, so that prefixes are shared within and between tenants.
        let mut tokens = prompt(seed % 3, length);
        tokens.truncate(length - length / 8);
        tokens.extend(prompt(seed, length / 8));
        let stop = stop.into_iter().map(str::to_owned).collect();
        let base = GenerateRequest { sampling, stop, tenant: tenant.into(), affinity, ..request(tokens, max_tokens) };
        let mut forced_ids = expected(&base, CONTEXT).ids;
        forced_ids.truncate(forced);
        (arrives, GenerateRequest { forced: forced_ids, ..base })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn answers_do_not_depend_on_company(
        requests in prop::collection::vec(requests(), 1..14),
        lanes in 1usize..5,
        blocks in CONTEXT / BLOCK..100,
        kept_tokens in prop_oneof![Just(None), (0usize..400).prop_map(Some)],
        step_tokens in 1usize..140,
        prefill_chunk in 1usize..140,
    ) {
        let options = EngineOptions { kept_tokens, ..options(step_tokens, prefill_chunk) };
        let mut harness = Harness::over(FakeModel::with_blocks(lanes, CONTEXT, blocks), options);
        let mut ears = Vec::new();
        for step in 0..30 {
            for (_, request) in requests.iter().filter(|(arrives, _)| *arrives == step) {
                ears.push((request.clone(), harness.submit(request.clone()).0));
            }
            harness.step();
        }
        harness.run();
        for (request, ear) in ears {
            let (heard, expected) = (ear.heard(), expected(&request, CONTEXT));
            prop_assert_eq!(heard.essence(), expected.essence());
            prop_assert!(ear.is_dropped());
        }
        prop_assert_eq!(harness.load.now(), ReplicaLoad::default());
    }
}

#[test]
fn a_long_prompt_does_not_stall_running_replies() {
    let mut harness = Harness::new(3, options(64, 8));
    let ears = [harness.submit(long_request(4)).0, harness.submit(long_request(5)).0];
    harness.step();
    let (long, _) = harness.submit(request(prompt(5, 80), 10));
    for step in 1..=10 {
        harness.step();
        assert!(ears.iter().all(|ear| ear.heard().ids.len() == step + 1), "step {step}");
        assert_eq!(harness.model.steps.last().map(|inputs| inputs.iter().map(|i| i.1).collect()), Some(vec![1, 1, 8]));
    }
    assert_eq!(long.heard().events.min(1), 1, "its first token comes with the last chunk");
}

#[test]
fn a_prompt_alone_is_computed_in_large_chunks() {
    let mut harness = Harness::new(3, options(64, 8));
    harness.submit(request(prompt(5, 80), 10));
    harness.step();
    harness.step();
    assert_eq!(harness.model.steps, [[(0, 64)], [(0, 16)]]);
}

#[test]
fn cancellation_frees_the_lane_within_one_step_in_every_state() {
    // Steps before the cancellation: queued, in prefill, in decode.
    for steps in [0, 1, 3, 12] {
        let mut harness = Harness::new(1, options(8, 8));
        let (ear, cancel) = harness.submit(long_request(20));
        let neighbour = request(prompt(3, 10), 10);
        let (other, _) = harness.submit(neighbour.clone());
        for _ in 0..steps {
            harness.step();
        }
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

#[test]
fn a_deadline_ends_a_request_unrun_or_running() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let deadline = |ms| Some(harness.now + Duration::from_millis(ms));
    let (running, waiting) = (
        GenerateRequest { deadline: deadline(95), ..long_request(5) },
        GenerateRequest { deadline: deadline(35), ..request(vec![MAKES_STOP], 5) },
    );
    let (running, _) = harness.submit(running);
    let (waiting, _) = harness.submit(waiting);
    harness.run();
    assert_eq!(waiting.heard().end, Some(Err(EngineError::DeadlineExceeded)));
    assert_eq!((running.heard().ids.len(), running.heard().end), (10, Some(Err(EngineError::DeadlineExceeded))));
}

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
    assert!(ears.iter().all(|ear| ear.heard().end == Some(Err(EngineError::Stopped))));
}

#[test]
fn tenants_share_the_lanes() {
    let mut harness = Harness::new(1, EngineOptions::default());
    let submit = |harness: &mut Harness, tenant: &str| {
        harness.submit(GenerateRequest { tenant: tenant.into(), ..request(prompt(4, 10), 3) }).0
    };
    let flood: Vec<_> = (0..20).map(|_| submit(&mut harness, "flood")).collect();
    harness.step();
    let light = submit(&mut harness, "light");
    while light.heard().end.is_none() {
        harness.step();
    }
    let served = flood.iter().filter(|ear| ear.heard().end.is_some()).count();
    assert!(served <= 2, "the light tenant waited for {served} of the flood");
}

#[test]
fn two_backlogged_tenants_get_equally_many_tokens() {
    let mut harness = Harness::new(2, options(16, 8));
    let prompts = [("long", 90), ("short", 9)];
    let mut ears = Vec::new();
    for (tenant, length) in prompts {
        ears.extend((0..400).map(|n| {
            let asked = GenerateRequest { tenant: tenant.into(), ..request(prompt(n, length), 3) };
            (tenant, length, harness.submit(asked).0)
        }));
    }
    for step in 0..1000 {
        assert_eq!(harness.step(), Step::Worked);
        let [long, short] = ["long", "short"].map(|tenant| harness.scheduler.queue.counter(tenant));
        assert!(long.abs_diff(short) <= 200, "step {step}: {long} against {short}");
    }
    let served = |name: &str| -> usize {
        let ended = ears.iter().filter(|(tenant, _, ear)| *tenant == name && ear.heard().end.is_some());
        ended.map(|(_, length, ear)| length + 2 * ear.heard().ids.len()).sum()
    };
    let (long, short) = (served("long"), served("short"));
    assert!(long.abs_diff(short) < long / 10, "{long} against {short}");
    assert!(ears.iter().any(|(tenant, _, ear)| *tenant == "short" && ear.heard().end.is_none()), "no backlog was left");
}

#[test]
fn time_to_the_next_lane_is_measured() {
    let mut harness = Harness::new(1, options(8, 8));
    harness.submit(long_request(16));
    assert_eq!(harness.scheduler.time_to_next_lane(), UNMEASURED_STEP);
    let start = harness.now;
    for step in 0..3 {
        let readings = Cell::new(step);
        harness.scheduler.step(&mut harness.model, || {
            let now = start + Duration::from_millis(20) * readings.get();
            readings.set(readings.get() + 1);
            now
        });
    }
    // Two chunks, of which the second gave the first token, and one more: 38 tokens and the one in hand are to come.
    assert_eq!(harness.scheduler.time_to_next_lane(), Duration::from_millis(20) * 39);
}

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
fn nothing_leaks_in_a_hundred_thousand_random_operations() {
    let mut harness = Harness::over(FakeModel::with_blocks(4, CONTEXT, 60), options(32, 8));
    let mut requests: HashMap<u64, (Fate, GenerateRequest, Ear, CancelHandle)> = HashMap::new();
    let mut ended = HashMap::<&str, u32>::new();
    for operation in 0..100_000u64 {
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
                assert_ne!(harness.step(), Step::Dead);
                requests.retain(|_, (fate, request, ear, _)| {
                    let over = ear.is_dropped();
                    if over {
                        *ended.entry(judge(*fate, request, ear)).or_default() += 1;
                    }
                    assert!(over || *fate != Fate::Cancelled, "cancelled and still there");
                    !over
                });
            }
        }
    }
    harness.run();
    assert!(requests.values().all(|(.., ear, _)| ear.is_dropped()));
    assert_eq!(harness.load.now(), ReplicaLoad::default());
    for way in ["finished", "cancelled", "hung up", "failed", "late"] {
        assert!(ended.get(way).is_some_and(|&count| count > 50), "too few of {way}: {ended:?}");
    }
}

fn fuzz_request(harness: &Harness, dice: u64) -> (Fate, GenerateRequest, usize) {
    let mut tokens = prompt(dice % 5, 1 + (dice / 5 % 80) as usize);
    let (mut fate, mut deadline, mut events) = (Fate::Runs, None, usize::MAX);
    match dice / 400 % 20 {
        0 => {
            fate = Fate::Poisoned;
            tokens.push([MAKES_NAN, MAKES_ERROR][(dice / 8000 % 2) as usize]);
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
        (Some(Err(EngineError::DeadlineExceeded)), Fate::Late | Fate::Cancelled) => "late",
        (None, Fate::Cancelled) => "cancelled",
        (None, Fate::HangsUp) => "hung up",
        (end, fate) => panic!("{fate:?} ended with {end:?}"),
    }
}
