//! The hot loops, over plain slices: no burn, no allocation policy, no knowledge of a model.
//!
//! Invariant: every output value is one chain of fused multiply-adds over its inputs in index order (or, for sums over a row, sixteen
//! chains and a fixed tree). Tiles, threads and instruction sets change how many chains run side by side, never a chain itself, so
//! that a row's result depends on that row alone, bit for bit, on every machine.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod linear;
mod simd;
