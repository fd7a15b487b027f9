//! Turns stored blocks into f32 values. The layouts are ggml's (`ggml-common.h`, `ggml-quants.c`); each value is computed
//! with the same roundings as ggml's reference, so that every implementation works on the same weights.

use half::{bf16, f16};
use parlance_inference_kernels::{BLOCK, int4::Block};

use super::{GgmlType, TensorInfo};

/// Writes the values of blocks `first_block..` of `tensor` to `values`, as many as it holds.
///
/// # Panics
///
/// If `values` is not a whole number of blocks within the tensor.
pub(crate) fn dequantise(tensor: &TensorInfo<'_>, first_block: usize, values: &mut [f32]) {
    let (block_values, block_bytes) = (tensor.kind.block_values(), tensor.kind.block_bytes());
    assert_eq!(values.len() % block_values, 0, "whole blocks");
    let begin = first_block * block_bytes;
    let bytes = &tensor.data[begin..begin + values.len() / block_values * block_bytes];
    let decode = match tensor.kind {
        GgmlType::F32 => return each(bytes, values, |bytes: [u8; 4]| f32::from_le_bytes(bytes)),
        GgmlType::F16 => return each(bytes, values, |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32()),
        GgmlType::Bf16 => return each(bytes, values, |bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q2K => q2_k,
        GgmlType::Q3K => q3_k,
        GgmlType::Q4K => q4_k,
        GgmlType::Q5K => q5_k,
        GgmlType::Q6K => q6_k,
    };
    for (block, values) in bytes.chunks_exact(block_bytes).zip(values.chunks_exact_mut(block_values)) {
        decode(block, values);
    }
}

/// Values `32 · number ..` of a tensor that [has 4 bits](GgmlType::has_four_bits), as they stand in the file. The step and minimum of a
/// `Q4_K` are products there; here they are rounded to 16 bits.
///
/// # Panics
///
/// If the tensor is of another kind, or has no such values.
pub(crate) fn four_bits(tensor: &TensorInfo<'_>, number: usize) -> Block {
    let of_tensor = tensor.kind.block_values() / BLOCK;
    let bytes = &tensor.data[number / of_tensor * tensor.kind.block_bytes()..][..tensor.kind.block_bytes()];
    match tensor.kind {
        GgmlType::Q4_0 => {
            let step = f16::from_le_bytes([bytes[0], bytes[1]]);
            Block { step, minimum: f16::from_f32(-8.0 * step.to_f32()), quants: halves_of_bytes(&bytes[2..]) }
        }
        GgmlType::Q4_1 => {
            let [step, minimum] = [0, 2].map(|at| f16::from_le_bytes([bytes[at], bytes[at + 1]]));
            Block { step, minimum, quants: halves_of_bytes(&bytes[4..]) }
        }
        GgmlType::Q4K => {
            let group = number % of_tensor;
            let (step, minimum) = q4_k_step(bytes, group);
            let quants = std::array::from_fn(|at| q4_k_quant(&bytes[16..], group, at));
            Block { step: f16::from_f32(step), minimum: f16::from_f32(-minimum), quants }
        }
        kind => panic!("a tensor of 4 bits, not {kind:?}"),
    }
}

/// 32 values of 4 bits; low nibbles hold the first half.
fn halves_of_bytes(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|at| if at < BLOCK / 2 { bytes[at] & 15 } else { bytes[at - BLOCK / 2] >> 4 })
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (chunk, value) in chunks.iter().zip(values) {
        *value = decode(*chunk);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 values: a scale, then one signed byte each.
fn q8_0(block: &[u8], values: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, &quant) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(quant as i8) * scale;
    }
}

/// 32 values: a scale, then four bits each around 8; low nibbles hold the first half.
fn q4_0(block: &[u8], values: &mut [f32]) {
    let scale = half_at(block, 0);
    let (low, high) = values.split_at_mut(16);
    for ((low, high), &pair) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = (f32::from(pair & 15) - 8.0) * scale;
        *high = (f32::from(pair >> 4) - 8.0) * scale;
    }
}

/// 32 values: a scale and a minimum, then four bits each; low nibbles hold the first half.
fn q4_1(block: &[u8], values: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = values.split_at_mut(16);
    for ((low, high), &pair) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = f32::from(pair & 15) * scale + minimum;
        *high = f32::from(pair >> 4) * scale + minimum;
    }
}

/// 32 values: a scale, the fifth bits as one number, then four bits each, together around 16.
fn q5_0(block: &[u8], values: &mut [f32]) {
    let scale = half_at(block, 0);
    for (at, value) in values.iter_mut().enumerate() {
        *value = (f32::from(five_bits(&block[2..], at)) - 16.0) * scale;
    }
}

