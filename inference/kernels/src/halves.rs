//! Scales of weights in 16 bits, as they lie between the weights.

use half::{f16, slice::HalfFloatSliceExt as _};

use crate::panels::PANEL;

/// Bytes of one scale for each output of a panel.
pub(crate) const SCALE_BYTES: usize = PANEL * size_of::<f16>();

/// The first scales of `bytes`, one for each output of a panel.
#[inline(always)]
pub(crate) fn scales(bytes: &[u8]) -> [f32; PANEL] {
    let mut halves = [f16::ZERO; PANEL];
    for (half, pair) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *half = f16::from_le_bytes(*pair);
    }
    let mut floats = [0.0; PANEL];
    halves.convert_to_f32_slice(&mut floats);
    floats
}

/// The scale of one output.
pub(crate) fn scale(bytes: &[u8], lane: usize) -> f32 {
    let at = lane * size_of::<f16>();
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Sets the scale of one output.
pub(crate) fn set(bytes: &mut [u8], lane: usize, scale: f16) {
    bytes[lane * size_of::<f16>()..][..size_of::<f16>()].copy_from_slice(&scale.to_le_bytes());
}
