//! Matrix products of activations with packed weights.
//!
//! Weights `[outputs, inputs]` are packed into panels of 32 outputs, `[panel][input][32]`, and rows of activations into tiles of up to
//! six, `[tile][input][row]`. One step of the inner loop multiplies the 32 weights of one input with that input of each row of the
//! tile; there is nothing in it but loads and multiply-adds, which is what lets the compiler keep the sums in registers.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::{
    panels::{PANEL, share},
    simd::{LANES, Lanes, fma, has_avx512, vectorised},
};

/// Rows per tile where there are 32 registers of sixteen floats. With more, the compiler gives the vectors up.
const TILE_ROWS: usize = 6;
/// Rows per tile with fewer or smaller registers.
const SMALL_TILE_ROWS: usize = 3;

/// How many values `outputs` × `inputs` weights have when packed.
pub fn packed_len(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(PANEL) * PANEL * inputs
}

/// Packs up to [`PANEL`] rows of weights into one panel; missing rows are zero.
pub fn pack(rows: &[f32], inputs: usize, panel: &mut [f32]) {
    panel.fill(0.0);
    for (output, row) in rows.chunks_exact(inputs).enumerate() {
        for (input, &value) in row.iter().enumerate() {
            panel[input * PANEL + output] = value;
        }
    }
}

/// Copies one row of weights out of its panel.
pub fn unpack_row(packed: &[f32], output: usize, row: &mut [f32]) {
    let panel = &packed[output / PANEL * PANEL * row.len()..][..PANEL * row.len()];
    for (value, weights) in row.iter_mut().zip(panel.chunks_exact(PANEL)) {
        *value = weights[output % PANEL];
    }
}

/// `x · Wᵀ`: rows of `inputs` values to rows of `outputs` values.
pub fn linear(x: &[f32], packed: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs;
    let tile_rows = if has_avx512() { TILE_ROWS } else { SMALL_TILE_ROWS };
    let x = tiled(x, inputs, tile_rows);
    share(rows, outputs, inputs * PANEL, |number, rows, out| {
        let panel = &packed[number * PANEL * inputs..][..PANEL * inputs];
        multiply_panel(&x[rows.start * inputs..rows.end * inputs], inputs, tile_rows, panel, out);
    })
}

/// Lays the rows of each tile side by side: `[tile][input][row]`.
fn tiled(x: &[f32], inputs: usize, tile_rows: usize) -> Cow<'_, [f32]> {
    if x.len() == inputs {
        return Cow::Borrowed(x);
    }
    let mut tiles = vec![0.0; x.len()];
    let pairs = tiles.par_chunks_mut(tile_rows * inputs).zip(x.par_chunks(tile_rows * inputs));
    pairs.with_min_len(8).for_each(|(tile, x)| {
        let rows = x.len() / inputs;
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for (slots, value) in tile.chunks_exact_mut(rows).zip(x) {
                slots[row] = *value;
            }
        }
    });
    Cow::Owned(tiles)
}

vectorised! {
    /// Multiplies tiles of rows with one panel.
    fn multiply_panel(tiles: &[f32], inputs: usize, tile_rows: usize, panel: &[f32], out: &mut [f32]) = multiply_tiles
}

#[inline(always)]
fn multiply_tiles(tiles: &[f32], inputs: usize, tile_rows: usize, panel: &[f32], out: &mut [f32]) {
    for (tile, out) in tiles.chunks(tile_rows * inputs).zip(out.chunks_mut(tile_rows * PANEL)) {
        match tile.len() / inputs {
            1 => multiply_tile::<1>(tile, panel, out),
            2 => multiply_tile::<2>(tile, panel, out),
            3 => multiply_tile::<3>(tile, panel, out),
            4 => multiply_tile::<4>(tile, panel, out),
            5 => multiply_tile::<5>(tile, panel, out),
            _ => multiply_tile::<TILE_ROWS>(tile, panel, out),
        }
    }
}

#[inline(always)]
fn multiply_tile<const ROWS: usize>(tile: &[f32], panel: &[f32], out: &mut [f32]) {
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
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(PANEL)) {
        out.copy_from_slice(sums.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 12.9898).sin()).collect()
    }

    fn packed(weights: &[f32], inputs: usize) -> Vec<f32> {
        let mut packed = vec![0.0; packed_len(weights.len() / inputs, inputs)];
        for (rows, panel) in weights.chunks(PANEL * inputs).zip(packed.chunks_exact_mut(PANEL * inputs)) {
            pack(rows, inputs, panel);
        }
        packed
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
            let found = linear(&x, &packed(&weights, inputs), inputs, outputs);
            assert_eq!(found, reference(&x, &weights, inputs), "{rows} × {inputs} × {outputs}");
        }
    }

    #[test]
    fn every_tile_size_gives_the_same_bits() {
        let (inputs, x, weights) = (48, values(13 * 48, 0.1), values(32 * 48, 3.0));
        let panel = packed(&weights, inputs);
        for tile_rows in 1..=TILE_ROWS {
            let mut out = vec![0.0; 13 * PANEL];
            multiply_panel(&tiled(&x, inputs, tile_rows), inputs, tile_rows, &panel, &mut out);
            assert_eq!(out, reference(&x, &weights, inputs), "{tile_rows} rows per tile");
        }
    }

    #[test]
    fn unpacks_what_was_packed() {
        let weights = values(70 * 24, 1.0);
        let packed = packed(&weights, 24);
        let mut row = vec![0.0; 24];
        for (output, expected) in weights.chunks_exact(24).enumerate() {
            unpack_row(&packed, output, &mut row);
            assert_eq!(row, expected);
        }
    }
}
