//! The weights of a model as tensors on a device.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, bf16, f16};
use parlance_inference_kernels::PANEL;
use rayon::prelude::*;

use crate::{
    rope::{Pairing, Rope},
    weights::{HeadNorms, LayerWeights, Rows, Weights},
};

/// All weights. Matrices are `[outputs, inputs]` in the model's numbers, vectors are in f32.
#[derive(Debug)]
pub(super) struct TensorWeights {
    pub(super) embedding: Tensor<2>,
    pub(super) layers: Vec<TensorLayer>,
    pub(super) output_norm: Tensor<1>,
    pub(super) output: Tensor<2>,
    pub(super) bytes: usize,
}

/// The weights of one layer, as in [`LayerWeights`].
#[derive(Debug)]
pub(super) struct TensorLayer {
    pub(super) attention_norm: Tensor<1>,
    pub(super) qkv: Tensor<2>,
    pub(super) qkv_bias: Option<Tensor<1>>,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[Tensor<1>; 2]>,
    pub(super) attention_output: Tensor<2>,
    pub(super) feed_forward_norm: Tensor<1>,
    pub(super) gate_up: Tensor<2>,
    pub(super) down: Tensor<2>,
}

impl TensorWeights {
    /// Brings the vectors to the device too.
    pub(super) fn new(weights: Weights<Tensor<2>>, device: &Device) -> Self {
        let size = |matrix: &Tensor<2>| matrix.shape().num_elements() * matrix.dtype().size();
        Self {
            bytes: weights.matrices().map(size).sum(),
            output: weights.output().clone(),
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
            qkv: layer.qkv,
            qkv_bias: layer.qkv_bias.map(|bias| vector(bias, device)),
            head_norms: layer.head_norms.map(norms),
            attention_output: layer.attention_output,
            feed_forward_norm: vector(layer.feed_forward_norm, device),
            gate_up: layer.gate_up,
            down: layer.down,
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
