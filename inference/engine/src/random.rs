//! Random numbers that are a function of a seed and a position, with no state in between.
//!
//! Whoever continues a reply at its n-th token draws the same number there as whoever began it, and neighbours in the batch
//! cannot shift it. The function is the output permutation of SplitMix64 (Steele, Lea and Flood, "Fast splittable
//! pseudorandom number generators", OOPSLA 2014), applied once to the seed and once more to seed and position.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits for `position` in the stream of `seed`.
pub(crate) fn bits(seed: u64, position: u64) -> u64 {
    let stream = permute(seed.wrapping_add(GOLDEN_GAMMA));
    permute(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA)))
}

fn permute(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_fixed_for_ever() {
        // A recorded reply is continued by later builds: these values, computed independently, may never change.
        let fixed = [0xa706dd2f4d197e6f, 0xb382a305f4414f5e, 0x5e41ab087439611e];
        assert_eq!([bits(0, 0), bits(0, 1), bits(1, 0)], fixed);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        for seed in [0, 1, 2, u64::MAX, 0xdead_beef] {
            let mut buckets = [0u32; 64];
            for position in 0..64_000 {
                buckets[(bits(seed, position) >> 58) as usize] += 1;
            }
            // Chi-squared with 63 degrees of freedom: 120 is passed once in about 50,000 streams.
            let chi: f64 = buckets.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 120.0, "seed {seed}: {chi}");
        }
    }

    #[test]
    fn neighbouring_seeds_are_unrelated() {
        let equal = (0..10_000u64).filter(|&n| bits(n, 5) & 0xff == bits(n + 1, 5) & 0xff).count();
        assert!((10..80).contains(&equal), "{equal} of 10,000, expected about 39");
    }
}
