//! Products with weights in 8 bits, over activations that are brought to 8 bits row by row.
//!
//! Both sides are symmetric in blocks of [`BLOCK`] inputs, each with a scale of its own. Sums within a block are whole numbers and exact;
//! across blocks they are one chain of fused multiply-adds:
//!
//! ```text
//! y ← (x_scale[row][block] · w_scale[out][block]) · (Σ x · (w + 128)  −  128 · Σ x)  + y
//! ```
//!
//! Weights are stored plus 128 because the processors' dot product (`VPDPBUSD`) takes unsigned bytes on one side. Their scales have 16
//! bits, as in the files that have such blocks (`Q8_0`), so that nothing of these is rounded again.
//! Packed, a block of a panel of 32 outputs is a run of 1,088 bytes: `[BLOCK / 4][32 outputs][4 inputs]`, then 32 scales.

mod dot;

use half::f16;

use crate::{
    halves::{self, SCALE_BYTES},
    packed::Packed,
    panels::{Output, PANEL},
    rows::{self, BLOCK, OFFSET, QUAD},
    scratch::Scratch,
};

/// Bytes of the weights of one block of a panel.
const WEIGHT_BYTES: usize = BLOCK * PANEL;
/// Bytes of one block of a panel.
const BLOCK_BYTES: usize = WEIGHT_BYTES + SCALE_BYTES;

/// A matrix of weights `[outputs, inputs]` in 8 bits.
#[derive(Debug, Clone)]
pub struct Int8Matrix(Packed<BLOCK_BYTES>);

impl Int8Matrix {
    /// A matrix of zeros. `inputs` may be any number: the last block is filled up with zeros.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        let mut packed = Packed::new(inputs, outputs);
        packed.blocks_mut().for_each(|block: &mut [u8; BLOCK_BYTES]| block[..WEIGHT_BYTES].fill(OFFSET as u8));
        Self(packed)
    }

    /// What a matrix of so many inputs and outputs takes, in bytes.
    pub const fn bytes_for(inputs: usize, outputs: usize) -> usize {
        Packed::<BLOCK_BYTES>::bytes_for(inputs, outputs)
    }

    /// How many values a row of activations has.
    pub fn inputs(&self) -> usize {
        self.0.inputs()
    }

    /// How many values a row of results has.
    pub fn outputs(&self) -> usize {
        self.0.outputs()
    }

    /// What the weights and their scales take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The panels, each to be filled with up to [`PANEL`] rows of weights; in any order, on any thread.
    pub fn panels_mut(&mut self) -> impl rayon::iter::IndexedParallelIterator<Item = PanelMut<'_>> {
        use rayon::prelude::*;
        let inputs = self.inputs();
        self.0.panels_mut().map(move |weights| PanelMut { inputs, weights })
    }

    /// Row `output` of the weights as the products see it.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `row` does not hold [`inputs`](Self::inputs) values.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.inputs(), "room for a row");
        let (blocks, lane) = self.0.blocks_of(output);
        for (block, values) in blocks.iter().zip(row.chunks_mut(BLOCK)) {
            let scale = halves::scale(&block[WEIGHT_BYTES..], lane);
            for (input, value) in values.iter_mut().enumerate() {
                *value = (i32::from(block[place(input, lane)]) - OFFSET) as f32 * scale;
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
        self.0.multiply(rows, fill, scratch, out, dot::multiply_panel);
    }
}

/// One panel of an [`Int8Matrix`] in the making.
#[derive(Debug)]
pub struct PanelMut<'a> {
    inputs: usize,
    weights: &'a mut [u8],
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
            for (block, values) in self.weights.chunks_exact_mut(BLOCK_BYTES).zip(row.chunks(BLOCK)) {
                let scale = f16::from_f32(rows::scale(values));
                halves::set(&mut block[WEIGHT_BYTES..], lane, scale);
                let inverse = rows::inverse(scale.to_f32());
                for (input, value) in values.iter().enumerate() {
                    block[place(input, lane)] = (i32::from(rows::nearest(*value, inverse)) + OFFSET) as u8;
                }
            }
        }
    }
}

/// Where the weight of one input of a block and one output of a panel lies.
fn place(input: usize, lane: usize) -> usize {
    (input / QUAD * PANEL + lane) * QUAD + input % QUAD
}

#[cfg(test)]
mod tests;
