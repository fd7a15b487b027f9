//! How fast products with 8-bit weights are, with more weights than any cache holds: those of the layers of SmolLM2-135M.
//!
//! `cargo bench -p parlance-inference-kernels` runs this.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::{Duration, Instant};

use parlance_inference_kernels::{Output, PANEL, Scratch, int8::Int8Matrix};
use rayon::iter::ParallelIterator as _;

/// Inputs and outputs of a layer's products: queries, keys and values; attention output; gate and up; down.
const SHAPES: [(usize, usize); 4] = [(576, 960), (576, 576), (576, 3_072), (1_536, 576)];
const LAYERS: usize = 30;
const ROWS: [usize; 11] = [1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512];

fn main() {
    let layers: Vec<_> = (0..LAYERS).flat_map(|_| SHAPES).map(|(inputs, outputs)| matrix(inputs, outputs)).collect();
    let bytes: usize = layers.iter().map(Int8Matrix::bytes).sum();
    let multiplications: usize = layers.iter().map(|matrix| matrix.inputs() * matrix.outputs()).sum();
    println!("| rows | all products | GB/s of weights | 10⁹ multiplications/s |\n|---|---|---|---|");
    for rows in ROWS {
        let seconds = measure(&layers, rows).as_secs_f64();
        let (rate, multiplications) = (bytes as f64 / seconds / 1e9, (rows * multiplications) as f64 / seconds / 1e9);
        println!("| {rows} | {:.2} ms | {rate:.1} | {multiplications:.0} |", seconds * 1e3);
    }
}

fn matrix(inputs: usize, outputs: usize) -> Int8Matrix {
    let mut matrix = Int8Matrix::new(inputs, outputs);
    let rows: Vec<f32> = (0..PANEL * inputs).map(|at| ((at * 31 % 97) as f32 - 48.0) / 50.0).collect();
    matrix.panels_mut().for_each(|mut panel| panel.fill(&rows));
    matrix
}

/// The median time of all products, one after the other.
fn measure(layers: &[Int8Matrix], rows: usize) -> Duration {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let mut times: Vec<Duration> = (0..(400 / rows).clamp(5, 40))
        .map(|_| {
            let begin = Instant::now();
            for matrix in layers {
                out.resize(rows * matrix.outputs(), 0.0);
                matrix.multiply(rows, |row, values| values.fill(row as f32), &mut scratch, Output::Set(&mut out));
            }
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
