//! The forecast and the bounds, with an engine that is told and not run.

use super::*;
use crate::{fake::request, metrics::ReplicaMetrics};

const LANES: usize = 4;
/// What a step with a chunk takes: a refused caller waits for that, too, since the ledger is as old as the running step.
const STEP_MS: u64 = 10 + 50;

/// Steps of 10 ms, whatever is in them but prompt tokens, of which each takes another millisecond.
fn options(target_ms: u64, queue: usize) -> EngineOptions {
    let costs = StepCosts::new(Duration::from_millis(10), Duration::from_millis(1), Duration::ZERO);
    let target_first_token = Duration::from_millis(target_ms);
    EngineOptions { queue, target_first_token, costs, step_tokens: 100, prefill_chunk: 50, ..EngineOptions::default() }
}

fn admission(options: &EngineOptions) -> Arc<Admission> {
    Admission::new(Load::new(Arc::new(ReplicaMetrics::new("test"))), LANES, options)
}

fn ask(tenant: &str, prompt: usize) -> GenerateRequest {
    GenerateRequest { tenant: tenant.into(), ..request(vec![1; prompt], 50) }
}

fn running<'a>(tenants: &'a [&str], prefill: usize, said: u32) -> impl Iterator<Item = Progress<'a>> {
    tenants.iter().map(move |tenant| Progress { tenant, prefill, said, room: 50 })
}

fn forecast_ms(admission: &Admission, tenant: &str, tokens: usize) -> u64 {
    let Forecast { waits, computes } = admission.ledger().forecast(&admission.bounds, tenant, tokens);
    ((waits + computes) * 1e3).round() as u64
}

#[test]
fn an_idle_engine_takes_as_long_as_the_prompt() {
    let admission = admission(&options(1_000, 10));
    assert_eq!(forecast_ms(&admission, "a", 100), 10 + 100);
    assert_eq!(forecast_ms(&admission, "a", 101), 20 + 101);
}

#[test]
fn what_runs_and_what_waits_is_ahead() {
    let options = options(60_000, 100);
    let admission = admission(&options);
    admission.note(running(&["a"; 3], 0, 10), 1, &options.costs);
    assert_eq!(forecast_ms(&admission, "a", 50), 10 + 50, "a lane is idle");
    admission.note(running(&["a"; LANES], 0, 10), 1, &options.costs);
    assert_eq!(forecast_ms(&admission, "a", 50), 500 + 10 + 50, "no reply is longer than it may be");
    let waiting: Vec<_> = (0..LANES).map(|_| admission.admit(&ask("a", 50)).expect("within the target")).collect();
    assert_eq!(forecast_ms(&admission, "a", 50), 500 + 500 + 10 + 50 + 4 * 50, "each lane comes again");
    drop(waiting);
    assert_eq!(forecast_ms(&admission, "a", 50), 500 + 10 + 50);
    (0..1000).for_each(|_| admission.reply_ended(20));
    admission.note(running(&["a"; LANES], 100, 5), 1, &options.costs);
    assert_eq!(forecast_ms(&admission, "a", 50), (2 + 15) * 10 + 10 + 50 + 4 * 100, "replies are as long as lately");
}

#[test]
fn a_request_that_would_wait_too_long_is_told_for_how_long() {
    let options = options(800, 1_000);
    let admission = admission(&options);
    let admitted: Vec<_> = std::iter::from_fn(|| admission.admit(&ask("a", 100)).ok()).collect();
    let refused = admission.admit(&ask("a", 100)).err().expect("it would wait for too long");
    assert_eq!((refused.as_secs_f64() * 1e3).round() as u64, forecast_ms(&admission, "a", 100) - 800 + STEP_MS);
    assert_eq!(admission.check("a", 100), Err(refused));
    assert!(admission.admit(&GenerateRequest { promised: true, ..ask("a", 100) }).is_ok(), "a promise is kept");
    assert!(admission.admit(&ask("b", 100)).is_ok(), "nobody else waits for longer than their share");
    assert_eq!(admitted.len(), LANES);
}

#[test]
fn a_prompt_that_takes_longer_than_the_target_is_served_when_there_is_little_else() {
    let options = options(500, 1_000);
    let admission = admission(&options);
    admission.note(running(&["a"], 0, 45), 1, &options.costs);
    assert_eq!(forecast_ms(&admission, "a", 1_000), 20 * 10 + 1_000);
    let first = admission.admit(&ask("a", 1_000)).expect("nothing is ahead");
    let second = admission.admit(&ask("a", 1_000)).expect("as much is ahead as it takes itself");
    let refused = admission.admit(&ask("a", 1_000)).err().expect("more is");
    assert_eq!((refused.as_secs_f64() * 1e3).round() as u64, 3_600 - 2_400 + STEP_MS);
    drop((first, second));
}

#[test]
fn a_tenant_gets_as_many_places_as_it_leaves_free() {
    let admission = admission(&options(u64::MAX, 100));
    let mut held = Vec::new();
    let mut fill = |tenant: &str| {
        let places = held.len();
        held.extend(std::iter::from_fn(|| admission.admit(&ask(tenant, 1)).ok()));
        held.len() - places
    };
    assert_eq!([fill("a"), fill("b"), fill("c")], [51, 25, 13]);
    assert_eq!((fill("a"), fill("new")), (0, 6));
    held.clear();
    assert_eq!(admission.load.now().waiting, 0);
    assert_eq!(admission.ledger().waiting, 0);
}

#[test]
fn tenants_without_requests_are_forgotten() {
    let options = options(u64::MAX, 100);
    let admission = admission(&options);
    for tenant in 0..1_000 {
        drop(admission.admit(&ask(&tenant.to_string(), 1)));
        admission.note(running(&["a"], 0, 0), 1, &options.costs);
    }
    assert_eq!(admission.ledger().tenants.len(), 1);
}
