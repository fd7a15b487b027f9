//! Bytes that begin where a line of memory does, so that no register of them lies across two.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use crate::simd::LINE;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Whole lines of bytes, zeros at first.
#[derive(Clone)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// # Panics
    ///
    /// If `bytes` are not whole lines.
    pub(crate) fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(LINE), "whole lines");
        Self(vec![Line([0; LINE]); bytes / LINE])
    }
}

impl Deref for Lines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a line is its bytes, without padding, and lines lie one after the other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
