//! The hot loops of inference, over plain slices: no burn, no allocation policy, no knowledge of a model.
//!
//! | module | what it computes |
//! |---|---|
//! | [`linear`] | products with weights in f32 |
//! | [`int8`] | products with weights in 8 bits, over activations in 8 bits |
//! | [`int4`] | products with weights in 4 bits as files store them, over the same activations |
//! | [`attention`] | attention over the cache, in place |
//! | [`elementwise`] | what happens to single rows between the products |
//! | [`team`] | how the threads share a loop |
//!
//! Invariant: every output value is one chain of fused multiply-adds over its inputs in index order (or, for sums over a row, sixteen
//! chains and a fixed tree; or a chain over exact integer sums). Tiles, threads and instruction sets change how many chains run side by
//! side, never a chain itself, so that a row's result depends on that row alone, bit for bit, on every machine.

pub mod attention;
pub mod elementwise;
mod halves;
pub mod int4;
pub mod int8;
pub mod linear;
mod lines;
mod packed;
mod panels;
mod rows;
mod scratch;
mod simd;
pub mod team;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use panels::{Output, PANEL, copied};
pub use rows::BLOCK;
pub use scratch::Scratch;
