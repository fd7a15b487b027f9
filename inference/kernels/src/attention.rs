//! Attention of one query position over the keys and values of its sequence, in place in the cache.
//!
//! A cache consists of blocks of 32 positions, which lie anywhere. A block of keys is `[dimension][32]`, so that the scores of its
//! positions are one chain each without sums across a vector; a block of values is `[32][dimension]`.

use crate::simd::{LANES, Lanes, exp, fma, sum, vectorised};

/// Positions per block.
pub const KEY_BLOCK: usize = 2 * LANES;
/// Dimensions of values that are summed side by side. The head dimension is a multiple of it.
pub const VALUE_BLOCK: usize = 2 * LANES;
/// Query heads that share one pass over the keys and values.
const MAX_HEADS: usize = 4;

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
    /// Positions before this one are not attended to.
    pub first: usize,
}

impl HeadCache<'_> {
    /// Without the whole blocks of positions that are not attended to.
    fn without_unseen_blocks(self) -> Self {
        let skipped = self.first / KEY_BLOCK;
        Self { blocks: &self.blocks[skipped..], first: self.first - skipped * KEY_BLOCK, ..self }
    }
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

/// Attends from the query heads that share one head of the cache over its positions up to `length`, not included.
///
/// `queries` and `out` hold the heads one after the other; `scores` is working space.
pub fn attend(queries: &[f32], cache: HeadCache<'_>, length: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
    let dimension = cache.dimension;
    let length = length - cache.first / KEY_BLOCK * KEY_BLOCK;
    let cache = cache.without_unseen_blocks();
    let stride = length.next_multiple_of(KEY_BLOCK);
    scores.resize(MAX_HEADS * stride, 0.0);
    let groups = queries.chunks(MAX_HEADS * dimension).zip(out.chunks_mut(MAX_HEADS * dimension));
    for (queries, out) in groups {
        attend_group(queries, cache, length, scores, out);
    }
}

