//! What was measured of one subject.

use std::time::Duration;

use super::load::Loop;
use crate::streamed::Usage;

/// Callers in the closed loop.
pub(crate) const CALLERS: [u64; 5] = [1, 4, 8, 16, 32];
/// Callers whose decoding is timed.
pub(crate) const DECODERS: [u64; 3] = [1, 8, 32];

/// What was measured of one subject in all passes.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) is_ours: bool,
    /// One for each of [`CALLERS`].
    pub(crate) cells: [Cell; CALLERS.len()],
    /// Tokens per second, for each of [`DECODERS`].
    pub(crate) decodes: [Vec<f64>; DECODERS.len()],
    /// Tokens per second.
    pub(crate) prefills: Vec<f64>,
    pub(crate) cold_starts: Vec<Duration>,
    pub(crate) peak_bytes: u64,
}

/// What was measured at one number of callers.
#[derive(Default)]
pub(crate) struct Cell {
    /// New tokens per second, one for each pass.
    rates: Vec<f64>,
    firsts: Vec<Duration>,
    gaps: Vec<Duration>,
    pub(crate) usages: Vec<Usage>,
}

impl Row {
    pub(crate) fn new(name: &str, is_ours: bool) -> Self {
        Self {
            name: name.to_owned(),
            is_ours,
            cells: Default::default(),
            decodes: Default::default(),
            prefills: Vec::new(),
            cold_starts: Vec::new(),
            peak_bytes: 0,
        }
    }

    /// Seconds.
    pub(crate) fn cold_start(&self) -> f64 {
        median(&self.cold_starts.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
    }
}

impl Cell {
    pub(crate) fn add(&mut self, seen: &Loop) {
        let tokens: u64 = seen.answers.iter().map(|answer| answer.usage.new_tokens).sum();
        self.rates.push(tokens as f64 / seen.took.as_secs_f64());
        for answer in &seen.answers {
            self.firsts.push(answer.first_token());
            self.gaps.extend(answer.gaps());
            self.usages.push(answer.usage);
        }
    }

    /// New tokens per second.
    pub(crate) fn rate(&self) -> f64 {
        median(&self.rates)
    }

    /// Milliseconds to the first token.
    pub(crate) fn first(&self, hundredth: usize) -> f64 {
        quantile(&self.firsts, hundredth)
    }

    /// Milliseconds from one piece of text to the next.
    pub(crate) fn gap(&self, hundredth: usize) -> f64 {
        quantile(&self.gaps, hundredth)
    }
}

/// The upper one where there are two; not a number where there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In milliseconds; of few values the highest hundredths are the last one.
fn quantile(times: &[Duration], hundredth: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * hundredth).div_ceil(100).max(1);
    times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
