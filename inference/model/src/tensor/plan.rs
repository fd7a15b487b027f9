//! From a ragged step to passes of few shapes.

use std::ops::Range;

use parlance_inference_engine::{Lane, LaneInput, TokenId};

use super::buckets::{Buckets, Shape};

/// What one lane computes in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) lane: Lane,
    /// Where `tokens[0]` stands.
    pub(super) start: usize,
    pub(super) tokens: &'a [TokenId],
    /// After which of `tokens` logits are wanted.
    pub(super) wanted: Range<usize>,
    /// The number of the first wanted row among all rows of the step.
    pub(super) output: usize,
}

/// One padded batch. Row `p · tokens + t` is token `t` of part `p`; the other rows are padding.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pass<'a> {
    pub(super) shape: Shape,
    pub(super) parts: Vec<Part<'a>>,
}

impl Pass<'_> {
    /// The rows after which logits are wanted, each with its number among all rows of the step.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (usize, usize)> {
        self.parts.iter().enumerate().flat_map(|(number, part)| {
            let first = number * self.shape.tokens;
            part.wanted.clone().zip(part.output..).map(move |(token, output)| (first + token, output))
        })
    }
}

/// Cuts the inputs of a step into passes: parts of one input follow each other, parts of about the same length go together.
///
/// `wanted` says after how many of an input's last tokens logits are wanted. The rows of the step are in input order.
pub(super) fn passes<'a>(
    inputs: &[LaneInput<'a>],
    wanted: impl Fn(&LaneInput<'_>) -> usize,
    buckets: &Buckets,
) -> Vec<Pass<'a>> {
    let most = buckets.tokens().next_back().unwrap_or(1);
    let rounds = inputs.iter().map(|input| input.tokens.len().div_ceil(most)).max().unwrap_or(0);
    let mut passes = Vec::new();
    for round in 0..rounds {
        let parts = round_parts(inputs, &wanted, round * most..(round + 1) * most);
        let mut shortest = 1;
        for tokens in buckets.tokens() {
            let alike = |part: &&Part<'_>| (shortest..=tokens).contains(&part.tokens.len());
            let group: Vec<_> = parts.iter().filter(alike).cloned().collect();
            passes.extend(group.chunks(buckets.most_lanes(tokens)).map(|parts| pass(parts, tokens, buckets)));
            shortest = tokens + 1;
        }
    }
    passes
}

/// The tokens of every input whose numbers are in `window`.
fn round_parts<'a>(
    inputs: &[LaneInput<'a>],
    wanted: impl Fn(&LaneInput<'_>) -> usize,
    window: Range<usize>,
) -> Vec<Part<'a>> {
    let mut output = 0;
    let parts = inputs.iter().filter_map(|input| {
        let count = input.tokens.len();
        let (first_wanted, first_output) = (count - wanted(input), output);
        output += wanted(input);
        let (begin, end) = (window.start, count.min(window.end));
        (begin < end).then(|| Part {
            lane: input.lane,
            start: input.start + begin,
            tokens: &input.tokens[begin..end],
            wanted: first_wanted.clamp(begin, end) - begin..end - begin,
            output: first_output + begin.saturating_sub(first_wanted),
        })
    });
    parts.collect()
}

fn pass<'a>(parts: &[Part<'a>], tokens: usize, buckets: &Buckets) -> Pass<'a> {
    let end = parts.iter().map(|part| part.start + part.tokens.len()).max().unwrap_or(1);
    Pass { shape: buckets.shape(parts.len(), tokens, end.max(tokens)), parts: parts.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each pass computes: lane, first position, number of tokens, rows wanted.
    type Seen = (Shape, Vec<(usize, usize, usize, Range<usize>)>);

    fn seen(inputs: &[LaneInput<'_>], wanted: impl Fn(&LaneInput<'_>) -> usize) -> Vec<Seen> {
        let passes = passes(inputs, wanted, &Buckets::new(16, 2_048));
        let part =
            |part: &Part<'_>| (part.lane, part.start, part.tokens.len(), part.output..part.output + part.wanted.len());
        passes.iter().map(|pass| (pass.shape, pass.parts.iter().map(part).collect())).collect()
    }

    #[test]
    fn tokens_that_are_decoded_go_together_and_a_chunk_alone() {
        let tokens = [7; 64];
        let input = |lane, start, count, logits| LaneInput { lane, start, tokens: &tokens[..count], logits };
        let inputs = [input(4, 200, 1, 1), input(2, 0, 60, 0), input(9, 300, 1, 1), input(1, 5, 1, 1)];
        let wanted = |input: &LaneInput<'_>| input.logits;
        let decoded = vec![(4, 200, 1, 0..1), (9, 300, 1, 1..2), (1, 5, 1, 2..3)];
        assert_eq!(
            seen(&inputs, wanted),
            [
                (Shape { lanes: 4, tokens: 1, keys: 1_024 }, decoded),
                (Shape { lanes: 1, tokens: 64, keys: 256 }, vec![(2, 0, 60, 1..1)]),
            ]
        );
    }

    #[test]
    fn a_long_input_is_cut_and_keeps_the_order_of_its_rows() {
        let tokens = [7; 600];
        let inputs = [
            LaneInput { lane: 0, start: 0, tokens: &tokens[..3], logits: 1 },
            LaneInput { lane: 1, start: 10, tokens: &tokens, logits: 1 },
        ];
        let passes = seen(&inputs, |input| input.tokens.len().min(400));
        let parts: Vec<_> = passes.into_iter().flat_map(|(_, parts)| parts).collect();
        assert_eq!(parts, [(0, 0, 3, 0..3), (1, 10, 256, 3..59), (1, 266, 256, 59..315), (1, 522, 88, 315..403)]);
    }

    #[test]
    fn rows_are_found_behind_the_padding() {
        let tokens = [7; 8];
        let input = |lane, count| LaneInput { lane, start: 0, tokens: &tokens[..count], logits: 1 };
        let passes = passes(&[input(3, 5), input(0, 2)], |_| 2, &Buckets::new(4, 64));
        assert_eq!(passes.len(), 1);
        assert_eq!(passes[0].wanted().collect::<Vec<_>>(), [(3, 0), (4, 1), (8, 2), (9, 3)]);
    }
}
