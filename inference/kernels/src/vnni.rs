//! AVX-512 VNNI, 64 products of bytes in one instruction: whether the processor has it, and its registers.

use std::{
    arch::x86_64::{
        __m512, __m512i, _mm256_loadu_si256, _mm512_cvtph_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_storeu_ps,
    },
    ops::Range,
    slice::Chunks,
};

use crate::{
    packed::Panel,
    panels::{PANEL, PanelOut},
    rows::QUAD,
    simd::{LANES, LINE},
};

/// Bytes of weights per register, and of scales per half of one.
const BYTES: usize = 64;

/// Whether the processor has the instructions.
pub(crate) fn is_there() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Tiles of at most so many rows, each with the panel that it is multiplied with and the part of the next one that it fetches. As even as
/// possible: small tiles wait for their own sums.
pub(crate) fn tiles(
    rows: Range<usize>,
    most: usize,
    panel: Panel<'_>,
) -> impl Iterator<Item = (Range<usize>, Panel<'_>)> {
    let count = rows.len().div_ceil(most);
    let first = move |tile: usize| rows.start + rows.len() * tile / count;
    let line = move |tile: usize| panel.next.len() / LINE * tile / count * LINE;
    (0..count).map(move |tile| {
        (first(tile)..first(tile + 1), Panel { next: &panel.next[line(tile)..line(tile + 1)], ..panel })
    })
}

/// Whole lines of `next`, to be fetched in so many steps.
pub(crate) fn in_steps(next: &[u8], steps: usize) -> Chunks<'_, u8> {
    next.chunks(next.len().div_ceil(steps).next_multiple_of(LINE).max(LINE))
}

/// The weights of one step for the outputs of a panel.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn weights(bytes: &[u8; PANEL * QUAD]) -> [__m512i; 2] {
    // SAFETY: there are 64 bytes to read, at any address; and as many behind them.
    unsafe { [_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(bytes[BYTES..].as_ptr().cast())] }
}

/// The scales of the outputs of a panel.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn scales(bytes: &[u8; BYTES]) -> [__m512; 2] {
    // SAFETY: there are 32 bytes to read, at any address; and as many behind them.
    let halves =
        unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes[BYTES / 2..].as_ptr().cast())] };
    [_mm512_cvtph_ps(halves[0]), _mm512_cvtph_ps(halves[1])]
}

/// Four activations, for every output.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn quad([a, b, c, d]: [i8; QUAD]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]))
}

/// Puts the sums of one row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn put(out: &mut PanelOut<'_>, row: usize, sums: [__m512; 2]) {
    let mut values = [0.0; PANEL];
    // SAFETY: there is room for 16 floats, at any address; and for as many behind them.
    unsafe {
        _mm512_storeu_ps(values.as_mut_ptr(), sums[0]);
        _mm512_storeu_ps(values[LANES..].as_mut_ptr(), sums[1]);
    }
    out.put(row, &values);
}
