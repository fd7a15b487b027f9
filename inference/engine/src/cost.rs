//! What a step costs: a constant, something for every prompt token and something for every lane that decodes.
//!
//! The constant is reading the weights, prompt tokens are arithmetic, and decoding lanes are attention and sampling. Measured once
//! before the model serves, and followed from step to step while it does.

use std::time::{Duration, Instant};

use crate::{EngineError, LaneInput, TokenId, TokenModel};

/// How much of a step's surprise is taken to be true of the next ones.
const LEARNING: f64 = 0.1;
/// A step that takes this many times longer than expected counts as this many: the machine did something else meanwhile.
const MOST_SURPRISE: f64 = 4.0;
/// No part is taken to be cheaper, in seconds: it could not grow again.
const LEAST_PART: f64 = 1e-7;
/// Prompt tokens of a measuring step.
const MEASURED_PROMPT: usize = 64;
/// Different tokens in it.
const MEASURED_VOCABULARY: usize = 32;
/// Lanes of a measuring step that decodes.
const MEASURED_LANES: usize = 8;
/// Times that each step is measured; the quickest counts.
const MEASUREMENTS: usize = 2;

/// What a step of one model on one machine costs, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCosts {
    base: f64,
    prompt_token: f64,
    decoding_lane: f64,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) prompt_tokens: usize,
    pub(crate) decoding: usize,
}

impl Default for StepCosts {
    /// A model that nothing is known of: rather slow, so that no more is promised than a modest machine holds.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(1), Duration::from_millis(2))
    }
}

impl StepCosts {
    /// Costs that are known: of any step, of each of its prompt tokens, of each of its decoding lanes.
    pub fn new(base: Duration, prompt_token: Duration, decoding_lane: Duration) -> Self {
        let part = |cost: Duration| cost.as_secs_f64().max(LEAST_PART);
        Self { base: part(base), prompt_token: part(prompt_token), decoding_lane: part(decoding_lane) }
    }

    /// Measures a model that serves nobody yet: some steps, of which the quickest of each kind count.
    ///
    /// # Errors
    ///
    /// What the model fails with.
    pub fn measure(model: &mut dyn TokenModel) -> Result<Self, EngineError> {
        let prompt = MEASURED_PROMPT.min(model.context_tokens());
        // As many as have memory of their own before anybody was given any.
        let roomy = model.blocks() / model.context_tokens().div_ceil(model.block_tokens()).max(1);
        let lanes = MEASURED_LANES.min(model.lanes()).min(roomy.max(1));
        let prefill = time(model, 1, prompt)?;
        let one = time(model, 1, 1)?;
        let many = if lanes > 1 { time(model, lanes, 1)? } else { one };
        let decoding_lane = many.saturating_sub(one) / (lanes.max(2) - 1) as u32;
        let base = one.saturating_sub(decoding_lane);
        Ok(Self::new(base, prefill.saturating_sub(base) / prompt as u32, decoding_lane))
    }

    /// What `steps` steps take that have `decoding` lanes each and `prompt_tokens` together.
    pub(crate) fn of(&self, steps: f64, decoding: usize, prompt_tokens: usize) -> f64 {
        steps * (self.base + self.decoding_lane * decoding as f64) + self.prompt_token * prompt_tokens as f64
    }

    /// Learns from a step: what it took more or less than expected is put down to its parts by their shares.
    pub(crate) fn observe(&mut self, work: Work, took: Duration) {
        let expected = self.of(1.0, work.decoding, work.prompt_tokens);
        let surprise = (took.as_secs_f64() / expected).min(MOST_SURPRISE) - 1.0;
        let counts = [1.0, work.prompt_tokens as f64, work.decoding as f64];
        for (part, count) in [&mut self.base, &mut self.prompt_token, &mut self.decoding_lane].into_iter().zip(counts) {
            let share = *part * count / expected;
            *part = (*part * (1.0 + LEARNING * surprise * share)).max(LEAST_PART);
        }
    }
}

/// How long a step with `tokens` tokens of each of the first `lanes` lanes takes.
fn time(model: &mut dyn TokenModel, lanes: usize, tokens: usize) -> Result<Duration, EngineError> {
    let different = MEASURED_VOCABULARY.min(model.vocabulary());
    let tokens: Vec<TokenId> = (0..tokens).map(|at| (at % different) as TokenId).collect();
    let input = |lane| LaneInput { lane, start: 0, tokens: &tokens, logits: 1 };
    let inputs: Vec<LaneInput<'_>> = (0..lanes).map(input).collect();
    let mut logits = Vec::new();
    let mut quickest = Duration::MAX;
    for _ in 0..MEASUREMENTS {
        let begun = Instant::now();
        model.step(&inputs, &mut logits)?;
        quickest = quickest.min(begun.elapsed());
    }
    Ok(quickest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn true_cost(work: Work) -> Duration {
        Duration::from_micros(3_500 + 300 * work.prompt_tokens as u64 + 720 * work.decoding as u64)
    }

    fn assert_knows(costs: &StepCosts, prompt_tokens: usize, decoding: usize, within: f64) {
        let exact = true_cost(Work { prompt_tokens, decoding }).as_secs_f64();
        let found = costs.of(1.0, decoding, prompt_tokens);
        assert!((found / exact - 1.0).abs() < within, "{prompt_tokens} and {decoding}: {found} against {exact}");
    }

    #[test]
    fn the_costs_are_learnt_from_mixed_steps() {
        let mut costs = StepCosts::default();
        for step in 0..2_000 {
            let dice = random::bits(7, step);
            let work = Work { prompt_tokens: [0, 64, 17][(dice % 3) as usize], decoding: (dice / 3 % 17) as usize };
            costs.observe(work, true_cost(work));
        }
        for (prompt_tokens, decoding) in [(0, 1), (0, 16), (64, 0), (64, 8), (256, 0)] {
            assert_knows(&costs, prompt_tokens, decoding, 0.1);
        }
    }

    #[test]
    fn steps_of_one_kind_teach_nothing_of_others() {
        let mut costs = StepCosts::default();
        (0..1_000).for_each(|_| costs.observe(Work { prompt_tokens: 0, decoding: 16 }, Duration::from_millis(15)));
        assert_eq!(costs.prompt_token, StepCosts::default().prompt_token);
        assert!((costs.of(1.0, 16, 0) - 0.015).abs() < 1e-4);
    }

    #[test]
    fn one_interruption_is_no_new_cost() {
        let work = Work { prompt_tokens: 64, decoding: 8 };
        let mut costs =
            StepCosts::new(Duration::from_micros(3_500), Duration::from_micros(300), Duration::from_micros(720));
        costs.observe(work, Duration::from_secs(10));
        assert_knows(&costs, 64, 8, 0.3);
        (0..100).for_each(|_| costs.observe(work, true_cost(work)));
        assert_knows(&costs, 64, 8, 0.01);
    }

    #[test]
    fn a_model_is_measured_without_being_asked_too_much() {
        for (lanes, context) in [(1, 1), (2, 10), (16, 120)] {
            let mut model = crate::fake::FakeModel::new(lanes, context);
            assert!(StepCosts::measure(&mut model).expect("it computes").of(1.0, 1, 1) > 0.0);
            assert_eq!(model.steps.len(), if lanes > 1 { 6 } else { 4 });
        }
    }
}
