//! What happens to single rows between the matrix products.

use crate::simd::{LANES, Lanes, exp, sum, vectorised};

vectorised! {
    /// Root-mean-square norm of a row (Zhang and Sennrich 2019), times `weight`.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = norm
}

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

vectorised! {
    /// `silu(gate) · up` of a row (SwiGLU, Shazeer 2020).
    pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_each
}

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
        for x in x.chunks_exact(37) {
            let mut out = [0.0; 37];
            rms_norm(x, &weight, 1e-5, &mut out);
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
        let mut out = [0.0; 20];
        swiglu(&row[..20], &row[20..], &mut out);
        for (out, (gate, up)) in out.iter().zip(row[..20].iter().zip(&row[20..])) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let exact = gate / (1.0 + (-gate).exp()) * up;
            assert!((f64::from(*out) - exact).abs() <= 1e-6 * exact.abs().max(1e-3), "{gate} {up}");
        }
    }
}
