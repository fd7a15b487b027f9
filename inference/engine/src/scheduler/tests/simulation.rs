//! Minutes of traffic on a simulated clock: what tenants, newcomers and refused callers get of a machine that is too small.
//!
//! The costs of a step are those of SmolLM2-135M with 8-bit weights on two cores, as measured in docs/benchmarks.md.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::*;
use crate::{Block, GenerateEvent, Lane, fake::VOCABULARY};

const LANES: usize = 16;
const LONG_CONTEXT: usize = 2_048;
const BASE_US: u64 = 3_500;
const PROMPT_TOKEN_US: u64 = 300;
const DECODING_LANE_US: u64 = 720;

/// A model that says the same token again and again, and takes its time.
struct Slow(Arc<AtomicU64>);

impl TokenModel for Slow {
    fn lanes(&self) -> usize {
        LANES
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn blocks(&self) -> usize {
        LANES * LONG_CONTEXT / BLOCK
    }

    fn place(&mut self, _: Lane, _: &[Block]) {}

    fn copy(&mut self, _: BlockCopy) {}

    fn context_tokens(&self) -> usize {
        LONG_CONTEXT
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        logits.clear();
        let decoding = inputs.iter().filter(|input| input.tokens.len() == 1).count() as u64;
        let tokens: u64 = inputs.iter().map(|input| input.tokens.len() as u64).sum();
        self.0.fetch_add(BASE_US + DECODING_LANE_US * decoding + PROMPT_TOKEN_US * (tokens - decoding), Relaxed);
        for _ in 0..inputs.iter().map(|input| input.logits).sum() {
            let row = logits.len();
            logits.resize(row + VOCABULARY, 0.0);
            logits[row + 1] = 1.0;
        }
        Ok(())
    }
}

/// One request to come.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at_us: u64,
    tenant: &'static str,
    prompt: usize,
    tokens: u32,
}

/// What became of a tenant's requests.
#[derive(Debug, Default, Clone)]
struct Seen {
    first_tokens_us: Vec<u64>,
    /// From each token of a request to its next.
    gaps_us: Vec<u64>,
    /// Prompt tokens and twice the reply's tokens.
    weighted: usize,
    tokens: usize,
    refused: usize,
}

/// Rather the later of two.
fn quantile(times_us: &[u64], hundredth: usize) -> Duration {
    let mut times = times_us.to_vec();
    times.sort_unstable();
    Duration::from_micros(times[((times.len() - 1) * hundredth).div_ceil(100)])
}

struct Simulation {
    scheduler: Scheduler,
    admission: Arc<Admission>,
    model: Slow,
    began: Instant,
    now_us: Arc<AtomicU64>,
    seen: Arc<Mutex<BTreeMap<&'static str, Seen>>>,
    submitted: u64,
}

impl Simulation {
    fn new(target: Duration) -> Self {
        Self::with(EngineOptions { target_first_token: target, ..EngineOptions::default() })
    }

    fn with(options: EngineOptions) -> Self {
        let costs = StepCosts::new(
            Duration::from_micros(BASE_US),
            Duration::from_micros(PROMPT_TOKEN_US),
            Duration::from_micros(DECODING_LANE_US),
        );
        // Its replies repeat one word, which would be guessed.
        let options = EngineOptions { costs, speculation: Speculation::Off, ..options };
        let metrics = Arc::new(ReplicaMetrics::new("slow"));
        let load = Load::new(metrics.clone());
        let admission = Admission::new(load.clone(), LANES, &options);
        let codec = FakeCodec::new(LONG_CONTEXT);
        let now_us = Arc::new(AtomicU64::new(0));
        let model = Slow(now_us.clone());
        let shape = ModelShape::of(&model);
        let scheduler = Scheduler::new(shape, codec, options, metrics, load, admission.clone());
        let seen = Arc::default();
        Self { scheduler, admission, model, began: Instant::now(), now_us, seen, submitted: 0 }
    }

    fn now_us(&self) -> u64 {
        self.now_us.load(Relaxed)
    }

    fn seen(&self, tenant: &str) -> Seen {
        self.seen.lock().expect("no test thread panicked").get(tenant).cloned().unwrap_or_default()
    }

