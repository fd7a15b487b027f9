//! Products with weights in 4 bits as files store them, over activations that are brought to 8 bits row by row.
//!
//! Weights stand in blocks of [`BLOCK`] inputs with a step and a minimum each: `w = step · q + minimum`, `q` from 0 to 15. Nothing of a file
//! is rounded again. Activations are symmetric with a scale for each block. The sum of a block's products is a whole number and exact;
//! across blocks there is one chain of fused multiply-adds, two for each block in order:
//!
//! ```text
//! y ← minimum[out][block] · (x_scale[row][block] · Σ x)     + y
//! y ← (x_scale[row][block] · step[out][block]) · (Σ x · q)  + y
//! ```
//!
//! Packed, a block of a panel of 32 outputs is a run of 640 bytes: `[BLOCK / 8][32 outputs][4 bytes]`, where the low halves of the four
//! bytes are four inputs and the high halves the next four; then 32 steps and 32 minima in 16 bits.

mod dot;

use half::f16;

use crate::{
    halves::{self, SCALE_BYTES},
    packed::Packed,
    panels::{Output, PANEL},
    rows::{BLOCK, QUAD},
    scratch::Scratch,
};

/// Bytes of the quants of one block of a panel.
const QUANT_BYTES: usize = BLOCK * PANEL / 2;
/// Bytes of one block of a panel.
const BLOCK_BYTES: usize = QUANT_BYTES + 2 * SCALE_BYTES;
/// The largest value in 4 bits, and what holds one.
const LARGEST: u8 = 15;

/// A block of one output's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// What one more of a quant adds.
    pub step: f16,
    /// What a quant of 0 stands for.
    pub minimum: f16,
    /// From 0 to 15, one per input.
    pub quants: [u8; BLOCK],
}

/// A matrix of weights `[outputs, inputs]` in 4 bits.
#[derive(Debug, Clone)]
pub struct Int4Matrix(Packed<BLOCK_BYTES>);

impl Int4Matrix {
    /// A matrix of zeros.
    ///
    /// # Panics
    ///
    /// If `inputs` is not a multiple of [`BLOCK`].
    pub fn new(inputs: usize, outputs: usize) -> Self {
        assert!(inputs.is_multiple_of(BLOCK), "whole blocks");
        Self(Packed::new(inputs, outputs))
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

    /// What the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The panels, each to be filled with up to [`PANEL`] rows of blocks; in any order, on any thread.
    pub fn panels_mut(&mut self) -> impl rayon::iter::IndexedParallelIterator<Item = PanelMut<'_>> {
        use rayon::prelude::*;
        self.0.panels_mut().map(|weights| PanelMut { weights })
    }

    /// Row `output` of the weights, each value `quant · step + minimum` with two roundings, as ggml's reference has it.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `row` does not hold [`inputs`](Self::inputs) values.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.inputs(), "room for a row");
        let (blocks, lane) = self.0.blocks_of(output);
        for (block, values) in blocks.iter().zip(row.chunks_exact_mut(BLOCK)) {
            let (step, minimum) =
                (halves::scale(&block[QUANT_BYTES..], lane), halves::scale(&block[QUANT_BYTES + SCALE_BYTES..], lane));
            for (input, value) in values.iter_mut().enumerate() {
                let (at, high) = place(input, lane);
                let quant = if high { block[at] >> 4 } else { block[at] & LARGEST };
                *value = f32::from(quant) * step + minimum;
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

/// One panel of an [`Int4Matrix`] in the making.
#[derive(Debug)]
pub struct PanelMut<'a> {
    weights: &'a mut [u8],
}

impl PanelMut<'_> {
    /// Sets block `number` of the weights of output `lane` of the panel.
    ///
    /// # Panics
    ///
    /// If there is no such block or lane, or a quant has more than 4 bits.
    pub fn set(&mut self, lane: usize, number: usize, block: &Block) {
        assert!(lane < PANEL && block.quants.iter().all(|quant| *quant <= LARGEST), "a block of 4 bits in its lane");
        let bytes = &mut self.weights[number * BLOCK_BYTES..][..BLOCK_BYTES];
        for (pair, quants) in block.quants.as_chunks::<{ 2 * QUAD }>().0.iter().enumerate() {
            let bytes = &mut bytes[(pair * PANEL + lane) * QUAD..][..QUAD];
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = quants[at] | quants[QUAD + at] << 4;
            }
        }
        halves::set(&mut bytes[QUANT_BYTES..], lane, block.step);
        halves::set(&mut bytes[QUANT_BYTES + SCALE_BYTES..], lane, block.minimum);
    }
}

/// Which byte of a block of a panel holds the quant of an input and a lane, and whether in its high half.
fn place(input: usize, lane: usize) -> (usize, bool) {
    let (pair, within) = (input / (2 * QUAD), input % (2 * QUAD));
    ((pair * PANEL + lane) * QUAD + within % QUAD, within >= QUAD)
}

#[cfg(test)]
mod tests;
