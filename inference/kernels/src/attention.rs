//! Attention of query positions over the keys and values of their sequence, in place in the cache.
//!
//! A cache consists of blocks of 32 positions, which lie anywhere. A block of keys is `[dimension][32]`, so that the scores of its
//! positions are one chain each without sums across a vector; a block of values is `[32][dimension]`.

use crate::simd::{LANES, Lanes, exp, fetch, fma, sum, vectorised};

/// Positions per block.
pub const KEY_BLOCK: usize = 2 * LANES;
/// Dimensions of values that are summed side by side. The head dimension is a multiple of it.
pub const VALUE_BLOCK: usize = 2 * LANES;
/// Queries that share one pass over the keys and values at most: the sums of more do not fit the registers.
const MAX_QUERIES: usize = 6;

mod batch;

pub use batch::{Heads, Row, attend_batch};

/// The cache of one head of keys and values.
#[derive(Debug, Clone, Copy)]
pub struct HeadCache<'a> {
    /// All blocks of keys, whoever's they are: `[block][dimension][KEY_BLOCK]`.
    pub keys: &'a [f32],
    /// All blocks of values: `[block][KEY_BLOCK][dimension]`.
    pub values: &'a [f32],
    /// Where the positions lie: `p` in block `blocks[p / KEY_BLOCK]`.
    pub blocks: &'a [u32],
    /// The size of the head.
    pub dimension: usize,
}

/// The positions that a query attends to.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The first of them.
    pub first: usize,
    /// The first behind them.
    pub end: usize,
}

/// Where a block lies in `values` or `keys` of heads of this size.
fn block_range(block: u32, dimension: usize) -> std::ops::Range<usize> {
    let begin = block as usize * KEY_BLOCK * dimension;
    begin..begin + KEY_BLOCK * dimension
}

/// Writes one position's key into a block of keys; `position` counts within the block.
pub fn write_key(block: &mut [f32], position: usize, key: &[f32]) {
    for (slots, value) in block.chunks_exact_mut(KEY_BLOCK).zip(key) {
        slots[position] = *value;
    }
}

/// Queries over the cache of the head that they share: query heads of one position, or of several positions of one sequence.
#[derive(Clone, Copy)]
struct Pass<'a> {
    /// One after the other.
    queries: &'a [f32],
    /// What each of them attends to.
    spans: &'a [Span],
    cache: HeadCache<'a>,
    /// Whose keys are fetched from memory meanwhile.
    next: Option<HeadCache<'a>>,
}

/// Attends from any number of queries; `out` gets what each finds, and `scores` is working space.
fn attend(pass: Pass<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let size = MAX_QUERIES * pass.cache.dimension;
    let groups = pass.queries.chunks(size).zip(pass.spans.chunks(MAX_QUERIES));
    for ((queries, spans), out) in groups.zip(out.chunks_mut(size)) {
        attend_group(Pass { queries, spans, ..pass }, scores, out);
    }
}