    /// Submits a request as of its arrival; how long a refused one is told to wait.
    fn submit(&mut self, arrival: Arrival, promised: bool) -> Result<(), Duration> {
        let Arrival { at_us, tenant, prompt: length, tokens } = arrival;
        self.submitted += 1;
        let prompt = prompt(self.submitted, length);
        let request = GenerateRequest { tenant: tenant.into(), promised, ..request(prompt, tokens) };
        let place = self.admission.admit(&request).inspect_err(|_| {
            self.seen.lock().expect("no test thread panicked").entry(tenant).or_default().refused += 1;
        })?;
        let (seen, now_us, mut last) = (self.seen.clone(), self.now_us.clone(), None);
        let sink = Box::new(move |event: GenerateEvent| {
            let mut seen = seen.lock().expect("no test thread panicked");
            let seen = seen.entry(tenant).or_default();
            if let GenerateEvent::Tokens { ids, .. } = event {
                let now = now_us.load(Relaxed);
                match last.replace(now) {
                    Some(last) => seen.gaps_us.push(now - last),
                    None => {
                        seen.first_tokens_us.push(now - at_us);
                        seen.weighted += length;
                    }
                }
                seen.tokens += ids.len();
                seen.weighted += 2 * ids.len();
            }
            true
        });
        let submitted = self.began + Duration::from_micros(at_us);
        self.scheduler.submit(Job {
            request,
            sink: Unserved::new(sink),
            cancel: CancelHandle::default(),
            submitted,
            _place: place,
        });
        Ok(())
    }

    fn step(&mut self) -> Step {
        let (began, now_us) = (self.began, &self.now_us);
        self.scheduler.step(&mut self.model, || began + Duration::from_micros(now_us.load(Relaxed)))
    }

    /// Lets everything arrive when it does. What comes during a step is seen after it.
    fn run(&mut self, arrivals: &[Arrival]) {
        for arrival in arrivals {
            while self.now_us() < arrival.at_us {
                if self.step() == Step::Idle {
                    self.now_us.store(arrival.at_us, Relaxed);
                }
            }
            // Whether it is refused is counted.
            let _refused = self.submit(*arrival, false);
        }
    }

    fn rest(&mut self) {
        while self.step() != Step::Idle {}
    }
}

/// Requests of a tenant at random moments, `per_second` of them on average.
fn traffic(tenant: &'static str, per_second: f64, seconds: u64, prompt: usize, tokens: u32) -> Vec<Arrival> {
    let mut at = 0.0;
    let moments = (0..).map(|n| {
        let uniform = (random::bits(tenant.len() as u64, n) >> 11) as f64 / (1u64 << 53) as f64;
        at -= (1.0 - uniform).ln() / per_second;
        Arrival { at_us: (at * 1e6) as u64, tenant, prompt, tokens }
    });
    moments.take_while(|arrival| arrival.at_us < seconds * 1_000_000).collect()
}

fn merged(mut arrivals: Vec<Arrival>, more: Vec<Arrival>) -> Vec<Arrival> {
    arrivals.extend(more);
    arrivals.sort_by_key(|arrival| arrival.at_us);
    arrivals
}

#[test]
fn a_long_prompt_hardly_slows_the_streams_beside_it() {
    let slowest = |options: EngineOptions| {
        let mut simulation = Simulation::with(options);
        let stream = Arrival { at_us: 0, tenant: "streams", prompt: 20, tokens: 400 };
        (0..4).for_each(|_| simulation.submit(stream, false).expect("a place is free"));
        (0..20).for_each(|_| assert_eq!(simulation.step(), Step::Worked));
        simulation.seen.lock().expect("no test thread panicked").clear();
        let long = Arrival { at_us: simulation.now_us(), tenant: "long", prompt: 1_500, tokens: 1 };
        simulation.submit(long, false).expect("a place is free");
        while simulation.seen("long").first_tokens_us.is_empty() {
            let before = simulation.seen("streams").tokens;
            assert_eq!(simulation.step(), Step::Worked);
            assert_eq!(simulation.seen("streams").tokens, before + 4, "every stream has a token of every step");
        }
        quantile(&simulation.seen("streams").gaps_us, 99)
    };
    let chunked = slowest(EngineOptions::default());
    let whole = slowest(EngineOptions { step_tokens: 1 << 20, prefill_chunk: 1 << 20, ..EngineOptions::default() });
    assert!(whole >= 5 * chunked, "{chunked:?} against {whole:?}");
}

#[test]
fn a_flood_at_ten_times_the_rate_at_most_doubles_a_light_tenants_wait() {
    let wait = |arrivals: Vec<Arrival>| {
        let mut simulation = Simulation::new(Duration::from_secs(10));
        simulation.run(&arrivals);
        simulation.rest();
        (simulation.seen("light"), simulation.seen("flood"))
    };
    let light = || traffic("light", 1.5, 300, 128, 64);
    let (solo, _) = wait(light());
    for (prompt, tokens) in [(128, 64), (1_500, 32), (32, 400)] {
        let (flooded, flood) = wait(merged(light(), traffic("flood", 15.0, 300, prompt, tokens)));
        assert!(flood.refused > 1_000, "no flood: {} refused of {}", flood.refused, flood.first_tokens_us.len());
        assert_eq!(flooded.refused, 0, "the light tenant asks for less than its share");
        let [solo, flooded] = [&solo, &flooded].map(|seen| quantile(&seen.first_tokens_us, 95));
        assert!(flooded <= 2 * solo, "a flood of {prompt} + {tokens}: {flooded:?} against {solo:?}");
    }
}

