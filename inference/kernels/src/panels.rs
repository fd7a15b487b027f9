//! Sharing a product among threads: by panels of weights where there are few rows, by rows where there are many.

use std::ops::Range;

use rayon::prelude::*;

use crate::simd::LANES;

/// Outputs per panel of packed weights.
pub const PANEL: usize = 2 * LANES;
/// Stretches of panels per thread: a thread that is interrupted leaves its last one to the others.
const STRETCHES_PER_THREAD: usize = 4;
/// Multiplications that are worth a stretch of their own; fewer take no longer than another thread takes to begin.
const LEAST_WORK: usize = 100_000;

/// Rows that a thread takes at once: enough that the weights, which pass by once for each such block, cost little beside it.
const BLOCK_ROWS: usize = 96;

/// Blocks begin at multiples of this, which every kernel's tiles of rows divide.
const TILE_MULTIPLE: usize = 6;

/// Computes `[rows, outputs]`: `panel(number, rows, out)` writes the panel's values of those rows to `[row][PANEL]`. `work` is the
/// multiplications of one row and panel.
pub(crate) fn share(
    rows: usize,
    outputs: usize,
    work: usize,
    panel: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    if rows >= 2 * BLOCK_ROWS { by_rows(rows, outputs, panel) } else { by_panels(rows, outputs, rows * work, panel) }
}

fn by_rows(rows: usize, outputs: usize, panel: impl Fn(usize, Range<usize>, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; rows * outputs];
    // As even as possible, so that no thread waits for another's last block.
    let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(rayon::current_num_threads());
    let block = rows.div_ceil(blocks).next_multiple_of(TILE_MULTIPLE);
    out.par_chunks_mut(block * outputs).enumerate().for_each_init(Vec::new, |tile, (number, out)| {
        let (first, count) = (number * block, out.len() / outputs);
        tile.resize(count * PANEL, 0.0);
        for number in 0..outputs.div_ceil(PANEL) {
            panel(number, first..first + count, tile);
            copy_panel(tile, number, outputs, out);
        }
    });
    out
}

/// Puts a panel's values `[row][PANEL]` in their place in `[row][outputs]`.
fn copy_panel(tile: &[f32], number: usize, outputs: usize, out: &mut [f32]) {
    let width = PANEL.min(outputs - number * PANEL);
    for (out, tile) in out.chunks_exact_mut(outputs).zip(tile.chunks_exact(PANEL)) {
        out[number * PANEL..][..width].copy_from_slice(&tile[..width]);
    }
}

fn by_panels(
    rows: usize,
    outputs: usize,
    work: usize,
    panel: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let panels = outputs.div_ceil(PANEL);
    let mut by_panel = vec![0.0; panels * rows * PANEL];
    let stretch = panels.div_ceil(stretches(panels * work, rayon::current_num_threads())).max(1);
    by_panel.par_chunks_mut(stretch * rows * PANEL).enumerate().for_each(|(number, out)| {
        for (at, out) in out.chunks_exact_mut(rows * PANEL).enumerate() {
            panel(number * stretch + at, 0..rows, out);
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
