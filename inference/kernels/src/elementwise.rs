//! What happens to single rows between the matrix products.

use crate::simd::{LANES, Lanes, erf, exp, sum, vectorised};

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

vectorised! {
    /// Layer norm of a row, in place (Ba et al. 2016): to mean 0 and variance 1, times `weight`, plus `bias`.
    pub fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) = centre_and_scale
}

#[inline(always)]
fn centre_and_scale(row: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let width = row.len() as f32;
    let mean = sum_of_values(row) / width;
    for value in row.iter_mut() {
        *value -= mean;
    }
    let scale = 1.0 / (sum_of_squares(row) / width + epsilon).sqrt();
    for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *value = (*value * scale).mul_add(*weight, *bias);
    }
}

#[inline(always)]
fn sum_of_values(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut sums: Lanes = [0.0; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            sums[lane] += vector[lane];
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        sums[lane] += value;
    }
    sum(sums)
}

vectorised! {
    /// The Gaussian error linear unit of every value, in place: x · Φ(x) (Hendrycks and Gimpel 2016).
    pub fn gelu(x: &mut [f32]) = gelu_each
}

#[inline(always)]
fn gelu_each(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_centres_and_scales() {
        for width in [1, 15, 16, 37, 384] {
            let x: Vec<f32> = (0..width).map(|at| (at as f32 * 0.7).cos() * 3.0 + 20.0).collect();
            let weight: Vec<f32> = (0..width).map(|at| 1.0 + at as f32 * 0.01).collect();
            let bias: Vec<f32> = (0..width).map(|at| at as f32 * 0.1 - 1.0).collect();
            let mut out = x.clone();
            layer_norm(&mut out, &weight, &bias, 1e-5);
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            for (at, (out, x)) in out.iter().zip(&x).enumerate() {
                let normed = (f64::from(*x) - mean) / (variance + 1e-5).sqrt();
                let exact = normed * f64::from(weight[at]) + f64::from(bias[at]);
                assert!((f64::from(*out) - exact).abs() < 2e-5, "{out} for {exact} of {width}");
            }
        }
    }

    #[test]
    fn gelu_is_exact_enough() {
        // x · Φ(x), by the series of the normal distribution function.
        let exact = |x: f64| {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while term.abs() > 1e-18 * sum.abs() && n < 400.0 {
                n += 2.0;
                term *= x * x / n;
                sum += term;
            }
            x * (0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt())
        };
        let mut values: Vec<f32> = (-600..=600).map(|at| at as f32 * 0.01).collect();
        let inputs = values.clone();
        gelu(&mut values);
        for (x, found) in inputs.iter().zip(&values) {
            let error = (f64::from(*found) - exact(f64::from(*x))).abs();
            assert!(error < 6e-7, "gelu({x}) is off by {error}");
        }
        let mut far = [-1e30, -20.0, 20.0, 1e30];
        gelu(&mut far);
        assert_eq!(far, [0.0, 0.0, 20.0, 1e30]);
    }

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
