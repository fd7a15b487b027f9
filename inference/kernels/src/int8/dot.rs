//! Multiplying rows with one panel: with the processor's dot product of bytes where it has one, else in plain code that gives the
//! same bits.

use std::ops::Range;

use super::{
    GROUP, GROUP_BYTES, QUAD,
    quantise::{Row, Rows},
};
use crate::{
    panels::{PANEL, PanelOut},
    simd::vectorised,
};

/// Weights of a panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel<'a> {
    /// `[group][GROUP / 4][PANEL][4]`.
    pub(super) weights: &'a [u8],
    /// `[group][PANEL]`.
    pub(super) scales: &'a [f32],
    /// The weights that come next; they are fetched from memory while these are multiplied.
    pub(super) next: &'a [u8],
}

/// Multiplies some rows with one panel.
pub(super) fn multiply_panel(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
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
    let Row { values, scales, corrections } = row;
    let mut sums = [0.0; PANEL];
    for group in 0..scales.len() {
        let (values, weights) = (&values[group * GROUP..], &panel.weights[group * GROUP_BYTES..][..GROUP_BYTES]);
        let dots = dot_group(values, weights, corrections[group]);
        for lane in 0..PANEL {
            let scale = scales[group] * panel.scales[group * PANEL + lane];
            sums[lane] = (dots[lane] as f32).mul_add(scale, sums[lane]);
        }
    }
    sums
}

#[inline(always)]
fn dot_group(values: &[i8], weights: &[u8], correction: i32) -> [i32; PANEL] {
    let mut dots = [correction; PANEL];
    let (quads, _) = values[..GROUP].as_chunks::<QUAD>();
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
fn has_vnni() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    //! AVX-512 VNNI: 64 products of bytes in one instruction.

    use std::{
        arch::x86_64::{
            __m512, __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
            _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
            _mm512_setzero_si512, _mm512_storeu_ps,
        },
        ops::Range,
        slice::Chunks,
    };

    use super::{GROUP, GROUP_BYTES, PANEL, Panel, QUAD, Row, Rows};
    use crate::{
        panels::PanelOut,
        simd::{LINE, fetch},
    };

    /// Values per register.
    const LANES: usize = 16;
    /// Rows whose sums of one group are in registers at once.
    const TILE_ROWS: usize = 8;
    /// Steps of a group.
    const STEPS: usize = GROUP / QUAD;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply_panel(x: &Rows, rows: Range<usize>, panel: Panel<'_>, out: &mut PanelOut<'_>) {
        let tiles = rows.len().div_ceil(TILE_ROWS);
        let mut first = rows.start;
        for tile in 0..tiles {
            // As even as possible: small tiles wait for their own sums.
            let end = rows.start + rows.len() * (tile + 1) / tiles;
            let next = share(panel.next, tile, tiles);
            let panel = Panel { next, ..panel };
            match end - first {
                1 => multiply_tile::<1>(x, first, panel, out),
                2 => multiply_tile::<2>(x, first, panel, out),
                3 => multiply_tile::<3>(x, first, panel, out),
                4 => multiply_tile::<4>(x, first, panel, out),
                5 => multiply_tile::<5>(x, first, panel, out),
                6 => multiply_tile::<6>(x, first, panel, out),
                7 => multiply_tile::<7>(x, first, panel, out),
                _ => multiply_tile::<TILE_ROWS>(x, first, panel, out),
            }
            first = end;
        }
    }

    /// The part of the next panel that one of so many tiles fetches.
    fn share(next: &[u8], tile: usize, tiles: usize) -> &[u8] {
        let line = |tile: usize| next.len() / LINE * tile / tiles * LINE;
        &next[line(tile)..line(tile + 1)]
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
        let (all, scales) = (panel.weights.as_chunks::<GROUP_BYTES>().0, panel.scales.as_chunks::<PANEL>().0);
        let mut fetched =
            panel.next.chunks(panel.next.len().div_ceil(all.len() * STEPS).next_multiple_of(LINE).max(LINE));
        for (group, (weights, scales)) in all.iter().zip(scales).enumerate() {
            let dots = dot_group(&rows, group, weights, &mut fetched);
            let scales = [load_floats(&scales[..LANES]), load_floats(&scales[LANES..])];
            for row in 0..ROWS {
                let x_scale = _mm512_set1_ps(rows[row].scales[group]);
                for half in 0..2 {
                    let dots = _mm512_cvtepi32_ps(dots[row][half]);
                    sums[row][half] = _mm512_fmadd_ps(dots, _mm512_mul_ps(x_scale, scales[half]), sums[row][half]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let mut values = [0.0; PANEL];
            store(&mut values[..LANES], sums[0]);
            store(&mut values[LANES..], sums[1]);
            out.put(first + row, &values);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot_group<const ROWS: usize>(
        rows: &[Row<'_>; ROWS],
        group: usize,
        weights: &[u8; GROUP_BYTES],
        fetched: &mut Chunks<'_, u8>,
    ) -> [[__m512i; 2]; ROWS] {
        let mut values: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
        let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
        for row in 0..ROWS {
            values[row] = rows[row].values[group * GROUP..][..GROUP].as_chunks::<QUAD>().0;
            dots[row] = [_mm512_set1_epi32(rows[row].corrections[group]); 2];
        }
        for (step, weights) in weights.as_chunks::<{ PANEL * QUAD }>().0.iter().enumerate() {
            fetch(fetched.next().unwrap_or_default());
            let weights = [load_bytes(&weights[..4 * LANES]), load_bytes(&weights[4 * LANES..])];
            for row in 0..ROWS {
                let [a, b, c, d] = values[row][step];
                let quad = _mm512_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]));
                for half in 0..2 {
                    dots[row][half] = _mm512_dpbusd_epi32(dots[row][half], weights[half], quad);
                }
            }
        }
        dots
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_bytes(bytes: &[u8]) -> __m512i {
        assert_eq!(bytes.len(), 4 * LANES);
        // SAFETY: there are 64 bytes to read, at any address.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_floats(floats: &[f32]) -> __m512 {
        assert_eq!(floats.len(), LANES);
        // SAFETY: there are 16 floats to read, at any address.
        unsafe { _mm512_loadu_ps(floats.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(out: &mut [f32], values: __m512) {
        assert_eq!(out.len(), LANES);
        // SAFETY: there is room for 16 floats, at any address.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
    }
}
