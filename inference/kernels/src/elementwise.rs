//! What happens to single rows between the matrix products.

use rayon::prelude::*;

use crate::simd::{LANES, Lanes, exp, sum, vectorised};

/// Rows per task; fewer are not worth a second thread.
const ROWS_PER_TASK: usize = 16;

/// Root-mean-square norm of each row of `width` values (Zhang and Sennrich 2019), times `weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0.0; x.len()];
    let rows = out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).with_min_len(ROWS_PER_TASK);
    rows.for_each(|(out, x)| norm_row(x, weight, epsilon, out));
    out
}

vectorised! { fn norm_row(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = norm }

#[inline(always)]
fn norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean = sum_of_squares(x) / x.len() as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut sums: Lanes = [0.0; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            sums[lane] = vector[lane].mul_add(vector[lane], sums[lane]);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        sums[lane] = value.mul_add(*value, sums[lane]);
    }
    sum(sums)
}

/// `silu(gate) · up` for rows of `gate` and `up` side by side (SwiGLU, Shazeer 2020).
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; gate_up.len() / 2];
    let rows = out.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width)).with_min_len(ROWS_PER_TASK);
    rows.for_each(|(out, row)| {
        let (gate, up) = row.split_at(width);
        swiglu_row(gate, up, out);
    });
    out
}

vectorised! { fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_each }

#[inline(always)]
fn swiglu_each(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_to_unit_mean_square() {
        let x: Vec<f32> = (0..2 * 37).map(|at| (at as f32).cos() * 3.0).collect();
        let weight: Vec<f32> = (0..37).map(|at| 1.0 + at as f32 * 0.01).collect();
        let out = rms_norm(&x, &weight, 1e-5);
        for (out, x) in out.chunks_exact(37).zip(x.chunks_exact(37)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 37.0;
            for ((out, x), weight) in out.iter().zip(x).zip(&weight) {
                let exact = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                assert!((f64::from(*out) - exact).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn swiglu_is_exact_enough() {
        let row: Vec<f32> = (0..40).map(|at| (at as f32 - 20.0) * 1.7).collect();
        for (out, (gate, up)) in swiglu(&row, 20).iter().zip(row[..20].iter().zip(&row[20..])) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let exact = gate / (1.0 + (-gate).exp()) * up;
            assert!((f64::from(*out) - exact).abs() <= 1e-6 * exact.abs().max(1e-3), "{gate} {up}");
        }
    }
}
