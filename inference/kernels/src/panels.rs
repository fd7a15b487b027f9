//! Products of rows of activations with packed weights: what goes in, what comes out, and how threads share the work.
//!
//! A thread takes a stretch of panels and multiplies each with all rows, so that the weights pass by once, however many rows there are.

use std::{marker::PhantomData, ops::Range};

use crate::{simd::LANES, team};

/// Outputs per panel of packed weights.
pub const PANEL: usize = 2 * LANES;
/// Stretches of panels per thread: a thread that is interrupted leaves its last one to the others.
const STRETCHES_PER_THREAD: usize = 4;
/// Multiplications that are worth a stretch of their own: a microsecond or two of work.
const LEAST_WORK: usize = 100_000;
/// Rows that are prepared by one thread at once; so few are not worth a second thread.
pub(crate) const PREPARED_ROWS: usize = 8;

/// Where a product's results go: rows one after the other, each as long as the matrix has outputs.
#[derive(Debug)]
pub enum Output<'a> {
    /// In place of what is there.
    Set(&'a mut [f32]),
    /// On top of what is there.
    Add(&'a mut [f32]),
}

/// Rows of `width` values, one after the other, as a product's inputs.
pub fn copied(x: &[f32], width: usize) -> impl Fn(usize, &mut [f32]) + Sync {
    move |row, values| values.copy_from_slice(&x[row * width..][..width])
}

/// How a product is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    /// Multiplications of one row with one panel.
    pub(crate) work: usize,
    /// Rows that a stretch of panels meets at once: as many as fit a core's cache.
    pub(crate) block: usize,
}

impl Product {
    /// Has `panel(number, rows, out)` put the values of every panel and all rows, each once.
    pub(crate) fn compute(self, out: Output<'_>, panel: impl Fn(usize, Range<usize>, &mut PanelOut<'_>) + Sync) {
        let results = Results::new(out, self.rows, self.outputs);
        if self.rows == 0 {
            return;
        }
        let panels = self.outputs.div_ceil(PANEL);
        let stretch = panels.div_ceil(self.stretches(panels)).max(1);
        team::each(panels.div_ceil(stretch), |number| {
            for first in (0..self.rows).step_by(self.block) {
                let rows = first..self.rows.min(first + self.block);
                for number in number * stretch..panels.min((number + 1) * stretch) {
                    // No two calls have a panel and a row in common.
                    panel(number, rows.clone(), &mut PanelOut { results: &results, number, rows: rows.clone() });
                }
            }
        });
    }

    /// Into how many stretches of equal length the panels are cut: as many for each thread.
    fn stretches(self, panels: usize) -> usize {
        let threads = team::threads();
        let worthwhile = (self.rows * panels * self.work / LEAST_WORK).clamp(1, threads * STRETCHES_PER_THREAD);
        if worthwhile < threads { worthwhile } else { worthwhile / threads * threads }
    }
}

/// A matrix `[rows, outputs]` that threads write to at the same time, each to other panels or rows.
struct Results<'a> {
    begin: *mut f32,
    outputs: usize,
    add: bool,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is written to through `PanelOut` only, and no two of those that exist at the same time share a place.
unsafe impl Sync for Results<'_> {}

impl<'a> Results<'a> {
    fn new(out: Output<'a>, rows: usize, outputs: usize) -> Self {
        let (values, add) = match out {
            Output::Set(values) => (values, false),
            Output::Add(values) => (values, true),
        };
        assert_eq!(values.len(), rows * outputs, "room for every result");
        Self { begin: values.as_mut_ptr(), outputs, add, values: PhantomData }
    }
}

/// Where the values of some rows of one panel go.
pub(crate) struct PanelOut<'a> {
    results: &'a Results<'a>,
    number: usize,
    rows: Range<usize>,
}

impl PanelOut<'_> {
    /// Puts one row's values; those beyond the last output are left out.
    #[inline(always)]
    pub(crate) fn put(&mut self, row: usize, values: &[f32; PANEL]) {
        assert!(self.rows.contains(&row), "one of its rows");
        let (outputs, column) = (self.results.outputs, self.number * PANEL);
        let width = PANEL.min(outputs - column);
        // SAFETY: the row exists and has `width` values from `column` on, which are nobody else's.
        let row = unsafe { std::slice::from_raw_parts_mut(self.results.begin.add(row * outputs + column), width) };
        match (<&mut [f32; PANEL]>::try_from(&mut *row), self.results.add) {
            (Ok(whole), false) => *whole = *values,
            (Ok(whole), true) => whole.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            (Err(_), false) => row.copy_from_slice(&values[..width]),
            (Err(_), true) => row.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
        }
    }
}
