//! The one door between burn's tensors and the kernels: each operation takes its tensors apart to slices, through burn's
//! `extension` feature, and wraps what the kernel computed.
//!
//! Everything else that the forward pass does (additions, row selection) is burn's own.

mod encoder;

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexTensor};
use parlance_inference_engine::TokenId;
use parlance_inference_kernels::{
    PANEL,
    attention::{self, HeadCache},
    elementwise,
    int8::Int8Matrix,
    linear,
};
use rayon::prelude::*;

pub(crate) use self::encoder::{Norm, add_positions, attend_within, gelu, layer_norm};
use crate::{
    config::LlamaConfig,
    kv::{HeadPlace, KvCache},
    rope::Rope,
    weights::HeadNorms,
};

/// Cached positions that a task should attend over: some ten microseconds of work.
const POSITIONS_PER_TASK: usize = 1_024;

/// The weights of a linear map, packed for the kernel.
#[derive(Debug)]
pub(crate) enum Weight {
    /// As floats: `packed` has the shape `[panels, inputs, panel]`.
    F32 { packed: Box<Tensor<3>>, inputs: usize, outputs: usize },
    /// In 8 bits, which burn has no tensors for that its kernels could use.
    Int8(Int8Matrix),
}

impl Weight {
    /// Wraps weights in the layout of [`linear`].
    pub(crate) fn f32(packed: Vec<f32>, inputs: usize, outputs: usize) -> Self {
        let shape = [outputs.div_ceil(PANEL), inputs, PANEL];
        let packed = FlexTensor::from_data(TensorData::new(packed, shape));
        Self::F32 { packed: Box::new(Tensor::from_primitive::<Flex>(packed)), inputs, outputs }
    }

    /// What it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32 { inputs, outputs, .. } => linear::packed_len(*outputs, *inputs) * size_of::<f32>(),
            Self::Int8(matrix) => matrix.bytes(),
        }
    }

    fn inputs(&self) -> usize {
        match self {
            Self::F32 { inputs, .. } => *inputs,
            Self::Int8(matrix) => matrix.inputs(),
        }
    }
}

/// Where a row of a step stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lane: usize,
    pub(crate) position: usize,
}

/// The rows of `table` for `tokens`: `[tokens, inputs]`.
pub(crate) fn embed(table: &Weight, tokens: &[TokenId]) -> Tensor<2> {
    let width = table.inputs();
    let mut rows = vec![0.0; tokens.len() * width];
    let each = rows.par_chunks_exact_mut(width).with_min_len(16).zip(tokens);
    match table {
        Weight::F32 { packed, .. } => {
            let packed = primitive(Tensor::clone(packed));
            each.for_each(|(row, &token)| linear::unpack_row(values(&packed), token as usize, row));
        }
        Weight::Int8(matrix) => each.for_each(|(row, &token)| matrix.row(token as usize, row)),
    }
    wrap(rows, width)
}

/// Root-mean-square norm of every row, times `weight`.
pub(crate) fn rms_norm(x: Tensor<2>, weight: &[f32], epsilon: f32) -> Tensor<2> {
    wrap(elementwise::rms_norm(values(&primitive(x)), weight, epsilon), weight.len())
}

/// `x · Wᵀ`: `[rows, inputs]` to `[rows, outputs]`.
pub(crate) fn linear(x: Tensor<2>, weight: &Weight) -> Tensor<2> {
    let x = primitive(x);
    match weight {
        Weight::F32 { packed, inputs, outputs } => {
            let packed = primitive(Tensor::clone(packed));
            wrap(linear::linear(values(&x), values(&packed), *inputs, *outputs), *outputs)
        }
        Weight::Int8(matrix) => wrap(matrix.multiply(values(&x)), matrix.outputs()),
    }
}

/// `bias` added to every row.
pub(crate) fn add_bias(x: Tensor<2>, bias: &[f32]) -> Tensor<2> {
    let mut x = primitive(x);
    let rows: &mut [f32] = x.storage_mut();
    rows.par_chunks_exact_mut(bias.len()).with_min_len(16).for_each(|row| {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    });
    Tensor::from_primitive::<Flex>(x)
}

