//! Weighted rendezvous hashing in integers: the same on every machine and in every version.
//!
//! For node and shard let `h` be XXH3-64 (seed 0) of the shard's number, 4 bytes little-endian, followed by the node's name, and
//! `u = (h + 1) / 2⁶⁴`, which is uniform in (0, 1]. The cost of the shard to the node is `−log₂(u) / weight`, and the node with the least
//! cost ranks highest: each node is first for its weight's share of the shards, and a node that comes or goes changes the order of no two
//! others (Schindelhauer and Schomaker 2005, "Weighted distributed hash tables").
//!
//! Nodes of two versions have to agree about every cost, so nothing here may change. The test vectors below hold it fast.

use xxhash_rust::xxh3::xxh3_64;

use super::Weight;
use crate::identity::{MAX_NAME_BYTES, NodeName};

/// Bits behind the point in a logarithm.
const FRACTION_BITS: u32 = 32;

/// Bits of the mantissa that choose a row of the table; those below are interpolated.
const ROW_BITS: u32 = 10;

/// `log₂(1 + row / 1024)`, with [`FRACTION_BITS`] behind the point.
static LOGARITHMS: [u64; (1 << ROW_BITS) + 1] = logarithms();

/// What a shard costs a node: who has the least ranks highest.
pub fn cost(node: &NodeName, weight: Weight, shard: u32) -> u64 {
    let name = node.as_str().as_bytes();
    let mut key = [0; 4 + MAX_NAME_BYTES];
    key[..4].copy_from_slice(&shard.to_le_bytes());
    key[4..4 + name.len()].copy_from_slice(name);
    let exponential = minus_log2(xxh3_64(&key[..4 + name.len()]));
    // At most 2³⁸ before the shift. What it adds keeps small costs of heavy nodes apart.
    (exponential << 24) / u64::from(weight.get())
}

/// `−log₂((hash + 1) / 2⁶⁴)`, with [`FRACTION_BITS`] behind the point, and never 0.
fn minus_log2(hash: u64) -> u64 {
    let Some(value) = hash.checked_add(1) else { return 1 };
    let zeros = value.leading_zeros();
    // The leading one drops out: what is left is the mantissa's fraction, of 64 bits.
    let fraction = if zeros == 63 { 0 } else { value << (zeros + 1) };
    let row = (fraction >> (64 - ROW_BITS)) as usize;
    let within = (fraction << ROW_BITS) >> 32;
    let (below, above) = (LOGARITHMS[row], LOGARITHMS[row + 1]);
    let log = below + (((above - below) * within) >> 32);
    ((u64::from(zeros) + 1) << FRACTION_BITS) - log
}

/// The table, by squaring: the bits of a logarithm come out one by one.
const fn logarithms() -> [u64; (1 << ROW_BITS) + 1] {
    let mut table = [0; (1 << ROW_BITS) + 1];
    let mut row = 0;
    while row < 1 << ROW_BITS {
        // In [1, 2), with 62 bits behind the point.
        let mut mantissa = (1u128 << 62) + ((row as u128) << (62 - ROW_BITS));
        let mut log = 0;
        let mut bit = 0;
        while bit < FRACTION_BITS {
            mantissa = (mantissa * mantissa) >> 62;
            log <<= 1;
            if mantissa >= 1 << 63 {
                mantissa >>= 1;
                log |= 1;
            }
            bit += 1;
        }
        table[row] = log;
        row += 1;
    }
    table[1 << ROW_BITS] = 1 << FRACTION_BITS;
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(weight: u32) -> Weight {
        Weight::new(weight).expect("a weight")
    }

    /// Never to be changed: nodes of older versions compute these.
    #[test]
    fn costs_are_what_they_always_were() {
        let vectors: [(&str, u32, u32, u64); 6] = [
            ("a", 1, 0, 5_470_510_062_239_744),
            ("a", 1, 1, 7_234_534_600_867_840),
            ("node-1", 1, 63, 7_765_956_575_100_928),
            ("node-1", 3, 63, 2_588_652_191_700_309),
            ("node-2", 1000, 4095, 59_567_805_049_077),
            ("parlance-0", 2, u32::MAX, 57_097_000_549_613_568),
        ];
        let costs = vectors.map(|(name, by, shard, _)| {
            let cost = cost(&name.parse().expect("a name"), weight(by), shard);
            (name, by, shard, cost)
        });
        assert_eq!(costs, vectors);
    }

    #[test]
    fn logarithms_are_close_and_never_rise_with_the_hash() {
        let mut last = u64::MAX;
        for step in 0..=100_000u64 {
            let hash = step * (u64::MAX / 100_000);
            let log = minus_log2(hash);
            let exact = 64.0 - (hash as f64 + 1.0).log2();
            assert!((log as f64 / (1u64 << FRACTION_BITS) as f64 - exact).abs() < 1e-6, "{hash}: {log} for {exact}");
            assert!(log <= last && log > 0, "{hash}");
            last = log;
        }
        assert_eq!([minus_log2(0), minus_log2(1), minus_log2(u64::MAX)], [64 << 32, 63 << 32, 1]);
    }

    #[test]
    fn each_node_is_first_for_its_weights_share() {
        let nodes = [("a", 1), ("b", 2), ("c", 5)].map(|(name, by)| (name.parse::<NodeName>().expect("a name"), by));
        let mut first = [0; 3];
        for shard in 0..40_000 {
            let costs = nodes.each_ref().map(|(node, by)| cost(node, weight(*by), shard));
            first[(0..3).min_by_key(|&node| costs[node]).expect("three nodes")] += 1;
        }
        // Five standard deviations of a binomial distribution.
        for (count, expected) in first.into_iter().zip([5_000, 10_000, 25_000]) {
            assert!((count as i64 - expected).abs() < 500, "{first:?}");
        }
    }
}
