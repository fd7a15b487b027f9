//! The weights of a model as tensors on a device.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, bf16, f16};
use parlance_inference_kernels::PANEL;
use rayon::prelude::*;

use crate::{
    rope::{Pairing, Rope},
    weights::{HeadNorms, LayerWeights, Rows, Weights},
};

/// Outputs that one block of threads computes in a product of few rows; ...
const BLOCK_OUTPUTS: usize = 128;
/// ... blocks that a device should have at work; ...
const BLOCKS: usize = 64;
/// ... and inputs that are worth a block of their own.
const LEAST_INPUTS: usize = 128;
/// What the number of a part's inputs must be a multiple of.
const ALIGNMENT: usize = 16;

/// All weights, in the model's numbers, vectors in f32. Matrices are `[parts, outputs, inputs of a part]`: see [`parted`].
#[derive(Debug)]
pub(super) struct TensorWeights {
    pub(super) embedding: Tensor<2>,
    pub(super) layers: Vec<TensorLayer>,
    pub(super) output_norm: Tensor<1>,
    pub(super) output: Tensor<3>,
    pub(super) bytes: usize,
}

/// The weights of one layer, as in [`LayerWeights`].
#[derive(Debug)]
pub(super) struct TensorLayer {
    pub(super) attention_norm: Tensor<1>,
    pub(super) qkv: Tensor<3>,
    pub(super) qkv_bias: Option<Tensor<1>>,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[Tensor<1>; 2]>,
    pub(super) attention_output: Tensor<3>,
    pub(super) feed_forward_norm: Tensor<1>,
    pub(super) gate_up: Tensor<3>,
    pub(super) down: Tensor<3>,
}

impl TensorWeights {
    /// Brings the vectors to the device too.
    pub(super) fn new(weights: Weights<Tensor<2>>, device: &Device) -> Self {
        let size = |matrix: &Tensor<2>| matrix.shape().num_elements() * matrix.dtype().size();
        Self {
            bytes: weights.matrices().map(size).sum(),
            output: weights.output().clone().unsqueeze(),
            embedding: weights.embedding,
            layers: weights.layers.into_iter().map(|layer| TensorLayer::new(layer, device)).collect(),
            output_norm: vector(weights.output_norm, device),
        }
    }
}

impl TensorLayer {
    fn new(layer: LayerWeights<Tensor<2>>, device: &Device) -> Self {
        let norms = |norms: HeadNorms| [norms.queries, norms.keys].map(|norm| vector(norm, device));
        Self {
            attention_norm: vector(layer.attention_norm, device),
            qkv: parted(layer.qkv, device),
            qkv_bias: layer.qkv_bias.map(|bias| vector(bias, device)),
            head_norms: layer.head_norms.map(norms),
            attention_output: parted(layer.attention_output, device),
            feed_forward_norm: vector(layer.feed_forward_norm, device),
            gate_up: parted(layer.gate_up, device),
            down: parted(layer.down, device),
        }
    }
}

/// Brings a matrix to the device, rounded on this side, so that no more travels than is kept.
pub(super) fn matrix(rows: &Rows<'_>, dtype: FloatDType, device: &Device) -> Tensor<2> {
    let shape = [rows.outputs(), rows.inputs];
    let data = match dtype {
        FloatDType::F16 => TensorData::new(rounded(rows, f16::from_f32), shape),
        FloatDType::BF16 => TensorData::new(rounded(rows, bf16::from_f32), shape),
        _ => TensorData::new(rounded(rows, |value| value), shape),
    };
    Tensor::from_data(data, (device, DType::from(dtype)))
}

fn rounded<N: Copy + Default + Send>(rows: &Rows<'_>, round: impl Fn(f32) -> N + Sync) -> Vec<N> {
    let mut out = vec![N::default(); rows.outputs() * rows.inputs];
    rows.each_panel(out.par_chunks_mut(PANEL * rows.inputs), |out: &mut [N], values| {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = round(value));
    });
    out
}

/// A matrix with its inputs cut into parts, whose products are summed behind: a small model has too few outputs to keep a device at work,
/// and each of its blocks would go through all inputs, one step after the other.
fn parted(matrix: Tensor<2>, device: &Device) -> Tensor<3> {
    let [outputs, inputs] = matrix.dims();
    let parts = parts(outputs, inputs);
    let shape = [parts, outputs, inputs / parts];
    let options = (device, matrix.dtype());
    let cut = matrix.reshape([outputs, parts, inputs / parts]).swap_dims(0, 1);
    // Written out as it is read: a product copies what lies otherwise, each time.
    Tensor::zeros(shape, options).slice_assign(shape.map(|count| 0..count), cut)
}

fn parts(outputs: usize, inputs: usize) -> usize {
    let fits = |parts: &usize| {
        outputs.div_ceil(BLOCK_OUTPUTS) * parts < 2 * BLOCKS
            && inputs / parts >= LEAST_INPUTS
            && inputs.is_multiple_of(parts * ALIGNMENT)
    };
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// The rotary embedding: cosines and sines, `[positions, pairs]`, and which values turn together.
#[derive(Debug)]
pub(super) struct RopeTensors {
    pub(super) cosines: Tensor<2>,
    pub(super) sines: Tensor<2>,
    pub(super) pairing: Pairing,
}

impl RopeTensors {
    pub(super) fn new(rope: &Rope, device: &Device) -> Self {
        let table = |values: Vec<f32>| {
            let shape = [values.len() / rope.pairs(), rope.pairs()];
            Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        let (cosines, sines) = rope.tables();
        Self { cosines: table(cosines), sines: table(sines), pairing: rope.pairing() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_matrices_are_cut_and_large_ones_are_not() {
        assert_eq!([parts(576, 576), parts(960, 576), parts(3_072, 576), parts(576, 1_536)], [4, 4, 4, 8]);
        assert_eq!([parts(28_672, 4_096), parts(4_096, 4_096), parts(64, 96), parts(64, 1_000)], [1, 2, 1, 1]);
    }

    #[test]
    fn parts_hold_the_inputs_in_order() {
        let device = Device::flex();
        let matrix =
            Tensor::<1>::from_data(TensorData::new((0..1_024).map(|at| at as f32).collect(), [1_024]), &device);
        let parted = parted(matrix.reshape([2, 512]), &device);
        assert_eq!(parted.dims(), [4, 2, 128]);
        let values = parted.try_into_vec_as::<f32>().expect("floats");
        assert_eq!(
            [values[0], values[127], values[128], values[256], values[1_023]],
            [0.0, 127.0, 512.0, 128.0, 1_023.0]
        );
    }
}
