//! How probable the model thought the tokens of a reply.

use std::{cmp::Ordering, collections::VecDeque};

use crate::{TextCodec, TokenId};

/// A token and the natural logarithm of its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// The bytes that the token stands for. They may begin or end inside a character; special tokens have none.
    pub bytes: Vec<u8>,
    /// At most 0. The model's own distribution: before penalties, temperature and grammar, which may have chosen another token.
    pub logprob: f32,
}

/// One token of a reply with its most probable alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token of the reply.
    pub token: Likelihood,
    /// As many as were asked for, the most probable first. The token itself is among them if it is one.
    pub top: Vec<Likelihood>,
}

/// The model's distribution of the next token. A copy, since sampling uses the logits up.
pub(crate) struct Distribution {
    logits: Vec<f32>,
    log_sum: f64,
}

impl Distribution {
    pub(crate) fn of(logits: &[f32]) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Self { logits: logits.to_vec(), log_sum: max + sum.ln() }
    }

    /// What is reported of `token`, with `top` alternatives.
    pub(crate) fn report(&self, token: TokenId, top: u32, codec: &dyn TextCodec) -> TokenLogprob {
        let likelihood = |id| Likelihood { bytes: codec.token_bytes(id).to_vec(), logprob: self.logprob(id) };
        TokenLogprob { token: likelihood(token), top: self.top(top as usize).into_iter().map(likelihood).collect() }
    }

    fn logprob(&self, id: TokenId) -> f32 {
        (f64::from(self.logits[id as usize]) - self.log_sum).min(0.0) as f32
    }

    /// The `count` most probable tokens; of equal ones the lower id first.
    fn top(&self, count: usize) -> Vec<TokenId> {
        let rank = |a: &TokenId, b: &TokenId| -> Ordering {
            self.logits[*b as usize].total_cmp(&self.logits[*a as usize]).then(a.cmp(b))
        };
        let mut ids: Vec<TokenId> = (0..self.logits.len() as TokenId).collect();
        if (1..ids.len()).contains(&count) {
            ids.select_nth_unstable_by(count - 1, rank);
        }
        ids.truncate(count);
        ids.sort_unstable_by(rank);
        ids
    }
}

/// Tokens whose text is not out yet: reported with it, so that they do not tell a stop text that the reply must not show.
#[derive(Debug, Default)]
pub(crate) struct Unreported {
    /// Each with where its text begins, in bytes of the reply's text.
    waiting: VecDeque<(usize, TokenLogprob)>,
}

impl Unreported {
    /// Adds the next token.
    pub(crate) fn push(&mut self, start: usize, logprob: TokenLogprob) {
        self.waiting.push_back((start, logprob));
    }

    /// Takes the tokens of which something is out, once `out` bytes of text are.
    pub(crate) fn take(&mut self, out: usize) -> Vec<TokenLogprob> {
        let count = self.waiting.partition_point(|(start, _)| *start < out);
        self.waiting.drain(..count).map(|(_, logprob)| logprob).collect()
    }

    /// Takes everything, at the end of a reply that no stop text ended.
    pub(crate) fn take_all(&mut self) -> Vec<TokenLogprob> {
        self.waiting.drain(..).map(|(_, logprob)| logprob).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeCodec;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        // e^ln(n) = n: the probabilities are 1/10, 2/10, 3/10, 4/10, whatever is added to all logits.
        for shift in [0.0, -500.0, 500.0] {
            let logits: Vec<f32> = [1.0, 2.0, 3.0, 4.0].map(|n: f32| n.ln() + shift).to_vec();
            let reported = Distribution::of(&logits).report(1, 2, &*FakeCodec::new(8));
            assert!((reported.token.logprob - 0.2_f32.ln()).abs() < 1e-4, "{reported:?}");
            let top: Vec<f32> = reported.top.iter().map(|other| other.logprob.exp()).collect();
            assert!((top[0] - 0.4).abs() < 1e-4 && (top[1] - 0.3).abs() < 1e-4, "{reported:?}");
            assert_eq!(reported.token.bytes, b"b", "the codec's piece 1");
        }
    }

    #[test]
    fn as_many_alternatives_as_asked_for_and_no_more_than_there_are() {
        let distribution = Distribution::of(&[0.0, 5.0, 5.0, 1.0]);
        for (count, expected) in [(0, &[][..]), (1, &[1]), (3, &[1, 2, 3]), (4, &[1, 2, 3, 0]), (20, &[1, 2, 3, 0])] {
            assert_eq!(distribution.top(count), expected);
        }
    }
}