vectorised! {
    fn attend_group(queries: &[f32], cache: HeadCache<'_>, length: usize, scores: &mut [f32], out: &mut [f32])
        = attend_any
}

#[inline(always)]
fn attend_any(queries: &[f32], cache: HeadCache<'_>, length: usize, scores: &mut [f32], out: &mut [f32]) {
    match queries.len() / cache.dimension {
        1 => attend_heads::<1>(queries, cache, length, scores, out),
        2 => attend_heads::<2>(queries, cache, length, scores, out),
        3 => attend_heads::<3>(queries, cache, length, scores, out),
        _ => attend_heads::<MAX_HEADS>(queries, cache, length, scores, out),
    }
}

#[inline(always)]
fn attend_heads<const HEADS: usize>(
    queries: &[f32],
    cache: HeadCache<'_>,
    length: usize,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let stride = length.next_multiple_of(KEY_BLOCK);
    score::<HEADS>(queries, cache, stride, scores);
    let scale = 1.0 / (cache.dimension as f32).sqrt();
    for scores in scores.chunks_exact_mut(stride).take(HEADS) {
        let (unseen, seen) = scores[..length].split_at_mut(cache.first);
        unseen.fill(0.0);
        softmax(seen, scale);
    }
    weigh::<HEADS>(scores, stride, cache, length, out);
}

/// Writes the products of each query head with the keys, block by block.
#[inline(always)]
fn score<const HEADS: usize>(queries: &[f32], cache: HeadCache<'_>, stride: usize, scores: &mut [f32]) {
    for (block, place) in cache.blocks[..stride / KEY_BLOCK].iter().enumerate() {
        let (vectors, _) = cache.keys[block_range(*place, cache.dimension)].as_chunks::<LANES>();
        let (rows, _) = vectors.as_chunks::<2>();
        let mut sums: [[Lanes; 2]; HEADS] = [[[0.0; LANES]; 2]; HEADS];
        for (part, rows) in rows.chunks_exact(VALUE_BLOCK).enumerate() {
            let queries = block_of_each::<HEADS>(queries, cache.dimension, part * VALUE_BLOCK);
            for (at, keys) in (0..VALUE_BLOCK).zip(rows) {
                for head in 0..HEADS {
                    for half in 0..2 {
                        sums[head][half] = fma(queries[head][at], &keys[half], sums[head][half]);
                    }
                }
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            scores[head * stride + block * KEY_BLOCK..][..KEY_BLOCK].copy_from_slice(sums.as_flattened());
        }
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
        for lane in 0..LANES {
            vector[lane] = exp((vector[lane] - largest) * scale);
            sums[lane] += vector[lane];
        }
    }
    for (lane, score) in rest.iter_mut().enumerate() {
        *score = exp((*score - largest) * scale);
        sums[lane] += *score;
    }
    let factor = 1.0 / sum(sums);
    for score in scores {
        *score *= factor;
    }
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

/// Sums the values by the weights in `scores`, position after position.
#[inline(always)]
fn weigh<const HEADS: usize>(scores: &[f32], stride: usize, cache: HeadCache<'_>, length: usize, out: &mut [f32]) {
    let parts = cache.dimension / VALUE_BLOCK;
    for part in 0..parts {
        let mut sums: [[Lanes; 2]; HEADS] = [[[0.0; LANES]; 2]; HEADS];
        for (block, place) in cache.blocks[..stride / KEY_BLOCK].iter().enumerate() {
            let (vectors, _) = cache.values[block_range(*place, cache.dimension)].as_chunks::<LANES>();
            let (values, _) = vectors.as_chunks::<2>();
            let weights = block_of_each::<HEADS>(scores, stride, block * KEY_BLOCK);
            let seen = KEY_BLOCK.min(length - block * KEY_BLOCK);
            for (position, values) in (0..seen).zip(values[part..].iter().step_by(parts)) {
                for head in 0..HEADS {
                    for half in 0..2 {
                        sums[head][half] = fma(weights[head][position], &values[half], sums[head][half]);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(cache.dimension)) {
            out[part * VALUE_BLOCK..][..VALUE_BLOCK].copy_from_slice(sums.as_flattened());
        }
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

    fn cache([keys, values]: &[Vec<f32>; 2], first: usize) -> HeadCache<'_> {
        HeadCache { keys, values, blocks: &BLOCKS, dimension: DIMENSION, first }
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
        for heads in 1..=9 {
            let queries = values(heads * DIMENSION, heads as f32);
            for length in [1, 2, 15, 16, 17, 31, 32, 33, 95, 96] {
                let placed = placed(&keys[..length * DIMENSION], &stored);
                let mut out = vec![0.0; heads * DIMENSION];
                attend(&queries, cache(&placed, 0), length, &mut Vec::new(), &mut out);
                for (query, out) in queries.chunks_exact(DIMENSION).zip(out.chunks_exact(DIMENSION)) {
                    for (found, exact) in out.iter().zip(reference(query, &keys, &stored, length)) {
                        assert!((f64::from(*found) - exact).abs() < 5e-6, "{heads} heads, length {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_head_does_not_depend_on_its_neighbours() {
        let (keys, stored) = (values(LENGTH * DIMENSION, 0.0), values(LENGTH * DIMENSION, 0.7));
        let placed = placed(&keys, &stored);
        let cache = cache(&placed, 0);
        let queries = values(7 * DIMENSION, 3.0);
        let (mut together, mut alone) = (vec![0.0; 7 * DIMENSION], vec![0.0; 7 * DIMENSION]);
        attend(&queries, cache, 50, &mut Vec::new(), &mut together);
        for (query, out) in queries.chunks_exact(DIMENSION).zip(alone.chunks_exact_mut(DIMENSION)) {
            attend(query, cache, 50, &mut Vec::new(), out);
        }
        assert_eq!(together, alone);
    }

    #[test]
    fn positions_before_the_first_do_not_matter() {
        let (keys, stored) = (values(LENGTH * DIMENSION, 0.0), values(LENGTH * DIMENSION, 0.7));
        let query = values(DIMENSION, 5.0);
        for (first, length) in [(1, 2), (31, 33), (32, 33), (33, 80), (70, 96), (95, 96)] {
            let placed = placed(&keys, &stored);
            let mut out = vec![0.0; DIMENSION];
            attend(&query, cache(&placed, first), length, &mut Vec::new(), &mut out);
            let (keys, stored) = (&keys[first * DIMENSION..], &stored[first * DIMENSION..]);
            for (found, exact) in out.iter().zip(reference(&query, keys, stored, length - first)) {
                assert!((f64::from(*found) - exact).abs() < 5e-6, "from {first} to {length}");
            }
        }
    }
}
