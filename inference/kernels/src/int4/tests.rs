use proptest::prelude::*;

use super::{dot::multiply_row, *};
use crate::{panels::copied, rows::Rows};

fn values(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|at| ((at as f32 + seed) * 12.9898).sin() * (1.0 + (at % 7) as f32)).collect()
}

fn block(seed: usize) -> Block {
    let quants = std::array::from_fn(|at| ((seed * 37 + at * at * 11 + at * 5) % 16) as u8);
    let step = f16::from_f32(0.01 + (seed % 13) as f32 * 0.003);
    Block { step, minimum: f16::from_f32(-0.13 + (seed % 17) as f32 * 0.011), quants }
}

/// The block of an output and a number, different for each.
fn block_at(output: usize, number: usize) -> Block {
    block(output * 101 + number)
}

fn matrix(inputs: usize, outputs: usize) -> Int4Matrix {
    matrix_of(inputs, outputs, block_at)
}

fn matrix_of(inputs: usize, outputs: usize, block_at: impl Fn(usize, usize) -> Block + Sync) -> Int4Matrix {
    use rayon::prelude::*;
    let mut matrix = Int4Matrix::new(inputs, outputs);
    matrix.panels_mut().enumerate().for_each(|(panel, mut blocks)| {
        for output in panel * PANEL..outputs.min((panel + 1) * PANEL) {
            (0..inputs / BLOCK).for_each(|number| blocks.set(output % PANEL, number, &block_at(output, number)));
        }
    });
    matrix
}

fn multiply(matrix: &Int4Matrix, x: &[f32]) -> Vec<f32> {
    multiply_with(matrix, x, &mut Scratch::default())
}

fn multiply_with(matrix: &Int4Matrix, x: &[f32], scratch: &mut Scratch) -> Vec<f32> {
    let rows = x.len() / matrix.inputs();
    let mut out = vec![f32::NAN; rows * matrix.outputs()];
    matrix.multiply(rows, copied(x, matrix.inputs()), scratch, Output::Set(&mut out));
    out
}

