use proptest::prelude::*;
use rayon::prelude::*;

use super::{dot::multiply_row, *};
use crate::{panels::copied, rows::Rows};

fn values(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|at| ((at as f32 + seed) * 12.9898).sin() * (1.0 + (at % 7) as f32)).collect()
}

fn matrix(weights: &[f32], inputs: usize) -> Int8Matrix {
    let mut matrix = Int8Matrix::new(inputs, weights.len() / inputs);
    matrix.panels_mut().zip(weights.par_chunks(PANEL * inputs)).for_each(|(mut panel, rows)| panel.fill(rows));
    matrix
}

fn multiply(matrix: &Int8Matrix, x: &[f32]) -> Vec<f32> {
    multiply_with(matrix, x, &mut Scratch::default())
}

fn multiply_with(matrix: &Int8Matrix, x: &[f32], scratch: &mut Scratch) -> Vec<f32> {
    let rows = x.len() / matrix.inputs();
    let mut out = vec![f32::NAN; rows * matrix.outputs()];
    matrix.multiply(rows, copied(x, matrix.inputs()), scratch, Output::Set(&mut out));
    out
}

/// The definition, panel by panel in plain code.
fn reference(matrix: &Int8Matrix, x: &[f32]) -> Vec<f32> {
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
        rows in 1usize..20, inputs in 1usize..300, outputs in 1usize..100, seed in 0.0f32..100.0,
    ) {
        let matrix = matrix(&values(outputs * inputs, seed), inputs);
        let x = values(rows * inputs, seed + 0.5);
        prop_assert_eq!(bits(&multiply(&matrix, &x)), bits(&reference(&matrix, &x)));
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours(rows in 2usize..15, at in any::<prop::sample::Index>()) {
        let (inputs, outputs) = (192, 70);
        let matrix = matrix(&values(outputs * inputs, 3.0), inputs);
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
    let matrix = matrix(&values(outputs * inputs, 2.0), inputs);
    for rows in [191, 192, 193, 500, 1_001] {
        let x = values(rows * inputs, 1.0);
        assert_eq!(bits(&multiply(&matrix, &x)), bits(&reference(&matrix, &x)), "{rows} rows");
    }
}

#[test]
fn is_as_close_to_the_exact_product_as_8_bits_are() {
    let (rows, inputs, outputs) = (7, 576, 96);
    let (weights, x) = (values(outputs * inputs, 7.0), values(rows * inputs, 0.5));
    let found = multiply(&matrix(&weights, inputs), &x);
    let (mut error, mut size) = (0.0, 0.0);
    for (row, found) in x.chunks_exact(inputs).zip(found.chunks_exact(outputs)) {
        for (weights, found) in weights.chunks_exact(inputs).zip(found) {
            let exact: f64 = row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            error += (exact - f64::from(*found)).powi(2);
            size += exact.powi(2);
        }
    }
    let relative = (error / size).sqrt();
    assert!(relative < 0.01, "{relative}");
    assert!(relative > 1e-6, "8 bits are not exact: {relative}");
}

#[test]
fn rows_come_out_as_they_went_in_but_for_half_a_step() {
    let (inputs, outputs) = (130, 33);
    let weights = values(outputs * inputs, 1.0);
    let matrix = matrix(&weights, inputs);
    for (output, exact) in weights.chunks_exact(inputs).enumerate() {
        let mut row = vec![0.0; inputs];
        matrix.row(output, &mut row);
        for (exact, found) in exact.chunks(BLOCK).zip(row.chunks(BLOCK)) {
            // The scale in 16 bits misses up to 2⁻¹¹ of the one in 32, which the largest value meets 127 times.
            let step = rows::scale(exact);
            assert!(exact.iter().zip(found).all(|(exact, found)| (exact - found).abs() <= step * 0.563));
        }
    }
}

/// As a file of `Q8_0` has them: whole numbers up to 127 under a scale in 16 bits.
#[test]
fn weights_that_have_8_bits_come_out_as_they_went_in() {
    let (inputs, outputs) = (96, 33);
    let weight = |at: usize| {
        let scale = f16::from_f32(0.003 + (at / BLOCK % 29) as f32 * 0.000_7).to_f32();
        let quant = if at.is_multiple_of(BLOCK) { 127 } else { (at * 53 % 255) as i32 - 127 };
        quant as f32 * scale
    };
    let weights: Vec<f32> = (0..inputs * outputs).map(weight).collect();
    let matrix = matrix(&weights, inputs);
    let mut row = vec![0.0; inputs];
    for (output, exact) in weights.chunks_exact(inputs).enumerate() {
        matrix.row(output, &mut row);
        assert_eq!(row, exact, "output {output}");
    }
}

#[test]
fn zeros_and_tiny_values_are_no_trouble() {
    let zeros = matrix(&[0.0; 64 * 32], 64);
    assert!(multiply(&zeros, &[1.0; 64]).iter().all(|value| *value == 0.0));
    let ones = matrix(&[1.0; 64 * 32], 64);
    assert!(multiply(&ones, &[0.0; 64]).iter().all(|value| *value == 0.0));
    assert!(multiply(&ones, &[1e-44; 64]).iter().all(|value| value.is_finite()));
    // A scale of one, which 16 bits hold exactly.
    let largest = matrix(&[127.0; 64 * 32], 64);
    assert_eq!(multiply(&largest, &[254.0; 64])[0], 127.0 * 254.0 * 64.0);
}

#[test]
fn takes_a_quarter_of_f32_and_a_little() {
    let matrix = Int8Matrix::new(576, 1_536);
    assert!(matrix.bytes() * 100 <= 576 * 1_536 * 4 * 27, "{}", matrix.bytes());
}

#[test]
fn what_is_not_a_number_shows() {
    let ones = matrix(&[1.0; 128 * 32], 128);
    for wrong in [f32::NAN, f32::INFINITY, -f32::NAN] {
        let mut x = vec![1.0; 128];
        x[70] = wrong;
        assert!(multiply(&ones, &x).iter().all(|value| value.is_nan()), "{wrong}");
    }
}

#[test]
fn used_memory_leaves_no_trace() {
    let (wide, narrow) = (matrix(&values(40 * 192, 1.0), 192), matrix(&values(40 * 100, 2.0), 100));
    let mut scratch = Scratch::default();
    for (matrix, rows) in [(&wide, 9), (&narrow, 3), (&wide, 1), (&narrow, 17), (&narrow, 2)] {
        let x = values(rows * matrix.inputs(), 4.0);
        assert_eq!(bits(&multiply_with(matrix, &x, &mut scratch)), bits(&reference(matrix, &x)));
    }
}