vectorised! { fn attend_group(pass: Pass<'_>, scores: &mut Vec<f32>, out: &mut [f32]) = attend_any }

#[inline(always)]
fn attend_any(pass: Pass<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    match pass.spans.len() {
        1 => attend_queries::<1>(pass, scores, out),
        2 => attend_queries::<2>(pass, scores, out),
        3 => attend_queries::<3>(pass, scores, out),
        4 => attend_queries::<4>(pass, scores, out),
        5 => attend_queries::<5>(pass, scores, out),
        _ => attend_queries::<MAX_QUERIES>(pass, scores, out),
    }
}

#[inline(always)]
fn attend_queries<const QUERIES: usize>(pass: Pass<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let Pass { queries, spans, cache, next } = pass;
    let first = spans.iter().map(|span| span.first).min().unwrap_or(0) / KEY_BLOCK;
    let end = spans.iter().map(|span| span.end).max().unwrap_or(0);
    let cache = HeadCache { blocks: &cache.blocks[first..end.div_ceil(KEY_BLOCK)], ..cache };
    let stride = cache.blocks.len() * KEY_BLOCK;
    scores.resize(QUERIES * stride, 0.0);
    score::<QUERIES>(queries, cache, scores);
    let scale = 1.0 / (cache.dimension as f32).sqrt();
    for (scores, span) in scores.chunks_exact_mut(stride).zip(spans) {
        // Positions that others of the queries attend to weigh nothing here.
        let (seen, behind) = scores.split_at_mut(span.end - first * KEY_BLOCK);
        let (before, seen) = seen.split_at_mut(span.first - first * KEY_BLOCK);
        before.fill(0.0);
        softmax(seen, scale);
        behind.fill(0.0);
    }
    let weighed = Weighed { scores, cache, length: end - first * KEY_BLOCK, next };
    weigh::<QUERIES>(weighed, out);
}

/// Writes the products of each query with the keys, a block or two at a time: few queries keep too few sums going with one.
#[inline(always)]
fn score<const QUERIES: usize>(queries: &[f32], cache: HeadCache<'_>, scores: &mut [f32]) {
    let mut block = 0;
    while QUERIES <= MAX_QUERIES / 2 && block + 2 <= cache.blocks.len() {
        score_blocks::<QUERIES, 2>(queries, cache, block, scores);
        block += 2;
    }
    while block < cache.blocks.len() {
        score_blocks::<QUERIES, 1>(queries, cache, block, scores);
        block += 1;
    }
}

/// Writes the products of each query with `BLOCKS` blocks of keys.
#[inline(always)]
fn score_blocks<const QUERIES: usize, const BLOCKS: usize>(
    queries: &[f32],
    cache: HeadCache<'_>,
    block: usize,
    scores: &mut [f32],
) {
    let (dimension, stride) = (cache.dimension, cache.blocks.len() * KEY_BLOCK);
    let mut keys: [&[[Lanes; 2]]; BLOCKS] = [&[]; BLOCKS];
    for (keys, place) in keys.iter_mut().zip(&cache.blocks[block..]) {
        *keys = cache.keys[block_range(*place, dimension)].as_chunks::<LANES>().0.as_chunks::<2>().0;
    }
    let mut sums: [[[Lanes; 2]; BLOCKS]; QUERIES] = [[[[0.0; LANES]; 2]; BLOCKS]; QUERIES];
    for part in (0..dimension).step_by(VALUE_BLOCK) {
        let queries = block_of_each::<QUERIES>(queries, dimension, part);
        let mut of_part: [&[[Lanes; 2]; VALUE_BLOCK]; BLOCKS] = [&[[[0.0; LANES]; 2]; VALUE_BLOCK]; BLOCKS];
        for (of_part, keys) in of_part.iter_mut().zip(keys) {
            *of_part = keys[part..].first_chunk().expect("the head has whole parts");
        }
        for at in 0..VALUE_BLOCK {
            for query in 0..QUERIES {
                for block in 0..BLOCKS {
                    for half in 0..2 {
                        let sum = &mut sums[query][block][half];
                        *sum = fma(queries[query][at], &of_part[block][at][half], *sum);
                    }
                }
            }
        }
    }
    for (query, sums) in sums.iter().enumerate() {
        let place = &mut scores[query * stride + block * KEY_BLOCK..][..BLOCKS * KEY_BLOCK];
        place.copy_from_slice(sums.as_flattened().as_flattened());
    }
}

/// A copy of 32 values from `begin` on of each head, of known size: loops over it have no bounds to check.
#[inline(always)]
fn block_of_each<const HEADS: usize>(heads: &[f32], stride: usize, begin: usize) -> [[f32; KEY_BLOCK]; HEADS] {
    let mut blocks = [[0.0; KEY_BLOCK]; HEADS];
    for (block, values) in blocks.iter_mut().zip(heads.chunks_exact(stride)) {
        block.copy_from_slice(&values[begin..begin + KEY_BLOCK]);
    }
    blocks
}

/// Turns scores into weights that sum to 1.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let largest = largest(scores);
    let (vectors, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums: Lanes = [0.0; LANES];
    for vector in vectors {
        *vector = raised(*vector, largest, scale);
        for lane in 0..LANES {
            sums[lane] += vector[lane];
        }
    }
    let mut last = [largest; LANES];
    last[..rest.len()].copy_from_slice(rest);
    last = raised(last, largest, scale);
    for (lane, score) in rest.iter_mut().enumerate() {
        *score = last[lane];
        sums[lane] += last[lane];
    }
    let factor = 1.0 / sum(sums);
    for score in scores {
        *score *= factor;
    }
}

#[inline(always)]
fn raised(mut vector: Lanes, largest: f32, scale: f32) -> Lanes {
    for score in &mut vector {
        *score = exp((*score - largest) * scale);
    }
    vector
}

#[inline(always)]
fn largest(scores: &[f32]) -> f32 {
    let (vectors, rest) = scores.as_chunks::<LANES>();
    let mut lanes: Lanes = [f32::NEG_INFINITY; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            lanes[lane] = lanes[lane].max(vector[lane]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, score| largest.max(*score))
}

/// Values and what each weighs for each query.
#[derive(Clone, Copy)]
struct Weighed<'a> {
    /// `[query][position]`, whole blocks.
    scores: &'a [f32],
    cache: HeadCache<'a>,
    /// How many positions there are values of.
    length: usize,
    next: Option<HeadCache<'a>>,
}

/// Sums the values, position after position; 64 dimensions at a time for few queries, else 32.
#[inline(always)]
fn weigh<const QUERIES: usize>(weighed: Weighed<'_>, out: &mut [f32]) {
    let mut begin = 0;
    while QUERIES <= MAX_QUERIES / 2 && begin + 2 * VALUE_BLOCK <= weighed.cache.dimension {
        weigh_part::<QUERIES, 4>(weighed, begin, out);
        begin += 2 * VALUE_BLOCK;
    }
    while begin < weighed.cache.dimension {
        weigh_part::<QUERIES, 2>(weighed, begin, out);
        begin += VALUE_BLOCK;
    }
}

/// Sums `VECTORS` vectors of the values from dimension `begin` on; the first of these passes has the memory bring the next keys near.
#[inline(always)]
fn weigh_part<const QUERIES: usize, const VECTORS: usize>(weighed: Weighed<'_>, begin: usize, out: &mut [f32]) {
    let Weighed { scores, cache, length, next } = weighed;
    let (dimension, stride) = (cache.dimension, cache.blocks.len() * KEY_BLOCK);
    let next = next.filter(|_| begin == 0);
    let mut sums: [[Lanes; VECTORS]; QUERIES] = [[[0.0; LANES]; VECTORS]; QUERIES];
    for (block, place) in cache.blocks.iter().enumerate() {
        let values = &cache.values[block_range(*place, dimension)];
        if let Some(next) = next
            && let Some(place) = next.blocks.get(block)
        {
            fetch(&next.keys[block_range(*place, dimension)]);
        }
        let weights = block_of_each::<QUERIES>(scores, stride, block * KEY_BLOCK);
        let seen = KEY_BLOCK.min(length - block * KEY_BLOCK);
        for (position, values) in (0..seen).zip(values.chunks_exact(dimension)) {
            let (vectors, _) = values[begin..][..VECTORS * LANES].as_chunks::<LANES>();
            for query in 0..QUERIES {
                for vector in 0..VECTORS {
                    sums[query][vector] = fma(weights[query][position], &vectors[vector], sums[query][vector]);
                }
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(dimension)) {
        out[begin..][..VECTORS * LANES].copy_from_slice(sums.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSION: usize = 64;
    const LENGTH: usize = 96;

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 78.233).sin() * 2.0).collect()
    }

    /// Where the blocks lie: in no order, with others between them.
    const BLOCKS: [u32; 3] = [4, 0, 3];
    const PLACES: usize = 5;

    /// Keys and values in their blocks. What lies beyond them or belongs to others must not matter.
    fn placed(keys: &[f32], values: &[f32]) -> [Vec<f32>; 2] {
        let mut placed = [(); 2].map(|()| vec![f32::NAN; PLACES * KEY_BLOCK * DIMENSION]);
        for (position, (key, value)) in keys.chunks_exact(DIMENSION).zip(values.chunks_exact(DIMENSION)).enumerate() {
            let range = block_range(BLOCKS[position / KEY_BLOCK], DIMENSION);
            write_key(&mut placed[0][range.clone()], position % KEY_BLOCK, key);
            placed[1][range][position % KEY_BLOCK * DIMENSION..][..DIMENSION].copy_from_slice(value);
        }
        placed
    }

    fn cache([keys, values]: &[Vec<f32>; 2]) -> HeadCache<'_> {
        HeadCache { keys, values, blocks: &BLOCKS, dimension: DIMENSION }
    }

    fn attend_all(queries: &[f32], spans: &[Span], cache: HeadCache<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len()];
        attend(Pass { queries, spans, cache, next: Some(cache) }, &mut Vec::new(), &mut out);
        out
    }

    fn reference(query: &[f32], keys: &[f32], values: &[f32], length: usize) -> Vec<f64> {
        let dot = |key: &[f32]| query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / 8.0;
        let scores: Vec<f64> = keys.chunks_exact(DIMENSION).take(length).map(dot).collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let weighted = |at: usize| {
            weights.iter().zip(values.chunks_exact(DIMENSION)).map(|(w, v)| w * f64::from(v[at])).sum::<f64>() / total
        };
        (0..DIMENSION).map(weighted).collect()
    }

    #[test]
    fn agrees_with_the_definition_at_every_length_and_group() {
        let (keys, stored) = (values(LENGTH * DIMENSION, 0.0), values(LENGTH * DIMENSION, 0.7));
        for heads in 1..=13 {
            let queries = values(heads * DIMENSION, heads as f32);
            for end in [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 95, 96] {
                let placed = placed(&keys[..end * DIMENSION], &stored);
                let out = attend_all(&queries, &vec![Span { first: 0, end }; heads], cache(&placed));
                for (query, out) in queries.chunks_exact(DIMENSION).zip(out.chunks_exact(DIMENSION)) {
                    for (found, exact) in out.iter().zip(reference(query, &keys, &stored, end)) {
                        assert!((f64::from(*found) - exact).abs() < 5e-6, "{heads} heads, {end} positions");
                    }
                }
            }
        }
    }

    #[test]
    fn a_query_does_not_depend_on_its_neighbours_and_their_spans() {
        let (keys, stored) = (values(LENGTH * DIMENSION, 0.0), values(LENGTH * DIMENSION, 0.7));
        let placed = placed(&keys, &stored);
        let cache = cache(&placed);
        let spans = [(0, 50), (0, 51), (3, 51), (40, 96), (0, 1), (32, 33), (70, 75), (0, 64), (31, 65)];
        let spans = spans.map(|(first, end)| Span { first, end });
        let queries = values(spans.len() * DIMENSION, 3.0);
        let together = attend_all(&queries, &spans, cache);
        let alone =
            queries.chunks_exact(DIMENSION).zip(spans).flat_map(|(query, span)| attend_all(query, &[span], cache));
        assert_eq!(together, alone.collect::<Vec<_>>());
    }

    #[test]
    fn positions_before_the_first_do_not_matter() {
        let (keys, stored) = (values(LENGTH * DIMENSION, 0.0), values(LENGTH * DIMENSION, 0.7));
        let query = values(DIMENSION, 5.0);
        for (first, end) in [(1, 2), (31, 33), (32, 33), (33, 80), (70, 96), (95, 96)] {
            let placed = placed(&keys, &stored);
            let out = attend_all(&query, &[Span { first, end }], cache(&placed));
            let (keys, stored) = (&keys[first * DIMENSION..], &stored[first * DIMENSION..]);
            for (found, exact) in out.iter().zip(reference(&query, keys, stored, end - first)) {
                assert!((f64::from(*found) - exact).abs() < 5e-6, "from {first} to {end}");
            }
        }
    }

    #[test]
    fn heads_of_any_whole_number_of_parts() {
        for dimension in [32, 96, 128, 160] {
            let (keys, stored) = (values(KEY_BLOCK * dimension, 0.0), values(KEY_BLOCK * dimension, 0.7));
            let mut packed = vec![f32::NAN; KEY_BLOCK * dimension];
            (0..20).for_each(|at| write_key(&mut packed, at, &keys[at * dimension..][..dimension]));
            let cache = HeadCache { keys: &packed, values: &stored, blocks: &[0], dimension };
            let query = values(dimension, 2.0);
            let out = attend_all(&query, &[Span { first: 0, end: 20 }], cache);
            let dot = |key: &[f32]| query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let weights = keys.chunks_exact(dimension).take(20).map(|key| (dot(key) / (dimension as f64).sqrt()).exp());
            let weights: Vec<f64> = weights.collect();
            for (at, found) in out.iter().enumerate() {
                let sum: f64 =
                    weights.iter().zip(stored.chunks_exact(dimension)).map(|(w, v)| w * f64::from(v[at])).sum();
                let exact = sum / weights.iter().sum::<f64>();
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{dimension}: {found} for {exact}");
            }
        }
    }
}
