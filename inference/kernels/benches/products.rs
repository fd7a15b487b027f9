//! How fast products with weights in 8 and in 4 bits are, with more weights than any cache holds: those of the layers of SmolLM2-135M.
//!
//! `cargo bench -p parlance-inference-kernels` runs this.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::{Duration, Instant};

use half::f16;
use parlance_inference_kernels::{
    BLOCK, Output, PANEL, Scratch,
    int4::{Block, Int4Matrix},
    int8::Int8Matrix,
};
use rayon::iter::ParallelIterator as _;

/// Inputs and outputs of a layer's products: queries, keys and values; attention output; gate and up; down.
const SHAPES: [(usize, usize); 4] = [(576, 960), (576, 576), (576, 3_072), (1_536, 576)];
const LAYERS: usize = 30;
const ROWS: [usize; 12] = [1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1_024];

fn main() {
    let eight: Vec<_> = shapes().map(|(inputs, outputs)| int8(inputs, outputs)).collect();
    let four: Vec<_> = shapes().map(|(inputs, outputs)| int4(inputs, outputs)).collect();
    let bytes: [usize; 2] = [eight.iter().map(Int8Matrix::bytes).sum(), four.iter().map(Int4Matrix::bytes).sum()];
    let multiplications: usize = shapes().map(|(inputs, outputs)| inputs * outputs).sum();
    println!(
        "| rows | int8 | GB/s of weights | 10⁹ multiplications/s | int4 | GB/s of weights | int8 / int4 |\n|---|---|---|---|---|---|---|"
    );
    for rows in ROWS {
        // One after the other in each round, so that what else the machine does meets both.
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..(400 / rows).clamp(5, 40) {
            times[0].push(measure(&eight, rows, Int8Matrix::outputs, Int8Matrix::multiply));
            times[1].push(measure(&four, rows, Int4Matrix::outputs, Int4Matrix::multiply));
        }
        let [eight, four] = times.map(median);
        let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
        println!(
            "| {rows} | {:.2} ms | {:.1} | {:.0} | {:.2} ms | {:.1} | {:.2} |",
            eight * 1e3,
            rate(bytes[0], eight),
            rate(rows * multiplications, eight),
            four * 1e3,
            rate(bytes[1], four),
            eight / four
        );
    }
}

fn shapes() -> impl Iterator<Item = (usize, usize)> {
    (0..LAYERS).flat_map(|_| SHAPES)
}

fn int8(inputs: usize, outputs: usize) -> Int8Matrix {
    let mut matrix = Int8Matrix::new(inputs, outputs);
    let rows: Vec<f32> = (0..PANEL * inputs).map(|at| ((at * 31 % 97) as f32 - 48.0) / 50.0).collect();
    matrix.panels_mut().for_each(|mut panel| panel.fill(&rows));
    matrix
}

fn int4(inputs: usize, outputs: usize) -> Int4Matrix {
    let mut matrix = Int4Matrix::new(inputs, outputs);
    let quants = std::array::from_fn(|at| (at * 7 % 16) as u8);
    let block = Block { step: f16::from_f32(0.02), minimum: f16::from_f32(-0.15), quants };
    matrix.panels_mut().for_each(|mut panel| {
        (0..PANEL * (inputs / BLOCK)).for_each(|at| panel.set(at % PANEL, at / PANEL, &block));
    });
    matrix
}

/// How long all products take, one after the other.
fn measure<M>(
    layers: &[M],
    rows: usize,
    outputs: impl Fn(&M) -> usize,
    multiply: impl Fn(&M, usize, fn(usize, &mut [f32]), &mut Scratch, Output<'_>),
) -> Duration {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let begin = Instant::now();
    for matrix in layers {
        out.resize(rows * outputs(matrix), 0.0);
        multiply(matrix, rows, |row, values| values.fill(row as f32), &mut scratch, Output::Set(&mut out));
    }
    begin.elapsed()
}

/// In seconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
