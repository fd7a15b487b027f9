//! The hot loops of inference, over plain slices: no burn, no allocation policy, no knowledge of a model.
//!
//! | module | what it computes |
//! |---|---|
//! | [`linear`] | products with weights in f32 |
//! | [`int8`] | products with weights in 8 bits, over activations in 8 bits |
//! | [`attention`] | attention over the cache, in place |
//! | [`elementwise`] | what happens to single rows between the products |
//! | [`team`] | how the threads share a loop |
//!
//! Invariant: every output value is one chain of fused multiply-adds over its inputs in index order (or, for sums over a row, sixteen
//! chains and a fixed tree; or a chain over exact integer sums). Tiles, threads and instruction sets change how many chains run side by
//! side, never a chain itself, so that a row's result depends on that row alone, bit for bit, on every machine.

pub mod attention;
pub mod elementwise;
pub mod int8;
pub mod linear;
mod panels;
mod scratch;
mod simd;
pub mod team;

pub use panels::{Output, PANEL, copied};
pub use scratch::Scratch;