/// The definition, panel by panel in plain code.
fn reference(matrix: &Int4Matrix, x: &[f32]) -> Vec<f32> {
    let mut rows = Rows::default();
    let count = x.len() / matrix.inputs();
    rows.quantise(count, matrix.inputs(), copied(x, matrix.inputs()));
    let mut out = vec![0.0; count * matrix.outputs()];
    for number in 0..matrix.outputs().div_ceil(PANEL) {
        for row in 0..count {
            let values = multiply_row(rows.row(row), matrix.0.panel(number));
            let width = PANEL.min(matrix.outputs() - number * PANEL);
            out[row * matrix.outputs() + number * PANEL..][..width].copy_from_slice(&values[..width]);
        }
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn equals_the_plain_code_bit_for_bit_at_every_shape(
        rows in 1usize..20, blocks in 1usize..12, outputs in 1usize..100, seed in 0.0f32..100.0,
    ) {
        let matrix = matrix(blocks * BLOCK, outputs);
        let x = values(rows * blocks * BLOCK, seed);
        prop_assert_eq!(bits(&multiply(&matrix, &x)), bits(&reference(&matrix, &x)));
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours(rows in 2usize..15, at in any::<prop::sample::Index>()) {
        let (inputs, outputs) = (192, 70);
        let matrix = matrix(inputs, outputs);
        let x = values(rows * inputs, 1.0);
        let at = at.index(rows);
        let together = multiply(&matrix, &x);
        let alone = multiply(&matrix, &x[at * inputs..][..inputs]);
        prop_assert_eq!(bits(&together[at * outputs..][..outputs]), bits(&alone));
    }
}

#[test]
fn many_rows_are_shared_among_threads_and_come_out_the_same() {
    let (inputs, outputs) = (128, 90);
    let matrix = matrix(inputs, outputs);
    for rows in [191, 192, 193, 500, 1_001] {
        let x = values(rows * inputs, 1.0);
        assert_eq!(bits(&multiply(&matrix, &x)), bits(&reference(&matrix, &x)), "{rows} rows");
    }
}

/// The sum over all outputs of the squares of what `found` misses of `exact`, relative to that of `exact`.
fn relative_error(found: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = found.iter().zip(exact).map(|(found, exact)| (exact - f64::from(*found)).powi(2)).sum();
    (error / exact.iter().map(|exact| exact * exact).sum::<f64>()).sqrt()
}

#[test]
fn weights_are_exact_and_activations_as_close_as_8_bits_are() {
    let (rows, inputs, outputs) = (7, 576, 96);
    let (matrix, x) = (matrix(inputs, outputs), values(7 * 576, 0.5));
    let product = |x: &[f32]| {
        let mut weights = vec![0.0; inputs];
        let mut exact = vec![0.0; rows * outputs];
        for output in 0..outputs {
            matrix.row(output, &mut weights);
            for row in 0..rows {
                let x = &x[row * inputs..][..inputs];
                exact[row * outputs + output] =
                    x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            }
        }
        exact
    };
    let found = multiply(&matrix, &x);
    let mut rounded = Rows::default();
    rounded.quantise(rows, inputs, copied(&x, inputs));
    let as_8_bits: Vec<f32> = (0..rows)
        .flat_map(|row| {
            let row = rounded.row(row);
            let value = |at: usize| f32::from(row.values[at]) * row.scales[at / BLOCK];
            (0..inputs).map(value).collect::<Vec<_>>()
        })
        .collect();
    // What is left is the rounding of sums in f32.
    assert!(relative_error(&found, &product(&as_8_bits)) < 1e-6);
    let error = relative_error(&found, &product(&x));
    assert!((1e-4..0.01).contains(&error), "{error}");
}

#[test]
fn rows_come_out_as_they_went_in() {
    let (inputs, outputs) = (96, 70);
    let matrix = matrix(inputs, outputs);
    let mut row = vec![0.0; inputs];
    for output in 0..outputs {
        matrix.row(output, &mut row);
        for (number, found) in row.chunks_exact(BLOCK).enumerate() {
            let Block { step, minimum, quants } = block_at(output, number);
            let expected = quants.map(|quant| f32::from(quant) * step.to_f32() + minimum.to_f32());
            assert_eq!(found, expected, "output {output}, block {number}");
        }
    }
}

#[test]
fn a_block_that_is_set_again_leaves_nothing_of_the_first() {
    let mut matrix = Int4Matrix::new(BLOCK, 1);
    for seed in [3, 8] {
        use rayon::iter::ParallelIterator as _;
        matrix.panels_mut().for_each(|mut panel| panel.set(0, 0, &block(seed)));
    }
    let once = matrix_of(BLOCK, 1, |_, _| block(8));
    assert_eq!(matrix.0.panel(0).weights, once.0.panel(0).weights);
}

#[test]
fn zeros_and_tiny_values_are_no_trouble() {
    let zeros = Int4Matrix::new(64, 32);
    assert!(multiply(&zeros, &[1.0; 64]).iter().all(|value| *value == 0.0));
    let ones = matrix_of(64, 32, |_, _| Block { step: f16::ONE, minimum: f16::ZERO, quants: [1; BLOCK] });
    assert!(multiply(&ones, &[0.0; 64]).iter().all(|value| *value == 0.0));
    assert!(multiply(&ones, &[1e-44; 64]).iter().all(|value| value.is_finite()));
    assert_eq!(multiply(&ones, &[3.0; 64])[0], 192.0);
}

#[test]
fn takes_5_bits_for_a_weight() {
    assert_eq!(Int4Matrix::new(576, 1_536).bytes() * 8, 576 * 1_536 * 5);
    assert_eq!(Int4Matrix::new(32, 1).bytes(), Int4Matrix::bytes_for(32, 1));
}

#[test]
fn what_is_not_a_number_shows() {
    let matrix = matrix(128, 32);
    for wrong in [f32::NAN, f32::INFINITY, -f32::NAN] {
        let mut x = vec![1.0; 128];
        x[70] = wrong;
        assert!(multiply(&matrix, &x).iter().all(|value| value.is_nan()), "{wrong}");
    }
    let broken = matrix_of(64, 32, |_, _| Block { step: f16::INFINITY, minimum: f16::ZERO, quants: [0; BLOCK] });
    assert!(multiply(&broken, &[1.0; 64]).iter().all(|value| value.is_nan()), "an infinite step");
}

#[test]
fn used_memory_leaves_no_trace() {
    let (wide, narrow) = (matrix(192, 40), matrix(96, 40));
    let mut scratch = Scratch::default();
    for (matrix, rows) in [(&wide, 9), (&narrow, 3), (&wide, 1), (&narrow, 17), (&narrow, 2)] {
        let x = values(rows * matrix.inputs(), 4.0);
        assert_eq!(bits(&multiply_with(matrix, &x, &mut scratch)), bits(&reference(matrix, &x)));
    }
}

#[test]
#[should_panic(expected = "whole blocks")]
fn inputs_that_are_not_whole_blocks_are_refused() {
    Int4Matrix::new(40, 32);
}