#[test]
fn two_backlogged_tenants_get_equally_much_of_a_minute() {
    let mut simulation = Simulation::new(Duration::from_secs(10));
    let kinds = [("reads", 900, 16), ("writes", 32, 200)];
    let mut asked = [0, 0];
    while simulation.now_us() < 60_000_000 {
        for (&(tenant, prompt, tokens), asked) in kinds.iter().zip(&mut asked) {
            while *asked < simulation.seen(tenant).first_tokens_us.len() + 40 {
                let arrival = Arrival { at_us: simulation.now_us(), tenant, prompt, tokens };
                simulation.submit(arrival, true).expect("a place is free");
                *asked += 1;
            }
        }
        assert_eq!(simulation.step(), Step::Worked);
    }
    let [reads, writes] = kinds.map(|(tenant, ..)| simulation.seen(tenant).weighted);
    assert!(reads.abs_diff(writes) * 10 <= reads.max(writes), "{reads} against {writes}");
}

#[test]
fn under_overload_the_accepted_are_served_in_time_and_as_many_as_can_be() {
    let target = Duration::from_secs(2);
    let run = |per_second| {
        let mut simulation = Simulation::new(target);
        simulation.run(&traffic("all", per_second, 120, 128, 64));
        let (tokens, seconds) = (simulation.seen("all").tokens, simulation.now_us() as f64 / 1e6);
        simulation.rest();
        (simulation.seen("all"), tokens as f64 / seconds)
    };
    let (_, peak) = run(9.0);
    let (flooded, rate) = run(30.0);
    let p99 = quantile(&flooded.first_tokens_us, 99);
    assert!(flooded.refused > flooded.first_tokens_us.len());
    assert!(p99 <= target.mul_f64(1.5), "{p99:?}");
    assert!(rate >= 0.9 * peak, "{rate} tokens/s against {peak}");
}

#[test]
fn a_refused_caller_is_told_the_truth() {
    for (prompt, tokens) in [(128, 64), (1_000, 16), (16, 300)] {
        let mut simulation = Simulation::new(Duration::from_secs(2));
        simulation.run(&traffic("all", 30.0, 30, prompt, tokens));
        let at = |simulation: &Simulation| Arrival { at_us: simulation.now_us(), tenant: "all", prompt, tokens };
        let wait = loop {
            let now = at(&simulation);
            if let Err(wait) = simulation.submit(now, false) {
                break wait.as_micros() as u64;
            }
        };
        let refused_at = simulation.now_us();
        let (mut early, mut in_time) = (None, None);
        while in_time.is_none() {
            assert_eq!(simulation.step(), Step::Worked);
            let waited = simulation.now_us() - refused_at;
            let admitted = simulation.admission.check("all", prompt).is_ok();
            if admitted && early.is_none() {
                early = Some(waited);
            }
            if waited >= wait {
                in_time = Some(admitted);
            }
        }
        assert_eq!(in_time, Some(true), "told {wait} us, and refused again");
        assert!(early.is_some_and(|early| early * 4 >= wait), "told {wait} us, but {early:?} would have done");
    }
}

#[test]
fn what_cannot_have_its_first_token_in_time_is_dropped_unrun() {
    let mut simulation = Simulation::new(Duration::from_secs(10));
    let submit = |simulation: &mut Simulation, deadline_ms| {
        let deadline = Some(simulation.began + Duration::from_millis(deadline_ms));
        let request = GenerateRequest { deadline, ..request(prompt(deadline_ms, 1_000), 4) };
        let (ear, place) = (Ear::default(), simulation.admission.admit(&request).expect("a place is free"));
        let (sink, submitted) = (ear.sink(), simulation.began);
        simulation.scheduler.submit(Job {
            request,
            sink: Unserved::new(sink),
            cancel: CancelHandle::default(),
            submitted,
            _place: place,
        });
        ear
    };
    // The prompt takes 314 ms; half of that is a doubt that goes for the caller.
    let [hopeless, doubtful, easy] = [150, 200, 5_000].map(|deadline| submit(&mut simulation, deadline));
    simulation.step();
    assert_eq!(hopeless.heard().end, Some(Err(EngineError::DeadlineExceeded)));
    assert_eq!(doubtful.heard().end, None);
    simulation.rest();
    assert_eq!(doubtful.heard().end, Some(Err(EngineError::DeadlineExceeded)));
    assert!(matches!(easy.heard().end, Some(Ok(_))));
}
