//! Multiplying rows with one panel: with the processor's dot product of bytes where it has one, else in plain code that gives the
//! same bits.

use std::ops::Range;

use super::{BLOCK, BLOCK_BYTES, LARGEST, QUANT_BYTES};
use crate::{
    halves::{self, SCALE_BYTES},
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
        let (quants, scales) = block.split_at(QUANT_BYTES);
        let dots = dot_block(&row.values[number * BLOCK..], quants);
        let (steps, minima) = (halves::scales(scales), halves::scales(&scales[SCALE_BYTES..]));
        for lane in 0..PANEL {
            let least = minima[lane].mul_add(row.sums[number], sums[lane]);
            sums[lane] = (dots[lane] as f32).mul_add(row.scales[number] * steps[lane], least);
        }
    }
    sums
}

#[inline(always)]
fn dot_block(values: &[i8], quants: &[u8]) -> [i32; PANEL] {
    let mut dots = [0; PANEL];
    let (pairs, _) = values[..BLOCK].as_chunks::<{ 2 * QUAD }>();
    for (values, quants) in pairs.iter().zip(quants.chunks_exact(PANEL * QUAD)) {
        let (quants, _) = quants.as_chunks::<QUAD>();
        for (dot, quants) in dots.iter_mut().zip(quants) {
            for at in 0..QUAD {
                *dot += i32::from(values[at]) * i32::from(quants[at] & LARGEST);
                *dot += i32::from(values[QUAD + at]) * i32::from(quants[at] >> 4);
            }
        }
    }
    dots
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::{
        arch::x86_64::{
            __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps,
            _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi32,
        },
        ops::Range,
        slice::Chunks,
    };

    use super::{BLOCK, BLOCK_BYTES, LARGEST, PANEL, Panel, QUAD, QUANT_BYTES, Row, Rows, SCALE_BYTES};
    use crate::{
        panels::PanelOut,
        simd::fetch,
        vnni::{in_steps, put, quad, scales, tiles, weights},
    };

    /// Rows whose sums, of one block and of all, are in registers at once.
    const TILE_ROWS: usize = 6;
    /// Runs of bytes of a block that hold two steps each.
    const PAIRS: usize = BLOCK / (2 * QUAD);

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
        let mut fetched = in_steps(panel.next, blocks.len() * PAIRS);
        for (number, block) in blocks.iter().enumerate() {
            let (quants, w_scales) = block.split_first_chunk::<QUANT_BYTES>().expect("a block has quants");
            let dots = dot_block(&rows, number, quants, &mut fetched);
            let (steps, minima) = w_scales.split_first_chunk::<SCALE_BYTES>().expect("a block has steps");
            let (steps, minima) = (scales(steps), scales(minima.first_chunk().expect("a block has minima")));
            for row in 0..ROWS {
                let scale = _mm512_set1_ps(rows[row].scales[number]);
                let sum = _mm512_set1_ps(rows[row].sums[number]);
                for half in 0..2 {
                    let least = _mm512_fmadd_ps(minima[half], sum, sums[row][half]);
                    let dots = _mm512_cvtepi32_ps(dots[row][half]);
                    sums[row][half] = _mm512_fmadd_ps(dots, _mm512_mul_ps(scale, steps[half]), least);
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
        bytes: &[u8; QUANT_BYTES],
        fetched: &mut Chunks<'_, u8>,
    ) -> [[__m512i; 2]; ROWS] {
        let mut values: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
        for row in 0..ROWS {
            values[row] = rows[row].values[number * BLOCK..][..BLOCK].as_chunks::<QUAD>().0;
        }
        let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
        let low = _mm512_set1_epi8(LARGEST as i8);
        for (pair, bytes) in bytes.as_chunks::<{ PANEL * QUAD }>().0.iter().enumerate() {
            fetch(fetched.next().unwrap_or_default());
            let both = weights(bytes);
            let high = [_mm512_srli_epi32::<4>(both[0]), _mm512_srli_epi32::<4>(both[1])];
            for (step, quants) in [both, high].into_iter().enumerate() {
                let quants = [_mm512_and_si512(quants[0], low), _mm512_and_si512(quants[1], low)];
                for row in 0..ROWS {
                    let quad = quad(values[row][2 * pair + step]);
                    for half in 0..2 {
                        dots[row][half] = _mm512_dpbusd_epi32(dots[row][half], quants[half], quad);
                    }
                }
            }
        }
        dots
    }
}
