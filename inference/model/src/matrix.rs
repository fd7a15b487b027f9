//! A matrix of weights in whichever numbers the model is kept.

use parlance_inference_kernels::{Output, Scratch, int4::Int4Matrix, int8::Int8Matrix, linear::F32Matrix};

/// The weights of a linear map, packed for the kernels.
#[derive(Debug)]
pub(crate) enum Matrix {
    F32(F32Matrix),
    Int8(Int8Matrix),
    Int4(Int4Matrix),
}

impl Matrix {
    /// What it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(matrix) => matrix.bytes(),
            Self::Int8(matrix) => matrix.bytes(),
            Self::Int4(matrix) => matrix.bytes(),
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        match self {
            Self::F32(matrix) => matrix.inputs(),
            Self::Int8(matrix) => matrix.inputs(),
            Self::Int4(matrix) => matrix.inputs(),
        }
    }

    /// Copies one row of the weights.
    pub(crate) fn row(&self, output: usize, row: &mut [f32]) {
        match self {
            Self::F32(matrix) => matrix.row(output, row),
            Self::Int8(matrix) => matrix.row(output, row),
            Self::Int4(matrix) => matrix.row(output, row),
        }
    }

    /// `x · Wᵀ` for so many rows, each written by `fill`.
    pub(crate) fn multiply(
        &self,
        rows: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
        scratch: &mut Scratch,
        out: Output<'_>,
    ) {
        match self {
            Self::F32(matrix) => matrix.multiply(rows, fill, scratch, out),
            Self::Int8(matrix) => matrix.multiply(rows, fill, scratch, out),
            Self::Int4(matrix) => matrix.multiply(rows, fill, scratch, out),
        }
    }
}
