//! Replies that are guessed ahead: the tokens that come one by one without, and fewer steps.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::fake::{Hooked, expected_with};

fn speculating(memory: usize, speculation: Speculation, options: EngineOptions) -> Harness {
    let model = FakeModel::new(3, CONTEXT).remembering(memory);
    Harness::guessing(model, EngineOptions { speculation, ..options })
}

/// One whose reply repeats itself for as long as it may: its last token, or its last two, decide what comes next.
fn repetitive(memory: usize, max_tokens: u32) -> GenerateRequest {
    let asked = (0..1000).map(|seed| request(prompt(seed, 10), max_tokens));
    let whole = |asked: &GenerateRequest| expected_with(memory, asked, CONTEXT).ids.len() == max_tokens as usize;
    asked.into_iter().find(whole).expect("some do not meet the end token")
}

/// Runs one request alone; what was heard, and in how many steps.
fn run(memory: usize, speculation: Speculation, asked: &GenerateRequest) -> (crate::fake::Heard, usize) {
    let mut harness = speculating(memory, speculation, EngineOptions::default());
    let (ear, _) = harness.submit(asked.clone());
    harness.run();
    (ear.heard(), harness.model.steps.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn guessing_changes_no_token(
        requests in prop::collection::vec(requests(), 1..10),
        logprobs in prop_oneof![Just(None), (0u32..4).prop_map(Some)],
        memory in 1usize..4,
        step_tokens in 1usize..140,
        prefill_chunk in 1usize..140,
    ) {
        let mut harness = speculating(memory, Speculation::Always, options(step_tokens, prefill_chunk));
        let mut ears = Vec::new();
        for step in 0..30 {
            for (_, request) in requests.iter().filter(|(arrives, _)| *arrives == step) {
                // What an earlier attempt recorded is another model's.
                let request = GenerateRequest { forced: vec![], logprobs, ..request.clone() };
                ears.push((request.clone(), harness.submit(request).0));
            }
            harness.step();
        }
        harness.run();
        for (request, ear) in ears {
            let heard = ear.heard();
            prop_assert_eq!(heard.essence(), expected_with(memory, &request, CONTEXT).essence());
            // Reported as when they come one by one.
            let (plain, _) = run(memory, Speculation::Off, &GenerateRequest { tenant: "alone".into(), ..request });
            prop_assert_eq!(heard.logprobs, plain.logprobs);
        }
    }
}

#[test]
fn a_reply_that_repeats_itself_takes_fewer_steps() {
    for memory in [1, 2] {
        let asked = repetitive(memory, 100);
        let (plain, plain_steps) = run(memory, Speculation::Off, &asked);
        assert_eq!((plain_steps, plain.ids.len()), (100, 100));
        let (guessed, steps) = run(memory, Speculation::Always, &asked);
        assert_eq!(guessed.essence(), plain.essence());
        assert!(steps < 60, "{steps} steps");
    }
}

#[test]
fn guesses_do_not_pass_the_limit_or_the_context() {
    for max_tokens in 1..40 {
        let asked = GenerateRequest { max_tokens, ..repetitive(1, 100) };
        let (heard, _) = run(1, Speculation::Always, &asked);
        assert_eq!(heard.essence(), expected_with(1, &asked, CONTEXT).essence());
    }
    let long = request([prompt(3, 5), prompt(3, 5), repetitive(1, 100).prompt.tokens].concat().repeat(5), 1000);
    let (heard, _) = run(1, Speculation::Always, &long);
    assert_eq!(heard.essence(), expected_with(1, &long, CONTEXT).essence());
}

#[test]
fn guesses_are_checked_where_rows_cost_little_and_not_where_they_are_what_costs() {
    for memory in [1, 2] {
        let asked = repetitive(memory, 100);
        let guessed = |fixed, row| -> usize {
            let inputs = run_paced(memory, fixed, row, &asked);
            // Without the prompt's.
            inputs[1..].iter().map(|tokens| tokens - 1).sum()
        };
        assert!(guessed(10, 0) > 40, "{} tokens", guessed(10, 0));
        // Some, until the cost of a row is known.
        assert!(guessed(0, 1) < 15, "{} tokens", guessed(0, 1));
    }
}

/// Runs one request alone where every step takes `fixed` and every row `row` milliseconds; how many tokens each step had.
fn run_paced(memory: usize, fixed: u64, row: u64, asked: &GenerateRequest) -> Vec<usize> {
    let mut harness = speculating(memory, Speculation::Auto, EngineOptions::default());
    let (ear, _) = harness.submit(asked.clone());
    let (start, elapsed) = (harness.now, AtomicU64::new(0));
    let takes = |inputs: &[LaneInput<'_>]| {
        let rows: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        elapsed.fetch_add(fixed + row * rows as u64, Ordering::Relaxed);
    };
    let mut model = Hooked { model: &mut harness.model, before: takes };
    let clock = || start + Duration::from_millis(elapsed.load(Ordering::Relaxed));
    while harness.scheduler.step(&mut model, clock) == Step::Worked {}
    assert_eq!(ear.heard().essence(), expected_with(memory, asked, CONTEXT).essence());
    harness.model.steps.iter().flatten().map(|(_, tokens)| *tokens).collect()
}
