//! Bringing values to 8 bits.

use rayon::prelude::*;

use super::{GROUP, LARGEST, OFFSET};
use crate::simd::{LANES, vectorised};

/// Rows per task; fewer are not worth a second thread.
const ROWS_PER_TASK: usize = 16;

/// Rows of activations in 8 bits.
#[derive(Debug)]
pub(super) struct Rows {
    count: usize,
    groups: usize,
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
    /// Brings each row of `width` values to 8 bits.
    pub(super) fn quantise(x: &[f32], width: usize) -> Self {
        let (count, groups) = (x.len() / width, width.div_ceil(GROUP));
        let mut values = vec![0; count * groups * GROUP];
        let mut scales = vec![0.0; count * groups];
        let mut corrections = vec![0; count * groups];
        let rows = values.par_chunks_exact_mut(groups * GROUP).zip(x.par_chunks_exact(width));
        let rows = rows.zip(scales.par_chunks_exact_mut(groups).zip(corrections.par_chunks_exact_mut(groups)));
        rows.with_min_len(ROWS_PER_TASK).for_each(|((values, x), (scales, corrections))| {
            quantise_row(x, values, scales, corrections);
        });
        Self { count, groups, values, scales, corrections }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

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