/// Root-mean-square norm of every head of queries and of keys, as Qwen3 has it; `qkv` holds queries, keys and values side by side.
pub(crate) fn norm_heads(qkv: Tensor<2>, norms: &HeadNorms, config: &LlamaConfig) -> Tensor<2> {
    let (queries, keys) = (config.heads * config.head, config.kv_heads * config.head);
    let mut qkv = primitive(qkv);
    let rows: &mut [f32] = qkv.storage_mut();
    rows.par_chunks_exact_mut(config.qkv_width()).with_min_len(16).for_each(|row| {
        let (of_queries, rest) = row.split_at_mut(queries);
        for (heads, weight) in [(of_queries, &norms.queries), (&mut rest[..keys], &norms.keys)] {
            heads.copy_from_slice(&elementwise::rms_norm(heads, weight, config.rms_epsilon));
        }
    });
    Tensor::from_primitive::<Flex>(qkv)
}

/// `silu(gate) · up` of rows that hold both side by side: `[rows, 2 · width]` to `[rows, width]`.
pub(crate) fn swiglu(gate_up: Tensor<2>, width: usize) -> Tensor<2> {
    wrap(elementwise::swiglu(values(&primitive(gate_up)), width), width)
}

/// Causal attention of every row over its own lane, whose keys and values are first completed by the rows' own.
///
/// `qkv` holds queries, keys and values side by side; `places` says where each row stands. Rows of one lane are in order.
pub(crate) fn attention(
    qkv: Tensor<2>,
    places: &[Place],
    layer: usize,
    config: &LlamaConfig,
    rope: &Rope,
    cache: &mut KvCache,
) -> Tensor<2> {
    let mut qkv = primitive(qkv);
    let qkv: &mut [f32] = qkv.storage_mut();
    let (turned, keys) = ((config.heads + config.kv_heads) * config.head, config.heads * config.head);
    qkv.par_chunks_exact_mut(config.qkv_width())
        .with_min_len(16)
        .zip(places)
        .for_each(|(row, place)| rope.turn(place.position, &mut row[..turned]));
    for (row, place) in qkv.chunks_exact(config.qkv_width()).zip(places) {
        let (new_keys, new_values) = row[keys..].split_at(config.kv_heads * config.head);
        let heads = new_keys.chunks_exact(config.head).zip(new_values.chunks_exact(config.head));
        for (head, (key, value)) in heads.enumerate() {
            cache.write(HeadPlace { lane: place.lane, layer, head }, place.position, key, value);
        }
    }
    wrap(attend(qkv, places, layer, config, cache), keys)
}

/// One task per row and head of the cache: the output of both together is one stretch. Short ones are bundled, as a second thread
/// takes longer to wake than they take.
fn attend(qkv: &[f32], places: &[Place], layer: usize, config: &LlamaConfig, cache: &KvCache) -> Vec<f32> {
    let group = config.group() * config.head;
    let mut out = vec![0.0; places.len() * config.heads * config.head];
    let positions: usize = places.iter().map(|place| place.position + 1).sum();
    let bundle = (POSITIONS_PER_TASK * places.len()).div_ceil(positions.max(1));
    out.par_chunks_exact_mut(group).with_min_len(bundle).enumerate().for_each_init(Vec::new, |scores, (task, out)| {
        let (row, head) = (task / config.kv_heads, task % config.kv_heads);
        let Place { lane, position } = places[row];
        let queries = &qkv[row * config.qkv_width() + head * group..][..group];
        let first = config.windows[layer].map_or(0, |window| (position + 1).saturating_sub(window));
        let head = HeadCache { first, ..cache.head(HeadPlace { lane, layer, head }) };
        attention::attend(queries, head, position + 1, scores, out);
    });
    out
}

/// The backend's own tensor. All tensors here were made by [`wrap`] or by burn from such ones, so they are the CPU's.
fn primitive<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("every tensor of the model is on burn-flex")
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("rows made or selected as a whole are contiguous f32")
}

fn wrap(values: Vec<f32>, width: usize) -> Tensor<2> {
    let shape = [values.len() / width, width];
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(values, shape)))
}
