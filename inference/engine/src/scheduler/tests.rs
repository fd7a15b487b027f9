//! The scheduler over a model whose logits are a hash of each lane's cache: any mix-up shows in the answer.

mod cancellation;
mod faults;
mod leaks;
mod prefixes;
mod probabilities;
mod simulation;
mod speculation;

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    CancelHandle, Finish, GenerateRequest, ReplicaLoad, Sampling, TokenId,
    fake::{BLOCK, Ear, FakeCodec, FakeModel, MAKES_ERROR, MAKES_NAN, MAKES_PANIC, MAKES_STOP, expected, request},
    queue::Unserved,
    random,
};

const CONTEXT: usize = 120;

/// A scheduler with its model and a clock that moves by 10 ms a step.
struct Harness {
    scheduler: Scheduler,
    model: FakeModel,
    load: Arc<Load>,
    admission: Arc<Admission>,
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
        let admission = Admission::new(load.clone(), shape.lanes, &options);
        let scheduler =
            Scheduler::new(shape, FakeCodec::new(CONTEXT), options, metrics, load.clone(), admission.clone());
        Self { scheduler, model, load, admission, now: Instant::now() }
    }

    fn submit(&mut self, request: GenerateRequest) -> (Ear, CancelHandle) {
        let ear = Ear::default();
        let sink = ear.sink();
        (ear, self.submit_to(sink, request))
    }

    fn submit_to(&mut self, sink: Box<dyn crate::EventSink>, request: GenerateRequest) -> CancelHandle {
        let cancel = CancelHandle::default();
        let place =
            self.admission.admit(&GenerateRequest { promised: true, ..request.clone() }).expect("a place is free");
        self.scheduler.submit(Job {
            request,
            sink: Unserved::new(sink),
            cancel: cancel.clone(),
            submitted: self.now,
            _place: place,
        });
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
        let reserved = |running: &Running| running.tokens.len() + running.reply.room() as usize;
        assert!(self.scheduler.running.iter().all(|running| reserved(running) <= CONTEXT), "beyond a lane's end");
        if let Some(last) = self.model.steps.last() {
            let tokens: usize = last.iter().map(|(_, tokens)| tokens).sum();
            assert!(tokens <= self.scheduler.options.step_tokens.max(last.len()), "{tokens} tokens in a step");
        }
    }
}

fn options(step_tokens: usize, prefill_chunk: usize) -> EngineOptions {
    EngineOptions { queue: 10_000, step_tokens, prefill_chunk, ..EngineOptions::default() }
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
fn prompts_of_the_one_tenant_there_is_have_a_chunk_each_and_those_of_several_share_one() {
    for (others, chunk) in [("t", 24), ("u", 8)] {
        let mut harness = Harness::new(4, options(64, 8));
        harness.submit(long_request(5));
        harness.step();
        for seed in 1..=3 {
            harness.submit(GenerateRequest { tenant: others.into(), ..request(prompt(seed, 50), 5) });
        }
        // The newcomer is owed lanes, and pays with twice the chunk, until it has its share of them.
        (0..2).for_each(|_| _ = harness.step());
        let prefill: usize = harness.model.steps.last().expect("a step").iter().map(|(_, tokens)| tokens).sum();
        assert_eq!(prefill - 1, chunk, "of the tenant {others}");
    }
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
        // A context of credit, and a prompt that was begun.
        assert!(long.abs_diff(short) <= 2 * CONTEXT as u64, "step {step}: {long} against {short}");
    }
    let served = |name: &str| -> usize {
        let ended = ears.iter().filter(|(tenant, _, ear)| *tenant == name && ear.heard().end.is_some());
        ended.map(|(_, length, ear)| length + 2 * ear.heard().ids.len()).sum()
    };
    let (long, short) = (served("long"), served("short"));
    assert!(long.abs_diff(short) < long / 10, "{long} against {short}");
    assert!(ears.iter().any(|(tenant, _, ear)| *tenant == "short" && ear.heard().end.is_none()), "no backlog was left");
}
