//! Multiplying rows with one panel: with the processor's dot product of bytes where it has one, else in plain code that gives the
//! same bits.

use std::ops::Range;

use super::{BLOCK, BLOCK_BYTES, WEIGHT_BYTES};
use crate::{
    halves,
    packed::Panel,
    panels::{PANEL, PanelOut},
    rows::{QUAD, Row, Rows},
    simd::vectorised,
};

/// Multiplies some rows with one panel.
pub(super) fn multiply_panel(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if crate::vnni::is_there() {
        // SAFETY: the processor has the features.
        return unsafe { vnni::multiply_panel(x, rows, panel, out) };
    }
    multiply_panel_portably(x, rows, panel, out);
}

vectorised! {
    fn multiply_panel_portably(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) = multiply_rows
}

#[inline(always)]
fn multiply_rows(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) {
    for row in rows {
        out.put(row, &multiply_row(x.row(row), panel));
    }
}

/// What every other way of computing it must equal.
#[inline(always)]
pub(super) fn multiply_row(row: Row<'_>, panel: Panel<'_>) -> [f32; PANEL] {
    let mut sums = [0.0; PANEL];
    for (number, block) in panel.weights.chunks_exact(BLOCK_BYTES).enumerate() {
        let (weights, scales) = block.split_at(WEIGHT_BYTES);
        let dots = dot_block(&row.values[number * BLOCK..], weights, row.corrections[number]);
        let scales = halves::scales(scales);
        for lane in 0..PANEL {
            sums[lane] = (dots[lane] as f32).mul_add(row.scales[number] * scales[lane], sums[lane]);
        }
    }
    sums
}

#[inline(always)]
fn dot_block(values: &[i8], weights: &[u8], correction: i32) -> [i32; PANEL] {
    let mut dots = [correction; PANEL];
    let (quads, _) = values[..BLOCK].as_chunks::<QUAD>();
    for (values, weights) in quads.iter().zip(weights.chunks_exact(PANEL * QUAD)) {
        let (weights, _) = weights.as_chunks::<QUAD>();
        for (dot, weights) in dots.iter_mut().zip(weights) {
            for (value, weight) in values.iter().zip(weights) {
                *dot += i32::from(*value) * i32::from(*weight);
            }
        }
    }
    dots
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::{
        arch::x86_64::{
            __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_set1_epi32,
            _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
        },
        ops::Range,
        slice::Chunks,
    };

    use super::{BLOCK, BLOCK_BYTES, PANEL, Panel, QUAD, Row, Rows, WEIGHT_BYTES};
    use crate::{
        panels::PanelOut,
        simd::fetch,
        vnni::{in_steps, put, quad, scales, tiles, weights},
    };

    /// Rows whose sums of one block are in registers at once.
    const TILE_ROWS: usize = 6;
    /// Steps of a block.
    const STEPS: usize = BLOCK / QUAD;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply_panel(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) {
        for (rows, panel) in tiles(rows, TILE_ROWS, panel) {
            let first = rows.start;
            match rows.len() {
                1 => multiply_tile::<1>(x, first, panel, out),
                2 => multiply_tile::<2>(x, first, panel, out),
                3 => multiply_tile::<3>(x, first, panel, out),
                4 => multiply_tile::<4>(x, first, panel, out),
                5 => multiply_tile::<5>(x, first, panel, out),
                _ => multiply_tile::<TILE_ROWS>(x, first, panel, out),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply_tile<const ROWS: usize>(x: &Rows, first: usize, panel: Panel<'_>, out: &mut PanelOut<'_>) {
        // No closure here: it would be compiled without the features, and not inlined.
        let mut rows = [x.row(first); ROWS];
        for (row, at) in rows.iter_mut().zip(first..) {
            *row = x.row(at);
        }
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let blocks = panel.weights.as_chunks::<BLOCK_BYTES>().0;
        let mut fetched = in_steps(panel.next, blocks.len() * STEPS);
        for (number, block) in blocks.iter().enumerate() {
            let (weights, w_scales) = block.split_first_chunk::<WEIGHT_BYTES>().expect("a block has weights");
            let dots = dot_block(&rows, number, weights, &mut fetched);
            let w_scales = scales(w_scales.first_chunk().expect("a block has scales"));
            for row in 0..ROWS {
                let x_scale = _mm512_set1_ps(rows[row].scales[number]);
                for half in 0..2 {
                    let dots = _mm512_cvtepi32_ps(dots[row][half]);
                    sums[row][half] = _mm512_fmadd_ps(dots, _mm512_mul_ps(x_scale, w_scales[half]), sums[row][half]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            put(out, first + row, sums);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot_block<const ROWS: usize>(
        rows: &[Row<'_>; ROWS],
        number: usize,
        bytes: &[u8; WEIGHT_BYTES],
        fetched: &mut Chunks<'_, u8>,
    ) -> [[__m512i; 2]; ROWS] {
        let mut values: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
        let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
        for row in 0..ROWS {
            values[row] = rows[row].values[number * BLOCK..][..BLOCK].as_chunks::<QUAD>().0;
            dots[row] = [_mm512_set1_epi32(rows[row].corrections[number]); 2];
        }
        for (step, bytes) in bytes.as_chunks::<{ PANEL * QUAD }>().0.iter().enumerate() {
            fetch(fetched.next().unwrap_or_default());
            let weights = weights(bytes);
            for row in 0..ROWS {
                let quad = quad(values[row][step]);
                for half in 0..2 {
                    dots[row][half] = _mm512_dpbusd_epi32(dots[row][half], weights[half], quad);
                }
            }
        }
        dots
    }
}