/// 32 values: a scale and a minimum, the fifth bits as one number, then four bits each.
fn q5_1(block: &[u8], values: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (at, value) in values.iter_mut().enumerate() {
        *value = f32::from(five_bits(&block[4..], at)) * scale + minimum;
    }
}

/// The value at `at` of 32, out of four bytes of fifth bits and sixteen of pairs whose low nibbles hold the first half.
fn five_bits(bits: &[u8], at: usize) -> u8 {
    let pair = bits[4 + at % 16];
    let low = if at < 16 { pair & 15 } else { pair >> 4 };
    low | (bits[at / 8] >> (at % 8) & 1) << 4
}

/// 256 values of two bits in sixteen groups, each with a scale and a minimum of four bits under two common factors.
fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (factor, minimum_factor) = (half_at(block, 80), half_at(block, 82));
    for (at, value) in values.iter_mut().enumerate() {
        let scale = scales[at / 16];
        let quant = two_bits(quants, at);
        *value = factor * f32::from(scale & 15) * f32::from(quant) - minimum_factor * f32::from(scale >> 4);
    }
}

/// 256 values of three bits around 4 in sixteen groups, each with a scale of six bits around 32 under a common factor.
fn q3_k(block: &[u8], values: &mut [f32]) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let factor = half_at(block, 108);
    for (at, value) in values.iter_mut().enumerate() {
        // Bit 0 of `high` belongs to the first 32 values, bit 1 to the next, and so on.
        let quant = two_bits(quants, at) | (high[at % 32] >> (at / 32) & 1) << 2;
        let scale = f32::from(q3_k_scale(scales, at / 16)) - 32.0;
        *value = factor * scale * (f32::from(quant) - 4.0);
    }
}

/// Two bits of each of 256 values: a row of 32 bytes holds 128 of them, the first 32 in its lowest bits.
fn two_bits(quants: &[u8], at: usize) -> u8 {
    quants[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

/// The six-bit scale of one group of sixteen: eight bytes hold four bits of two groups each, four bytes two bits of four each.
fn q3_k_scale(scales: &[u8], group: usize) -> u8 {
    let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
    low | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4
}

/// 256 values in eight groups of 32, each with a scale and a minimum of six bits under two common factors.
fn q4_k(block: &[u8], values: &mut [f32]) {
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (step, minimum) = q4_k_step(block, group);
        for (at, value) in values.iter_mut().enumerate() {
            *value = step * f32::from(q4_k_quant(&block[16..], group, at)) - minimum;
        }
    }
}

/// What one more of a quant adds in a group of a block, and what is taken off.
fn q4_k_step(block: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = q4_k_scale(&block[4..16], group);
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(minimum))
}

/// One of the 32 values of a group; two groups share 32 bytes.
fn q4_k_quant(quants: &[u8], group: usize, at: usize) -> u8 {
    let pair = quants[group / 2 * 32 + at];
    if group.is_multiple_of(2) { pair & 15 } else { pair >> 4 }
}

/// As [`q4_k`], with a fifth bit for each value: bit 0 of 32 bytes belongs to the first group, bit 1 to the second, and so on.
fn q5_k(block: &[u8], values: &mut [f32]) {
    let (factor, minimum_factor) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = q4_k_scale(scales, group);
        let (scale, minimum) = (factor * f32::from(scale), minimum_factor * f32::from(minimum));
        let pairs = &quants[group / 2 * 32..][..32];
        for ((value, &pair), &high) in values.iter_mut().zip(pairs).zip(high) {
            let low = if group % 2 == 0 { pair & 15 } else { pair >> 4 };
            *value = scale * f32::from(low | (high >> group & 1) << 4) - minimum;
        }
    }
}

/// The six-bit scale and minimum of one group: the last four groups keep their upper two bits with the first four.
fn q4_k_scale(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let low = scales[group + 4];
        ((low & 15) | (scales[group - 4] >> 6 << 4), (low >> 4) | (scales[group] >> 6 << 4))
    }
}

/// 256 values of six bits around 32 (four in `low`, two in `high`), in sixteen groups with a signed scale under a common factor.
fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let factor = half_at(block, 208);
    for (at, value) in values.iter_mut().enumerate() {
        // Each half of 128 values is four rows of 32: two rows share a nibble row, four share a row of bit pairs.
        let (half, row, column) = (at / 128, at % 128 / 32, at % 32);
        let nibbles = low[half * 64 + row % 2 * 32 + column];
        let nibble = if row < 2 { nibbles & 15 } else { nibbles >> 4 };
        let pair = high[half * 32 + column] >> (2 * row) & 3;
        let quant = f32::from(nibble | pair << 4) - 32.0;
        *value = factor * f32::from(scales[half * 8 + row * 2 + column / 16] as i8) * quant;
    }
}
