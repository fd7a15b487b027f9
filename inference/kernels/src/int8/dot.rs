//! Multiplying rows with one panel: with the processor's dot product of bytes where it has one, else in plain code that gives the
//! same bits.

use super::{
    GROUP, GROUP_BYTES, QUAD,
    quantise::{Row, Rows},
};
use crate::{panels::PANEL, simd::vectorised};

/// Rows whose sums are in registers at once: with more than six, two registers of whole sums and two of floats each do not fit.
const TILE_ROWS: usize = 6;

/// Multiplies rows from `first` on with one panel, as many as `out` has: `[row][PANEL]`.
pub(super) fn multiply_panel(x: &Rows, first: usize, weights: &[u8], scales: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
        // SAFETY: the processor has the features.
        return unsafe { vnni::multiply_panel(x, first, weights, scales, out) };
    }
    multiply_panel_portably(x, first, weights, scales, out);
}

vectorised! {
    fn multiply_panel_portably(x: &Rows, first: usize, weights: &[u8], scales: &[f32], out: &mut [f32]) = multiply_rows
}

/// What every other way of computing it must equal.
#[inline(always)]
fn multiply_rows(x: &Rows, first: usize, weights: &[u8], scales: &[f32], out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(PANEL).zip(first..) {
        let Row { values, scales: x_scales, corrections } = x.row(row);
        let mut sums = [0.0; PANEL];
        for group in 0..x_scales.len() {
            let (values, weights) = (&values[group * GROUP..], &weights[group * GROUP_BYTES..][..GROUP_BYTES]);
            let dots = dot_group(values, weights, corrections[group]);
            for lane in 0..PANEL {
                let scale = x_scales[group] * scales[group * PANEL + lane];
                sums[lane] = (dots[lane] as f32).mul_add(scale, sums[lane]);
            }
        }
        out.copy_from_slice(&sums);
    }
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

    use std::arch::x86_64::{
        __m512, __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
    };

    use super::{GROUP, GROUP_BYTES, PANEL, QUAD, Row, Rows, TILE_ROWS};

    /// Values per register.
    const LANES: usize = 16;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply_panel(x: &Rows, first: usize, weights: &[u8], scales: &[f32], out: &mut [f32]) {
        for (out, first) in out.chunks_mut(TILE_ROWS * PANEL).zip((first..).step_by(TILE_ROWS)) {
            match out.len() / PANEL {
                1 => multiply_tile::<1>(x, first, weights, scales, out),
                2 => multiply_tile::<2>(x, first, weights, scales, out),
                3 => multiply_tile::<3>(x, first, weights, scales, out),
                4 => multiply_tile::<4>(x, first, weights, scales, out),
                5 => multiply_tile::<5>(x, first, weights, scales, out),
                _ => multiply_tile::<TILE_ROWS>(x, first, weights, scales, out),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply_tile<const ROWS: usize>(x: &Rows, first: usize, weights: &[u8], scales: &[f32], out: &mut [f32]) {
        // No closure here: it would be compiled without the features, and not inlined.
        let mut rows = [x.row(first); ROWS];
        for (row, at) in rows.iter_mut().zip(first..) {
            *row = x.row(at);
        }
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let groups = weights.as_chunks::<GROUP_BYTES>().0.iter().zip(scales.as_chunks::<PANEL>().0);
        for (group, (weights, scales)) in groups.enumerate() {
            let dots = dot_group(&rows, group, weights);
            let scales = [load_floats(&scales[..LANES]), load_floats(&scales[LANES..])];
            for row in 0..ROWS {
                let x_scale = _mm512_set1_ps(rows[row].scales[group]);
                for half in 0..2 {
                    let dots = _mm512_cvtepi32_ps(dots[row][half]);
                    sums[row][half] = _mm512_fmadd_ps(dots, _mm512_mul_ps(x_scale, scales[half]), sums[row][half]);
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(PANEL).zip(sums) {
            store(&mut out[..LANES], sums[0]);
            store(&mut out[LANES..], sums[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot_group<const ROWS: usize>(
        rows: &[Row<'_>; ROWS],
        group: usize,
        weights: &[u8; GROUP_BYTES],
    ) -> [[__m512i; 2]; ROWS] {
        let mut values: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
        let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
        for row in 0..ROWS {
            values[row] = rows[row].values[group * GROUP..][..GROUP].as_chunks::<QUAD>().0;
            dots[row] = [_mm512_set1_epi32(rows[row].corrections[group]); 2];
        }
        for (step, weights) in weights.as_chunks::<{ PANEL * QUAD }>().0.iter().enumerate() {
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

#[cfg(test)]
pub(super) fn multiply_panel_plainly(x: &Rows, weights: &[u8], scales: &[f32], out: &mut [f32]) {
    multiply_rows(x, 0, weights, scales, out);
}
