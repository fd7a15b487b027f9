//! Matrix products of activations with packed weights.
//!
//! Weights `[outputs, inputs]` are packed into panels of 32 outputs, `[panel][input][32]`, and rows of activations into tiles of up to
//! six, `[tile][input][row]`. One step of the inner loop multiplies the 32 weights of one input with that input of each row of the
//! tile; there is nothing in it but loads and multiply-adds, which is what lets the compiler keep the sums in registers.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    panels::{Output, PANEL, PREPARED_ROWS, PanelOut, Product},
    scratch::Scratch,
    simd::{LANES, Lanes, fma, has_avx512, vectorised},
    team::{self, Chunks},
};

/// Rows per tile where there are 32 registers of sixteen floats. With more, the compiler gives the vectors up.
const TILE_ROWS: usize = 6;
/// Rows that meet a panel at once: they fit a core's second-level cache. Every number of rows per tile divides it.
const BLOCK_ROWS: usize = 96;
/// Rows per tile with fewer or smaller registers.
const SMALL_TILE_ROWS: usize = 3;

/// A matrix of weights `[outputs, inputs]` in f32.
#[derive(Debug, Clone)]
pub struct F32Matrix {
    inputs: usize,
    outputs: usize,
    /// `[panel][input][PANEL]`.
    packed: Vec<f32>,
}

impl F32Matrix {
    /// A matrix of zeros.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, packed: vec![0.0; outputs.div_ceil(PANEL) * PANEL * inputs] }
    }

    /// How many values a row of activations has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many values a row of results has.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// What the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.len() * size_of::<f32>()
    }

    /// The panels, each to be filled with up to [`PANEL`] rows of weights; in any order, on any thread.
    pub fn panels_mut(&mut self) -> impl rayon::iter::IndexedParallelIterator<Item = PanelMut<'_>> {
        let inputs = self.inputs;
        self.packed.par_chunks_exact_mut(PANEL * inputs.max(1)).map(move |packed| PanelMut { inputs, packed })
    }

    /// Copies row `output` of the weights.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `row` does not hold [`inputs`](Self::inputs) values.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "a row of the matrix");
        let panel = &self.packed[output / PANEL * PANEL * self.inputs..][..PANEL * self.inputs];
        for (value, weights) in row.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *value = weights[output % PANEL];
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
        let tile_rows = if has_avx512() { TILE_ROWS } else { SMALL_TILE_ROWS };
        scratch.tiles.fill(rows, self.inputs, tile_rows, fill);
        let x = scratch.tiles.values();
        let size = PANEL * self.inputs;
        let product = Product { rows, outputs: self.outputs, work: size, block: BLOCK_ROWS };
        product.compute(out, |number, rows, out| {
            multiply_panel(x, rows, tile_rows, &self.packed[number * size..][..size], out);
        });
    }
}

/// One panel of an [`F32Matrix`] in the making.
#[derive(Debug)]
pub struct PanelMut<'a> {
    inputs: usize,
    packed: &'a mut [f32],
}

impl PanelMut<'_> {
    /// Packs rows of weights. `rows` holds up to [`PANEL`] of them, one after the other; missing rows are zero.
    pub fn fill(&mut self, rows: &[f32]) {
        self.packed.fill(0.0);
        for (output, row) in rows.chunks_exact(self.inputs).enumerate() {
            for (input, &value) in row.iter().enumerate() {
                self.packed[input * PANEL + output] = value;
            }
        }
    }
}

/// Rows of activations, those of each tile side by side. Its memory is used again for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    /// As they came: `[row][input]`.
    rows: Vec<f32>,
    /// `[tile][input][row]`.
    tiles: Vec<f32>,
}

impl Tiles {
    fn fill(&mut self, rows: usize, inputs: usize, tile_rows: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        self.rows.resize(rows * inputs, 0.0);
        self.tiles.resize(rows * inputs, 0.0);
        let size = PREPARED_ROWS.next_multiple_of(tile_rows);
        let floats = Chunks::new(&mut self.rows, size * inputs);
        let tiles = Chunks::new(&mut self.tiles, size * inputs);
        team::each(floats.count(), |number| {
            // SAFETY: every index is met once.
            let (floats, tiles) = unsafe { (floats.get(number), tiles.get(number)) };
            for (row, floats) in floats.chunks_exact_mut(inputs).enumerate() {
                fill(number * size + row, floats);
            }
            let pairs = floats.chunks(tile_rows * inputs).zip(tiles.chunks_mut(tile_rows * inputs));
            pairs.for_each(|(rows, tile)| lay_side_by_side(rows, inputs, tile));
        });
    }

    fn values(&self) -> &[f32] {
        &self.tiles
    }
}

fn lay_side_by_side(rows: &[f32], inputs: usize, tile: &mut [f32]) {
    let count = rows.len() / inputs;
    for (row, x) in rows.chunks_exact(inputs).enumerate() {
        for (slots, value) in tile.chunks_exact_mut(count).zip(x) {
            slots[row] = *value;
        }
    }
}

