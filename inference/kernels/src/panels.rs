//! Sharing the panels of a product among threads.

use rayon::prelude::*;

use crate::simd::LANES;

/// Outputs per panel.
pub(crate) const PANEL: usize = 2 * LANES;
/// Stretches of panels per thread: a thread that is interrupted leaves its last one to the others.
const STRETCHES_PER_THREAD: usize = 4;
/// Multiplications that are worth a stretch of their own; fewer take no longer than another thread takes to begin.
const LEAST_WORK: usize = 100_000;

/// Computes `[rows, outputs]` panel by panel: `panel(number, out)` writes `[row][PANEL]`. `work` is the multiplications of one panel.
pub(crate) fn by_panels(
    rows: usize,
    outputs: usize,
    work: usize,
    panel: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let panels = outputs.div_ceil(PANEL);
    let mut by_panel = vec![0.0; panels * rows * PANEL];
    let stretch = panels.div_ceil(stretches(panels * work, rayon::current_num_threads())).max(1);
    by_panel.par_chunks_mut(stretch * rows * PANEL).enumerate().for_each(|(number, out)| {
        for (at, out) in out.chunks_exact_mut(rows * PANEL).enumerate() {
            panel(number * stretch + at, out);
        }
    });
    if rows == 1 {
        by_panel.truncate(outputs);
        return by_panel;
    }
    by_row(&by_panel, rows, outputs)
}

/// Into how many stretches of equal length so much work is cut: as many for each thread.
fn stretches(work: usize, threads: usize) -> usize {
    let worthwhile = (work / LEAST_WORK).clamp(1, threads * STRETCHES_PER_THREAD);
    if worthwhile < threads { worthwhile } else { worthwhile / threads * threads }
}

/// `[panel][row][PANEL]` to `[row][outputs]`.
fn by_row(by_panel: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * outputs];
    out.par_chunks_exact_mut(outputs).with_min_len(16).enumerate().for_each(|(row, out)| {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            out.copy_from_slice(&by_panel[(panel * rows + row) * PANEL..][..out.len()]);
        }
    });
    out
}
