//! The shapes that a device computes: few, so that every one can be compiled and recorded before the first request.

use crate::blocks::BLOCK_TOKENS;

/// Tokens of one lane in one pass: one decoded, a handful drafted, a chunk of a prompt, a whole step's budget.
const TOKENS: [usize; 4] = [1, 8, 64, 256];
/// Rows of one pass at most, unless more lanes than that decode a token each.
const MAX_ROWS: usize = 256;
/// Cached positions that a pass attends over at least, where lanes have as many.
const LEAST_KEYS: usize = 256;
/// By how much that grows from one bucket to the next.
const KEYS_GROWTH: usize = 4;
/// The shape of one pass. Every tensor of the pass has a shape that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Lanes side by side, padded ones included.
    pub(super) lanes: usize,
    /// Tokens of each lane, padded ones included.
    pub(super) tokens: usize,
    /// Positions of the cache that each token may attend to, whole blocks.
    pub(super) keys: usize,
}

impl Shape {
    /// Rows of the matrices.
    pub(super) fn rows(self) -> usize {
        self.lanes * self.tokens
    }
}

/// All shapes of one model: powers of two of lanes, by the tokens of [`TOKENS`], by a geometric row of keys.
#[derive(Debug)]
pub(super) struct Buckets {
    lanes: usize,
    positions: usize,
}

impl Buckets {
    /// For `lanes` sequences of `context` tokens, which must be at least 1 and far from overflowing.
    pub(super) fn new(lanes: usize, context: usize) -> Self {
        Self { lanes: lanes.next_power_of_two(), positions: context.next_multiple_of(BLOCK_TOKENS) }
    }

    /// The numbers of tokens, ascending. The last is the most that one lane computes in one pass.
    pub(super) fn tokens(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let positions = self.positions;
        TOKENS.into_iter().filter(move |&tokens| tokens <= positions)
    }

    /// The most lanes of a pass of so many tokens each.
    pub(super) fn most_lanes(&self, tokens: usize) -> usize {
        if tokens == 1 { self.lanes } else { self.lanes.min(MAX_ROWS / tokens) }
    }

    /// The least shape for `lanes` lanes of a number of tokens of [`Self::tokens`], none of which stands beyond `end`.
    pub(super) fn shape(&self, lanes: usize, tokens: usize, end: usize) -> Shape {
        debug_assert!(lanes <= self.most_lanes(tokens) && end <= self.positions);
        let keys = self.keys().find(|&keys| end <= keys).unwrap_or(self.positions);
        Shape { lanes: lanes.next_power_of_two(), tokens, keys }
    }

    /// Every shape: 42 for 16 lanes of 2,048 tokens.
    pub(super) fn all(&self) -> impl Iterator<Item = Shape> {
        self.tokens().flat_map(move |tokens| {
            let most = self.most_lanes(tokens);
            let lanes = std::iter::successors(Some(1), |lanes| Some(lanes * 2)).take_while(move |&lanes| lanes <= most);
            lanes.flat_map(move |lanes| {
                let keys = self.keys().filter(move |&keys| tokens <= keys);
                keys.map(move |keys| Shape { lanes, tokens, keys })
            })
        })
    }

    fn keys(&self) -> impl Iterator<Item = usize> + use<> {
        let positions = self.positions;
        let below = std::iter::successors(Some(LEAST_KEYS), |keys| Some(keys * KEYS_GROWTH));
        below.take_while(move |&keys| keys < positions).chain([positions])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_shapes_as_the_documentation_says() {
        assert_eq!(Buckets::new(16, 2_048).all().count(), 42);
        assert_eq!(Buckets::new(1, 1).all().count(), 2);
    }

    #[test]
    fn every_pass_has_a_shape_that_was_listed() {
        for (lanes, context) in [(1, 1), (3, 50), (5, 256), (16, 2_048), (300, 1_000)] {
            let buckets = Buckets::new(lanes, context);
            let all: Vec<Shape> = buckets.all().collect();
            for tokens in buckets.tokens() {
                for lanes in 1..=buckets.most_lanes(tokens) {
                    for end in (tokens..=context).step_by(7).chain([context.max(tokens)]) {
                        let shape = buckets.shape(lanes, tokens, end);
                        assert!(all.contains(&shape), "{shape:?} of {context}");
                        assert!(
                            shape.lanes >= lanes && shape.keys >= end && shape.rows() <= MAX_ROWS.max(buckets.lanes)
                        );
                    }
                }
            }
        }
    }
}
