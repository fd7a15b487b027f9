//! From a row of logits to the next token.
//!
//! penalties ─▶ greedy, or: temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ draw
//!
//! The choice is a pure function of the row, the tokens so far, the seed and the position. Weights are integers, so that sums
//! do not depend on the order of addition; equal logits rank by token id, the lower first; the exponential is our own, because
//! the platform's differs between libraries. Nothing sorts the vocabulary: a few passes over the row find the candidates.

use std::{cmp::Ordering, collections::HashMap};

use crate::{Sampling, TokenId, random};

/// Weight of the most probable token. Tokens less probable than it by more than this factor are never drawn.
const ONE: u64 = 1 << 40;

/// The row holds a NaN or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// How often tokens occurred in a reply, and which in its prompt; kept only for requests with penalties.
#[derive(Debug, Default)]
pub(crate) struct Occurrences {
    /// Times in the reply; tokens of the prompt are there with 0.
    counts: HashMap<TokenId, u32>,
    wanted: bool,
}

impl Occurrences {
    pub(crate) fn new(sampling: &Sampling, prompt: &[TokenId]) -> Self {
        let wanted =
            sampling.repetition_penalty != 1.0 || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let counts = if wanted { prompt.iter().map(|&id| (id, 0)).collect() } else { HashMap::new() };
        Self { counts, wanted }
    }

    /// Counts a token of the reply.
    pub(crate) fn add(&mut self, id: TokenId) {
        if self.wanted {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    fn penalise(&self, row: &mut [f32], sampling: &Sampling) {
        for (&id, &count) in &self.counts {
            let logit = &mut row[id as usize];
            *logit = penalised(*logit, count, sampling).clamp(f32::MIN, f32::MAX);
        }
    }
}

fn penalised(logit: f32, count: u32, sampling: &Sampling) -> f32 {
    let repeated = sampling.repetition_penalty;
    let logit = if logit > 0.0 { logit / repeated } else { logit * repeated };
    let presence = if count > 0 { sampling.presence_penalty } else { 0.0 };
    logit - presence - sampling.frequency_penalty * count as f32
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: TokenId,
}

impl Candidate {
    fn rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// Chooses tokens; keeps its scratch memory between calls.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    candidates: Vec<Candidate>,
    /// Of the whole row, in units of 1/[`ONE`]; as floats, whose computation the compiler turns into vector instructions.
    weights: Vec<f32>,
}

impl Sampler {
    /// The token at `position` of the reply. `row` is used up. `seen` holds ids below the row's length only.
    pub(crate) fn choose(
        &mut self,
        row: &mut [f32],
        sampling: &Sampling,
        seen: &Occurrences,
        position: u64,
    ) -> Result<TokenId, NotFinite> {
        if !row.iter().fold(true, |all, logit| all & logit.is_finite()) {
            return Err(NotFinite);
        }
        seen.penalise(row, sampling);
        let max = maximum(row);
        if sampling.temperature <= 0.0 {
            return row.iter().position(|&logit| logit == max).map(|id| id as TokenId).ok_or(NotFinite);
        }
        let scale = Scale { max, temperature: sampling.temperature };
        let random = random::bits(sampling.seed, position);
        let chosen = if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
            let total = self.weigh(row, &scale);
            draw(total, random, (0..).zip(self.weights.iter().map(|&weight| weight as u64)))
        } else {
            self.narrow(row, sampling, &scale);
            let weights = self.candidates.iter().map(|c| (c.id, scale.weight(c.logit)));
            draw(weights.clone().map(|(_, weight)| weight).sum(), random, weights)
        };
        chosen.ok_or(NotFinite)
    }

    /// Leaves the tokens that may be drawn, by id.
    fn narrow(&mut self, row: &[f32], sampling: &Sampling, scale: &Scale) {
        let top_k = if sampling.top_k == 0 { usize::MAX } else { sampling.top_k as usize };
        let mut target = None;
        if top_k < row.len() {
            self.gather(row, scale, |candidates, _| candidates.len() >= top_k);
        } else if sampling.top_p < 1.0 {
            let total = self.weigh(row, scale);
            let needed = *target.insert(nucleus_target(sampling.top_p, total));
            self.gather(row, scale, |candidates, _| mass(candidates, scale) >= needed);
        } else {
            // Twice: the threshold of a depth is rounded.
            self.gather(row, scale, |_, depth| 2 * weight(-depth) < floor(sampling.min_p));
        }
        if top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, Candidate::rank);
            self.candidates.truncate(top_k);
        }
        if sampling.top_p < 1.0 {
            let target = target.unwrap_or_else(|| nucleus_target(sampling.top_p, mass(&self.candidates, scale)));
            cut_nucleus(&mut self.candidates, scale, target);
        }
        self.candidates.retain(|c| scale.weight(c.logit) >= floor(sampling.min_p));
        self.candidates.sort_unstable_by_key(|c| c.id);
    }

    /// Weighs the whole row, and says what it weighs together.
    fn weigh(&mut self, row: &[f32], scale: &Scale) -> u64 {
        self.weights.clear();
        self.weights.extend(row.iter().map(|&logit| exponential((logit - scale.max) / scale.temperature)));
        self.weights.iter().map(|&weight| weight as u64).sum()
    }

    /// Collects all tokens down to some depth below the best; the depth grows until `enough`, or until all are there.
    fn gather(&mut self, row: &[f32], scale: &Scale, enough: impl Fn(&[Candidate], f32) -> bool) {
        for depth in [4.0, 7.0, 10.0, 13.0, 16.0, f32::INFINITY] {
            let threshold = scale.max - depth * scale.temperature;
            let pass = (0..).zip(row).filter(|&(_, &logit)| logit >= threshold);
            self.candidates.clear();
            // Adding 0 makes one zero of two, which must rank equal.
            self.candidates.extend(pass.map(|(id, &logit)| Candidate { logit: logit + 0.0, id }));
            if enough(&self.candidates, depth) {
                return;
            }
        }
    }
}

