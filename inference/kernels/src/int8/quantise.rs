//! Bringing values to 8 bits.

use super::{GROUP, LARGEST, OFFSET};
use crate::{
    panels::PREPARED_ROWS,
    simd::{LANES, vectorised},
    team::{self, Chunks},
};

/// Rows of activations in 8 bits. Its memory is used again for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    groups: usize,
    /// As they came: `[row][width]`.
    floats: Vec<f32>,
    /// `[row][group][GROUP]`; the last group is filled up with zeros.
    values: Vec<i8>,
    /// `[row][group]`.
    scales: Vec<f32>,
    /// `−128 · Σ` of the group's values: `[row][group]`.
    corrections: Vec<i32>,
}

/// A row of activations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) values: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) corrections: &'a [i32],
}

impl Rows {
    /// Brings rows of `width` values to 8 bits; `fill` writes each.
    pub(super) fn quantise(&mut self, rows: usize, width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let groups = width.div_ceil(GROUP);
        self.groups = groups;
        self.floats.resize(rows * width, 0.0);
        // What fills up the last group may stem from a matrix of another width.
        if !width.is_multiple_of(GROUP) {
            self.values.clear();
        }
        self.values.resize(rows * groups * GROUP, 0);
        self.scales.resize(rows * groups, 0.0);
        self.corrections.resize(rows * groups, 0);
        let floats = Chunks::new(&mut self.floats, PREPARED_ROWS * width);
        let values = Chunks::new(&mut self.values, PREPARED_ROWS * groups * GROUP);
        let scales = Chunks::new(&mut self.scales, PREPARED_ROWS * groups);
        let corrections = Chunks::new(&mut self.corrections, PREPARED_ROWS * groups);
        team::each(floats.count(), |number| {
            // SAFETY: every index is met once.
            let (floats, values) = unsafe { (floats.get(number), values.get(number)) };
            // SAFETY: as above.
            let (scales, corrections) = unsafe { (scales.get(number), corrections.get(number)) };
            let rows = floats.chunks_exact_mut(width).zip(values.chunks_exact_mut(groups * GROUP));
            let rows = rows.zip(scales.chunks_exact_mut(groups).zip(corrections.chunks_exact_mut(groups)));
            for (row, ((floats, values), (scales, corrections))) in rows.enumerate() {
                fill(number * PREPARED_ROWS + row, floats);
                quantise_row(floats, values, scales, corrections);
            }
        });
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Row<'_> {
        let groups = row * self.groups..(row + 1) * self.groups;
        Row {
            values: &self.values[groups.start * GROUP..groups.end * GROUP],
            scales: &self.scales[groups.clone()],
            corrections: &self.corrections[groups],
        }
    }
}

vectorised! {
    fn quantise_row(x: &[f32], values: &mut [i8], scales: &mut [f32], corrections: &mut [i32]) = quantise_groups
}

#[inline(always)]
fn quantise_groups(x: &[f32], values: &mut [i8], scales: &mut [f32], corrections: &mut [i32]) {
    let groups = values.chunks_exact_mut(GROUP).zip(x.chunks(GROUP));
    for ((values, x), (scale, correction)) in groups.zip(scales.iter_mut().zip(corrections)) {
        *scale = self::scale(x);
        let inverse = inverse(*scale);
        let mut sum = 0;
        for (value, x) in values.iter_mut().zip(x) {
            *value = nearest(*x, inverse);
            sum += i32::from(*value);
        }
        *correction = -OFFSET * sum;
    }
}

/// The scale that lets the largest of the values have the largest magnitude. Not a number if one of them is none: so it shows in
/// every product.
#[inline(always)]
pub(super) fn scale(values: &[f32]) -> f32 {
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

/// One divided by a scale; 0 for a group of zeros, and for one whose values are too small to be told from zero.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// The nearest value in 8 bits, ties to even.
#[inline(always)]
pub(super) fn nearest(value: f32, inverse: f32) -> i8 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the lowest bits. What is not a number leaves something there that
    // does not matter: its group has a scale that is none either.
    const ROUND: f32 = 12_582_912.0;
    (value * inverse + ROUND).to_bits() as i8
}
