use std::collections::VecDeque;

use crate::Limits;

/// Which items later prompts are made of: the latest ones, within the bounds. Holds their sizes, not their texts.
///
/// Part of the fold, so that every owner makes the same prompt whatever it has in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Window {
    from: u64,
    sizes: VecDeque<u32>,
    /// Invariant: the sum of `sizes`.
    bytes: u64,
}

impl Window {
    pub(crate) fn new(from: u64, sizes: VecDeque<u32>) -> Self {
        let bytes = sizes.iter().map(|size| u64::from(*size)).sum();
        Self { from, sizes, bytes }
    }

    /// The first item of the window.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// The number that the next item gets.
    pub(crate) fn next(&self) -> u64 {
        self.from + self.sizes.len() as u64
    }

    pub(crate) fn sizes(&self) -> impl Iterator<Item = u32> {
        self.sizes.iter().copied()
    }

    pub(crate) fn push(&mut self, bytes: u32) -> u64 {
        let index = self.next();
        self.sizes.push_back(bytes);
        self.bytes += u64::from(bytes);
        index
    }

    pub(crate) fn truncate(&mut self, next: u64) {
        while self.next() > next {
            let Some(bytes) = self.sizes.pop_back() else { break };
            self.bytes -= u64::from(bytes);
        }
        self.from = self.from.min(next);
    }

    /// Drops the oldest items beyond the bounds, none from `keep_from` on.
    pub(crate) fn trim(&mut self, limits: &Limits, keep_from: u64) {
        while self.from < keep_from && (self.sizes.len() > limits.history_items || self.bytes > limits.history_bytes) {
            let Some(bytes) = self.sizes.pop_front() else { break };
            self.bytes -= u64::from(bytes);
            self.from += 1;
        }
    }
}
