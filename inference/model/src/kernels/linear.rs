//! Matrix products of activations with packed weights.
//!
//! Weights `[outputs, inputs]` are packed into panels of 32 outputs: `[panel][input][32]`. One step of the inner loop loads 32 weights
//! in a row and multiplies them with one input of each of up to eight rows, so that a panel is read once for every eight rows.

use rayon::prelude::*;

use super::simd::{LANES, Lanes, fma, has_avx512, vectorised};

/// Outputs per panel.
pub(crate) const PANEL: usize = 2 * LANES;
/// Rows per tile where the registers allow: 8 rows of 2 vectors are half of AVX-512's.
const TILE_ROWS: usize = 8;
/// Rows per tile with sixteen smaller registers.
const SMALL_TILE_ROWS: usize = 3;
/// Rows whose inputs stay in the second-level cache while a thread's panels pass by.
const BLOCK_ROWS: usize = 128;

/// How many values `outputs` × `inputs` weights have when packed.
pub(crate) fn packed_len(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(PANEL) * PANEL * inputs
}

/// Packs up to [`PANEL`] rows of weights into one panel; missing rows are zero.
pub(crate) fn pack(rows: &[f32], inputs: usize, panel: &mut [f32]) {
    panel.fill(0.0);
    for (output, row) in rows.chunks_exact(inputs).enumerate() {
        for (input, &value) in row.iter().enumerate() {
            panel[input * PANEL + output] = value;
        }
    }
}

/// Copies one row of weights out of its panel.
pub(crate) fn unpack_row(packed: &[f32], output: usize, row: &mut [f32]) {
    let panel = &packed[output / PANEL * PANEL * row.len()..][..PANEL * row.len()];
    for (value, weights) in row.iter_mut().zip(panel.chunks_exact(PANEL)) {
        *value = weights[output % PANEL];
    }
}

/// `x · Wᵀ`: rows of `inputs` values to rows of `outputs` values.
pub(crate) fn linear(x: &[f32], packed: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs;
    let panels = outputs.div_ceil(PANEL);
    let mut by_panel = vec![0.0; panels * rows * PANEL];
    let tasks = by_panel.par_chunks_exact_mut(rows * PANEL).zip(packed.par_chunks_exact(PANEL * inputs));
    tasks.for_each(|(out, panel)| {
        for (x, out) in x.chunks(BLOCK_ROWS * inputs).zip(out.chunks_mut(BLOCK_ROWS * PANEL)) {
            multiply_panel(x, inputs, panel, out);
        }
    });
    if rows == 1 {
        by_panel.truncate(outputs);
        return by_panel;
    }
    by_row(&by_panel, rows, outputs)
}

/// `[panel][row][32]` to `[row][outputs]`.
fn by_row(by_panel: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * outputs];
    out.par_chunks_exact_mut(outputs).with_min_len(16).enumerate().for_each(|(row, out)| {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            out.copy_from_slice(&by_panel[(panel * rows + row) * PANEL..][..out.len()]);
        }
    });
    out
}

vectorised! {
    /// Multiplies rows with one panel.
    fn multiply_panel(x: &[f32], inputs: usize, panel: &[f32], out: &mut [f32]) = multiply_tiles
}

#[inline(always)]
fn multiply_tiles(x: &[f32], inputs: usize, panel: &[f32], out: &mut [f32]) {
    let tile_rows = if has_avx512() { TILE_ROWS } else { SMALL_TILE_ROWS };
    for (x, out) in x.chunks(tile_rows * inputs).zip(out.chunks_mut(tile_rows * PANEL)) {
        match x.len() / inputs {
            1 => multiply_tile::<1>(x, inputs, panel, out),
            2 => multiply_tile::<2>(x, inputs, panel, out),
            3 => multiply_tile::<3>(x, inputs, panel, out),
            4 => multiply_tile::<4>(x, inputs, panel, out),
            5 => multiply_tile::<5>(x, inputs, panel, out),
            6 => multiply_tile::<6>(x, inputs, panel, out),
            7 => multiply_tile::<7>(x, inputs, panel, out),
            _ => multiply_tile::<TILE_ROWS>(x, inputs, panel, out),
        }
    }
}

#[inline(always)]
fn multiply_tile<const ROWS: usize>(x: &[f32], inputs: usize, panel: &[f32], out: &mut [f32]) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * inputs..][..inputs]);
    let (vectors, _) = panel.as_chunks::<LANES>();
    let (steps, _) = vectors.as_chunks::<2>();
    let mut sums: [[Lanes; 2]; ROWS] = [[[0.0; LANES]; 2]; ROWS];
    for (input, weights) in steps[..inputs].iter().enumerate() {
        for row in 0..ROWS {
            let value = rows[row][input];
            for half in 0..2 {
                sums[row][half] = fma(value, &weights[half], sums[row][half]);
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
            [(1, 5, 1), (2, 32, 31), (3, 64, 32), (7, 33, 65), (8, 96, 100), (29, 40, 96), (300, 16, 40)]
        {
            let (x, weights) = (values(rows * inputs, 0.5), values(outputs * inputs, 7.0));
            let found = linear(&x, &packed(&weights, inputs), inputs, outputs);
            assert_eq!(found, reference(&x, &weights, inputs), "{rows} × {inputs} × {outputs}");
        }
    }

    #[test]
    fn small_tiles_give_the_same_bits() {
        let (inputs, x, weights) = (48, values(3 * 48, 0.1), values(32 * 48, 3.0));
        let panel = packed(&weights, inputs);
        let mut out = vec![0.0; 3 * PANEL];
        multiply_tile::<3>(&x, inputs, &panel, &mut out);
        assert_eq!(out, reference(&x, &weights, inputs));
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