vectorised! {
    /// Multiplies some of the rows, from the beginning of a tile on, with one panel.
    fn multiply_panel(x: &[f32], rows: Range<usize>, tile_rows: usize, panel: &[f32], out: &mut PanelOut<'_>) = multiply_tiles
}

#[inline(always)]
fn multiply_tiles(x: &[f32], rows: Range<usize>, tile_rows: usize, panel: &[f32], out: &mut PanelOut<'_>) {
    let inputs = panel.len() / PANEL;
    let tiles = x[rows.start * inputs..rows.end * inputs].chunks(tile_rows * inputs);
    for (tile, first) in tiles.zip(rows.step_by(tile_rows)) {
        match tile.len() / inputs {
            1 => multiply_tile::<1>(tile, first, panel, out),
            2 => multiply_tile::<2>(tile, first, panel, out),
            3 => multiply_tile::<3>(tile, first, panel, out),
            4 => multiply_tile::<4>(tile, first, panel, out),
            5 => multiply_tile::<5>(tile, first, panel, out),
            _ => multiply_tile::<TILE_ROWS>(tile, first, panel, out),
        }
    }
}

#[inline(always)]
fn multiply_tile<const ROWS: usize>(tile: &[f32], first: usize, panel: &[f32], out: &mut PanelOut<'_>) {
    let (inputs, _) = tile.as_chunks::<ROWS>();
    let (vectors, _) = panel.as_chunks::<LANES>();
    let (steps, _) = vectors.as_chunks::<2>();
    let mut sums: [[Lanes; 2]; ROWS] = [[[0.0; LANES]; 2]; ROWS];
    for (values, weights) in inputs.iter().zip(steps) {
        for row in 0..ROWS {
            for half in 0..2 {
                sums[row][half] = fma(values[row], &weights[half], sums[row][half]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let values = sums.as_flattened().first_chunk::<PANEL>().expect("two vectors are a panel wide");
        out.put(first + row, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panels::copied;

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 12.9898).sin()).collect()
    }

    fn matrix(weights: &[f32], inputs: usize) -> F32Matrix {
        let mut matrix = F32Matrix::new(inputs, weights.len() / inputs);
        matrix.panels_mut().zip(weights.par_chunks(PANEL * inputs)).for_each(|(mut panel, rows)| panel.fill(rows));
        matrix
    }

    fn multiply(matrix: &F32Matrix, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / matrix.inputs;
        let mut out = vec![f32::NAN; rows * matrix.outputs];
        matrix.multiply(rows, copied(x, matrix.inputs), &mut Scratch::default(), Output::Set(&mut out));
        out
    }

    /// The chain that every output must be.
    fn reference(x: &[f32], weights: &[f32], inputs: usize) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum));
        x.chunks_exact(inputs).flat_map(|x| weights.chunks_exact(inputs).map(move |w| dot(x, w))).collect()
    }

    #[test]
    fn equals_the_scalar_reference_bit_for_bit_at_every_shape() {
        for (rows, inputs, outputs) in
            [(1, 5, 1), (2, 32, 31), (3, 64, 32), (7, 33, 65), (8, 96, 100), (29, 40, 96), (193, 24, 70), (300, 16, 40)]
        {
            let (x, weights) = (values(rows * inputs, 0.5), values(outputs * inputs, 7.0));
            let found = multiply(&matrix(&weights, inputs), &x);
            assert_eq!(found, reference(&x, &weights, inputs), "{rows} × {inputs} × {outputs}");
        }
    }

    #[test]
    fn every_tile_size_gives_the_same_bits() {
        let (inputs, x, weights) = (48, values(13 * 48, 0.1), values(32 * 48, 3.0));
        let matrix = matrix(&weights, inputs);
        for tile_rows in 1..=TILE_ROWS {
            let mut tiles = Tiles::default();
            tiles.fill(13, inputs, tile_rows, copied(&x, inputs));
            let mut out = vec![0.0; 13 * PANEL];
            let product = Product { rows: 13, outputs: PANEL, work: 1, block: 2 * tile_rows };
            product.compute(Output::Set(&mut out), |_, rows, out| {
                multiply_panel(tiles.values(), rows, tile_rows, &matrix.packed, out);
            });
            assert_eq!(out, reference(&x, &weights, inputs), "{tile_rows} rows per tile");
        }
    }

    #[test]
    fn gives_rows_back_as_they_were() {
        let weights = values(70 * 24, 1.0);
        let matrix = matrix(&weights, 24);
        let mut row = vec![0.0; 24];
        for (output, expected) in weights.chunks_exact(24).enumerate() {
            matrix.row(output, &mut row);
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn adds_to_what_is_there() {
        let (inputs, x, weights) = (24, values(5 * 24, 0.1), values(70 * 24, 3.0));
        let before = values(5 * 70, 9.0);
        let mut out = before.clone();
        matrix(&weights, inputs).multiply(5, copied(&x, inputs), &mut Scratch::default(), Output::Add(&mut out));
        let expected: Vec<f32> = before.iter().zip(reference(&x, &weights, inputs)).map(|(a, b)| a + b).collect();
        assert_eq!(out, expected);
    }
}