/// What logits weigh at a temperature.
struct Scale {
    max: f32,
    temperature: f32,
}

impl Scale {
    fn weight(&self, logit: f32) -> u64 {
        weight((logit - self.max) / self.temperature)
    }
}

/// e^x in units of 1/[`ONE`], rounded down, for x of at most 0.
fn weight(x: f32) -> u64 {
    exponential(x) as u64
}

/// e^x in units of 1/[`ONE`], for x of at most 0; relative error below 1e-6. A polynomial on [-ln 2/2, ln 2/2], then a shift of
/// the exponent.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the lowest bits (1.5 · 2^23).
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 = LN2_HIGH + LN2_LOW, where products of LN2_HIGH with small whole numbers are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -40.0 { x } else { -40.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let exponent = shifted - ROUND;
    let r = x - exponent * LN2_HIGH - exponent * LN2_LOW;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // 40 for the unit, 127 for the format: between 109 and 167 for x in [-40, 0].
    p * f32::from_bits(shifted.to_bits().wrapping_add(40 + 127) << 23)
}

/// The largest value. Eight at a time, which the compiler turns into vector instructions.
fn maximum(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::MIN; 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder().iter().copied().fold(f32::MIN, larger);
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

fn mass(candidates: &[Candidate], scale: &Scale) -> u64 {
    candidates.iter().map(|c| scale.weight(c.logit)).sum()
}

fn floor(min_p: f32) -> u64 {
    (f64::from(min_p) * ONE as f64) as u64
}

fn nucleus_target(top_p: f32, total: u64) -> u64 {
    ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total.max(1))
}

/// Keeps the shortest beginning, in order of rank, that weighs at least `target`. Halves like a quickselect, by weight.
fn cut_nucleus(candidates: &mut Vec<Candidate>, scale: &Scale, target: u64) {
    // Invariant: what is before `from` outranks the rest and weighs `above`, too little; what is before `to` weighs enough.
    let (mut from, mut to, mut above) = (0, candidates.len(), 0);
    while to - from > 1 {
        let half = (to - from) / 2;
        candidates[from..to].select_nth_unstable_by(half, Candidate::rank);
        let upper = mass(&candidates[from..from + half], scale);
        if above + upper >= target {
            to = from + half;
        } else {
            above += upper;
            from += half;
        }
    }
    candidates.truncate(to);
}

/// The token in whose share of `total` the random number falls.
fn draw(total: u64, random: u64, weights: impl Iterator<Item = (TokenId, u64)>) -> Option<TokenId> {
    let target = ((u128::from(total) * u128::from(random)) >> 64) as u64;
    let mut sum = 0;
    for (id, weight) in weights {
        sum += weight;
        if sum > target {
            return Some(id);
        }
    }
    None
}

#[cfg(test)]
mod tests;
