//! Products with weights in 8 bits, over activations that are brought to 8 bits row by row.
//!
//! Both sides are symmetric in groups of [`GROUP`] inputs, each with a scale of its own, so that one large value costs its neighbours
//! their precision and nobody else's. Sums within a group are whole numbers and exact; across groups they are one chain of fused
//! multiply-adds:
//!
//! ```text
//! y[row][out] = Σ over groups  x_scale[row][group] · w_scale[out][group] · (Σ x · (w + 128)  −  128 · Σ x)
//! ```
//!
//! Weights are stored plus 128 because the processors' dot product (`VPDPBUSD`) takes unsigned bytes on one side.
//! Packed, a panel of 32 outputs lies as `[group][GROUP / 4][32 outputs][4 inputs]`.

mod dot;
mod quantise;

use self::dot::Panel;
pub(crate) use self::quantise::Rows;
use crate::{
    panels::{Output, PANEL, Product},
    scratch::Scratch,
};

/// Inputs that share a scale.
pub const GROUP: usize = 64;
/// Inputs that one dot product takes.
const QUAD: usize = 4;
/// What is added to a weight, so that it is not negative.
const OFFSET: i32 = 128;
/// The largest magnitude of a value in 8 bits.
const LARGEST: f32 = 127.0;
/// Rows that meet a panel at once: in 8 bits they fit a core's second-level cache.
const BLOCK_ROWS: usize = 512;
/// Bytes of one group of a panel.
const GROUP_BYTES: usize = GROUP * PANEL;

/// A matrix of weights `[outputs, inputs]` in 8 bits.
#[derive(Debug, Clone)]
pub struct Int8Matrix {
    inputs: usize,
    outputs: usize,
    /// `[panel][group][GROUP / 4][PANEL][4]`.
    weights: Vec<u8>,
    /// `[panel][group][PANEL]`.
    scales: Vec<f32>,
}

impl Int8Matrix {
    /// A matrix of zeros. `inputs` may be any number: the last group is filled up with zeros.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        let groups = outputs.div_ceil(PANEL) * inputs.div_ceil(GROUP);
        let weights = vec![OFFSET as u8; groups * GROUP_BYTES];
        Self { inputs, outputs, weights, scales: vec![0.0; groups * PANEL] }
    }

    /// How many values a row of activations has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many values a row of results has.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// What the weights and their scales take, in bytes.
    pub fn bytes(&self) -> usize {
        self.weights.len() + self.scales.len() * size_of::<f32>()
    }

    /// The panels, each to be filled with up to [`PANEL`] rows of weights; in any order, on any thread.
    pub fn panels_mut(&mut self) -> impl rayon::iter::IndexedParallelIterator<Item = PanelMut<'_>> {
        use rayon::prelude::*;
        let groups = self.inputs.div_ceil(GROUP).max(1);
        let inputs = self.inputs;
        let parts = self.weights.par_chunks_exact_mut(groups * GROUP_BYTES);
        let parts = parts.zip(self.scales.par_chunks_exact_mut(groups * PANEL));
        parts.map(move |(weights, scales)| PanelMut { inputs, weights, scales })
    }

    /// Row `output` of the weights as the products see it.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `row` does not hold [`inputs`](Self::inputs) values.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "a row of the matrix");
        let groups = self.inputs.div_ceil(GROUP);
        let (panel, lane) = (output / PANEL, output % PANEL);
        for (group, values) in row.chunks_mut(GROUP).enumerate() {
            let at = panel * groups + group;
            let (weights, scale) = (&self.weights[at * GROUP_BYTES..], self.scales[at * PANEL + lane]);
            for (input, value) in values.iter_mut().enumerate() {
                let weight = weights[place(input, lane)];
                *value = (i32::from(weight) - OFFSET) as f32 * scale;
            }
        }
    }

    /// `x · Wᵀ`: as many rows of [`inputs`](Self::inputs) values, each written by `fill`, to rows of [`outputs`](Self::outputs) values.
    ///
    /// # Panics
    ///
    /// If `out` has not that many values.
    pub fn multiply(
        &self,
        rows: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
        scratch: &mut Scratch,
        out: Output<'_>,
    ) {
        scratch.rows.quantise(rows, self.inputs, fill);
        let x = &scratch.rows;
        let groups = x.groups();
        let size = groups * GROUP_BYTES;
        let product = Product { rows, outputs: self.outputs, work: size, block: BLOCK_ROWS };
        product.compute(out, |number, rows, out| {
            let (weights, next) = self.weights[number * size..].split_at(size);
            let scales = &self.scales[number * groups * PANEL..][..groups * PANEL];
            let next = &next[..size.min(next.len())];
            dot::multiply_panel(x, rows, Panel { weights, scales, next }, out);
        });
    }
}

/// One panel of an [`Int8Matrix`] in the making.
#[derive(Debug)]
pub struct PanelMut<'a> {
    inputs: usize,
    weights: &'a mut [u8],
    scales: &'a mut [f32],
}

impl PanelMut<'_> {
    /// Brings rows of weights to 8 bits. `rows` holds up to [`PANEL`] of them, one after the other.
    ///
    /// # Panics
    ///
    /// If `rows` is not made of whole rows, or has too many.
    pub fn fill(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.inputs) && rows.len() <= self.inputs * PANEL, "rows of a panel");
        for (lane, row) in rows.chunks_exact(self.inputs).enumerate() {
            for (group, values) in row.chunks(GROUP).enumerate() {
                let scale = quantise::scale(values);
                self.scales[group * PANEL + lane] = scale;
                let weights = &mut self.weights[group * GROUP_BYTES..][..GROUP_BYTES];
                for (input, value) in values.iter().enumerate() {
                    let quantised = i32::from(quantise::nearest(*value, quantise::inverse(scale)));
                    weights[place(input, lane)] = (quantised + OFFSET) as u8;
                }
            }
        }
    }
}

/// Where the weight of one input of a group and one output of a panel lies.
fn place(input: usize, lane: usize) -> usize {
    (input / QUAD * PANEL + lane) * QUAD + input % QUAD
}

#[cfg(test)]
mod tests;
