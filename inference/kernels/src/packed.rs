//! Weights of few bits as the dot products of bytes read them: panels of [`PANEL`] outputs, each a run of blocks, each block a run of bytes.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    lines::Lines,
    panels::{Output, PANEL, PanelOut, Product},
    rows::{BLOCK, BLOCK_ROWS, Rows},
    scratch::Scratch,
};

/// Weights `[panel][block][BLOCK_BYTES]`, zeros at first. The last block of a row is filled up.
#[derive(Debug, Clone)]
pub(crate) struct Packed<const BLOCK_BYTES: usize> {
    inputs: usize,
    outputs: usize,
    weights: Lines,
}

/// Weights of a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// `[block][BLOCK_BYTES]`.
    pub(crate) weights: &'a [u8],
    /// The weights that come next; they are fetched from memory while these are multiplied.
    pub(crate) next: &'a [u8],
}

impl<const BLOCK_BYTES: usize> Packed<BLOCK_BYTES> {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, weights: Lines::new(Self::bytes_for(inputs, outputs)) }
    }

    pub(crate) const fn bytes_for(inputs: usize, outputs: usize) -> usize {
        outputs.div_ceil(PANEL) * inputs.div_ceil(BLOCK) * BLOCK_BYTES
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len()
    }

    /// Every block, panel by panel.
    pub(crate) fn blocks_mut(&mut self) -> impl Iterator<Item = &mut [u8; BLOCK_BYTES]> {
        self.weights.as_chunks_mut().0.iter_mut()
    }

    /// The weights of each panel.
    pub(crate) fn panels_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [u8]> {
        let size = self.panel_bytes().max(1);
        self.weights.par_chunks_exact_mut(size)
    }

    pub(crate) fn panel(&self, number: usize) -> Panel<'_> {
        let size = self.panel_bytes();
        let (weights, next) = self.weights[number * size..].split_at(size);
        Panel { weights, next: &next[..size.min(next.len())] }
    }

    /// The blocks of the panel that holds row `output`, and the row's lane in it.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub(crate) fn blocks_of(&self, output: usize) -> (&[[u8; BLOCK_BYTES]], usize) {
        assert!(output < self.outputs, "a row of the matrix");
        (self.panel(output / PANEL).weights.as_chunks().0, output % PANEL)
    }

    /// `x · Wᵀ` for so many rows, each written by `fill` and brought to 8 bits; `multiply_panel` multiplies some of them with one panel.
    pub(crate) fn multiply(
        &self,
        rows: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
        scratch: &mut Scratch,
        out: Output<'_>,
        multiply_panel: impl Fn(&Rows, Range<usize>, Panel<'_>, &mut PanelOut<'_>) + Sync,
    ) {
        scratch.rows.quantise(rows, self.inputs, fill);
        let x = &scratch.rows;
        let work = self.inputs.next_multiple_of(BLOCK) * PANEL;
        let product = Product { rows, outputs: self.outputs, work, block: BLOCK_ROWS };
        product.compute(out, |number, rows, out| multiply_panel(x, rows, self.panel(number), out));
    }

    fn panel_bytes(&self) -> usize {
        self.inputs.div_ceil(BLOCK) * BLOCK_BYTES
    }
}
