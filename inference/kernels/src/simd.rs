//! Sixteen floats side by side, written so that the compiler keeps them in vector registers.

/// Values per vector: one AVX-512 register, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;

/// A vector.
pub(crate) type Lanes = [f32; LANES];

/// `a · b + c` with one rounding, for one `a`.
#[inline(always)]
pub(crate) fn fma(a: f32, b: &Lanes, c: Lanes) -> Lanes {
    let mut sum = c;
    for lane in 0..LANES {
        sum[lane] = a.mul_add(b[lane], c[lane]);
    }
    sum
}

/// The sum of the lanes, as a fixed tree.
#[inline(always)]
pub(crate) fn sum(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// eˣ within two units in the last place, for x from −87 to 88; beyond, the value at the bound.
///
/// The usual reduction to 2ⁿ · eʳ with |r| ≤ ln 2 / 2 and a polynomial of degree 6 (the coefficients of Cephes' `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the lowest bits: a conversion, which has to look at every value by
    // itself, would cost more than all the rest.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let power = rounded - ROUND;
    let rest = power.mul_add(-LN_2_LOW, power.mul_add(-LN_2_HIGH, x));
    let mut polynomial = 1.987_569_2e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        polynomial = polynomial.mul_add(rest, coefficient);
    }
    let value = polynomial.mul_add(rest * rest, rest) + 1.0;
    value * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// The error function within 3 · 10⁻⁷ (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / size.mul_add(0.327_591_1, 1.0);
    let mut polynomial = 1.061_405_4_f32;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        polynomial = polynomial.mul_add(t, coefficient);
    }
    (1.0 - polynomial * t * exp(-size * size)).copysign(x)
}

/// Defines a function that runs `$body`, which must be `#[inline(always)]`, compiled for the widest vectors of this processor.
///
/// A function that takes the body as a closure would not do: what is not inlined is compiled without the vectors.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visible:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) = $body:path) => {
        $(#[$attribute])*
        $visible fn $name($($argument: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn with_avx512($($argument: $kind),*) {
                    $body($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $kind),*) {
                    $body($($argument),*);
                }
                if $crate::simd::has_avx512() {
                    // SAFETY: the processor has the features.
                    return unsafe { with_avx512($($argument),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the features.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            $body($($argument),*);
        }
    };
}
pub(crate) use vectorised;

/// Bytes that come from memory together.
pub(crate) const LINE: usize = 64;

/// Has the memory bring `values` near, where the processor can be asked to.
#[inline(always)]
pub(crate) fn fetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks((LINE / size_of::<T>()).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every processor of this kind has the instruction, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// Whether there are 32 registers of sixteen floats, so that larger tiles fit.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
}

/// Whether there are 32 registers of sixteen floats, so that larger tiles fit.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn has_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! { fn exp_all(x: &[f32], out: &mut [f32]) = exp_each }

    #[inline(always)]
    fn exp_each(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = exp(*x);
        }
    }

    #[test]
    fn exp_is_close_everywhere() {
        for step in 0..=17_500 {
            let x = -87.0 + step as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), exp(-87.0));
        assert_eq!(exp(1e30), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn vector_code_equals_scalar_code_bit_for_bit() {
        let values: Vec<f32> = (0..4096).map(|at| (at as f32 * 0.37).sin() * 40.0).collect();
        let scalar: Vec<u32> = values.iter().map(|&x| exp(x).to_bits()).collect();
        let mut vector = vec![0.0; values.len()];
        exp_all(&values, &mut vector);
        assert_eq!(scalar, vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn sums_all_lanes() {
        let lanes = std::array::from_fn(|lane| lane as f32);
        assert_eq!(sum(lanes), 120.0);
    }
}
