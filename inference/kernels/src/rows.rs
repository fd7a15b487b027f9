//! Rows of activations in 8 bits: symmetric in blocks of [`BLOCK`] values, each with a scale of its own, so that one large value costs its
//! neighbours their precision and nobody else's.

use crate::{
    panels::PREPARED_ROWS,
    simd::{LANES, vectorised},
    team::{self, Chunks},
};

/// Inputs that share a scale, of activations and of weights; as many as in the blocks of the usual files.
pub const BLOCK: usize = 32;
/// Inputs that one dot product takes.
pub(crate) const QUAD: usize = 4;
/// Rows that meet a panel at once: in 8 bits they fit a core's second-level cache.
pub(crate) const BLOCK_ROWS: usize = 512;
/// What is added to a weight in 8 bits, so that it is not negative.
pub(crate) const OFFSET: i32 = 128;
/// The largest magnitude of a value in 8 bits.
pub(crate) const LARGEST: f32 = 127.0;

/// Rows of activations in 8 bits. Its memory is used again for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    blocks: usize,
    /// As they came: `[row][width]`.
    floats: Vec<f32>,
    /// `[row][block][BLOCK]`; the last block is filled up with zeros.
    values: Vec<i8>,
    /// `[row][block]`.
    scales: Vec<f32>,
    /// `−128 · Σ` of the block's values: `[row][block]`.
    corrections: Vec<i32>,
    /// The scale times the sum of the block's values: `[row][block]`.
    sums: Vec<f32>,
}

/// A row of activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) values: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) corrections: &'a [i32],
    pub(crate) sums: &'a [f32],
}

impl Rows {
    /// Brings rows of `width` values to 8 bits; `fill` writes each.
    pub(crate) fn quantise(&mut self, rows: usize, width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let blocks = width.div_ceil(BLOCK);
        self.blocks = blocks;
        self.floats.resize(rows * width, 0.0);
        // What fills up the last block may stem from a matrix of another width.
        if !width.is_multiple_of(BLOCK) {
            self.values.clear();
        }
        self.values.resize(rows * blocks * BLOCK, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.corrections.resize(rows * blocks, 0);
        self.sums.resize(rows * blocks, 0.0);
        let floats = Chunks::new(&mut self.floats, PREPARED_ROWS * width);
        let values = Chunks::new(&mut self.values, PREPARED_ROWS * blocks * BLOCK);
        let scales = Chunks::new(&mut self.scales, PREPARED_ROWS * blocks);
        let corrections = Chunks::new(&mut self.corrections, PREPARED_ROWS * blocks);
        let sums = Chunks::new(&mut self.sums, PREPARED_ROWS * blocks);
        team::each(floats.count(), |number| {
            // SAFETY: every index is met once.
            let (floats, values) = unsafe { (floats.get(number), values.get(number)) };
            // SAFETY: as above.
            let (scales, corrections, sums) =
                unsafe { (scales.get(number), corrections.get(number), sums.get(number)) };
            let rows = floats.chunks_exact_mut(width).zip(values.chunks_exact_mut(blocks * BLOCK));
            let factors = corrections.chunks_exact_mut(blocks).zip(sums.chunks_exact_mut(blocks));
            let rows = rows.zip(scales.chunks_exact_mut(blocks).zip(factors));
            for (row, ((floats, values), (scales, (corrections, sums)))) in rows.enumerate() {
                fill(number * PREPARED_ROWS + row, floats);
                quantise_row(floats, values, scales, corrections, sums);
            }
        });
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> Row<'_> {
        let blocks = row * self.blocks..(row + 1) * self.blocks;
        Row {
            values: &self.values[blocks.start * BLOCK..blocks.end * BLOCK],
            scales: &self.scales[blocks.clone()],
            corrections: &self.corrections[blocks.clone()],
            sums: &self.sums[blocks],
        }
    }
}

vectorised! {
    fn quantise_row(
        x: &[f32], values: &mut [i8], scales: &mut [f32], corrections: &mut [i32], sums: &mut [f32],
    ) = quantise_blocks
}

#[inline(always)]
fn quantise_blocks(x: &[f32], values: &mut [i8], scales: &mut [f32], corrections: &mut [i32], sums: &mut [f32]) {
    let blocks = values.chunks_exact_mut(BLOCK).zip(x.chunks(BLOCK));
    let factors = scales.iter_mut().zip(corrections.iter_mut().zip(sums));
    for ((values, x), (scale, (correction, sum))) in blocks.zip(factors) {
        *scale = self::scale(x);
        let inverse = inverse(*scale);
        let mut total = 0;
        for (value, x) in values.iter_mut().zip(x) {
            *value = nearest(*x, inverse);
            total += i32::from(*value);
        }
        *correction = -OFFSET * total;
        *sum = *scale * total as f32;
    }
}

/// The scale that lets the largest of the values have the largest magnitude. Not a number if one of them is none: so it shows in
/// every product.
#[inline(always)]
pub(crate) fn scale(values: &[f32]) -> f32 {
    // Magnitudes compare as their bits do, and what is not a number is above all of them.
    let magnitude = |value: f32| value.abs().to_bits();
    let (vectors, rest) = values.as_chunks::<LANES>();
    let mut largest = [0; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(magnitude(vector[lane]));
        }
    }
    let largest = rest.iter().map(|value| magnitude(*value)).chain(largest).fold(0, u32::max);
    f32::from_bits(largest) / LARGEST
}

/// One divided by a scale; 0 for a block of zeros, and for one whose values are too small to be told from zero.
#[inline(always)]
pub(crate) fn inverse(scale: f32) -> f32 {
    if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// The nearest value in 8 bits, ties to even.
#[inline(always)]
pub(crate) fn nearest(value: f32, inverse: f32) -> i8 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the lowest bits. What is not a number leaves something there that
    // does not matter: its block has a scale that is none either.
    const ROUND: f32 = 12_582_912.0;
    (value * inverse + ROUND).to_bits() as i8
}
