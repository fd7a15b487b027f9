//! The one door between burn's tensors and the kernels: each operation takes the residual stream apart to its rows, through burn's
//! `extension` feature, and computes in place.
//!
//! Between the operations nothing is allocated: what lies between two products is in a [`Workspace`] that lives as long as the model.

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexTensor};
use parlance_inference_engine::TokenId;
use parlance_inference_kernels::{
    Output, Scratch,
    attention::{Heads, Row, Span, attend_batch},
    copied, elementwise, team,
};

use crate::{
    config::LlamaConfig,
    kv::{HeadPlace, KvCache},
    matrix::Matrix,
    rope::Rope,
    weights::{HeadNorms, LayerWeights},
};

/// Rows that a task turns or looks up.
const ROWS_PER_TASK: usize = 8;

/// Where a row of a step stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lane: usize,
    pub(crate) position: usize,
}

/// What a step's rows pass through on their way, one row after the other. It grows to what the largest step takes.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Queries, keys and values side by side.
    qkv: Vec<f32>,
    attended: Vec<f32>,
    /// Gate and up side by side.
    gate_up: Vec<f32>,
    scratch: Scratch,
}

/// The rows of `table` for `tokens`: `[tokens, inputs]`.
pub(crate) fn embed(table: &Matrix, tokens: &[TokenId]) -> Tensor<2> {
    let width = table.inputs();
    let mut rows = vec![0.0; tokens.len() * width];
    team::each_chunk(&mut rows, ROWS_PER_TASK * width, |number, rows| {
        let tokens = &tokens[number * ROWS_PER_TASK..];
        rows.chunks_exact_mut(width).zip(tokens).for_each(|(row, &token)| table.row(token as usize, row));
    });
    let shape = [tokens.len(), width];
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(rows, shape)))
}

/// What the layers of a model share in one step.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    pub(crate) config: &'a LlamaConfig,
    pub(crate) rope: &'a Rope,
    pub(crate) cache: &'a mut KvCache,
    pub(crate) workspace: &'a mut Workspace,
    /// Where each row stands. Rows of one lane are in order.
    pub(crate) places: &'a [Place],
}

impl Layers<'_> {
    /// One layer: attention and feed-forward, each added to the residual stream `[rows, hidden]`.
    pub(crate) fn layer(&mut self, x: Tensor<2>, number: usize, weights: &LayerWeights) -> Tensor<2> {
        let mut x = primitive(x);
        self.attention(x.storage_mut(), number, weights);
        self.feed_forward(x.storage_mut(), weights);
        Tensor::from_primitive::<Flex>(x)
    }

    /// Causal attention of every row over its own lane, whose keys and values are first completed by the rows' own.
    fn attention(&mut self, x: &mut [f32], number: usize, weights: &LayerWeights) {
        let (rows, width) = (self.places.len(), self.config.qkv_width());
        let Workspace { qkv, attended, scratch, .. } = &mut *self.workspace;
        qkv.resize(rows * width, 0.0);
        let normed = normed(x, &weights.attention_norm, self.config.rms_epsilon);
        weights.qkv.multiply(rows, normed, scratch, Output::Set(qkv));
        let (config, rope, places) = (self.config, self.rope, self.places);
        team::each_chunk(qkv, ROWS_PER_TASK * width, |number, rows| {
            let places = &places[number * ROWS_PER_TASK..];
            rows.chunks_exact_mut(width).zip(places).for_each(|(row, place)| turn(row, place, weights, config, rope));
        });
        let (heads, kept) = (config.heads * config.head, config.kv_heads * config.head);
        self.cache.write(number, places, |row, head| {
            let (keys, values) = qkv[row * width + heads..][..2 * kept].split_at(kept);
            (&keys[head * config.head..][..config.head], &values[head * config.head..][..config.head])
        });
        attended.resize(rows * heads, 0.0);
        attend(qkv, places, number, config, self.cache, attended);
        weights.attention_output.multiply(rows, copied(attended, heads), scratch, Output::Add(x));
    }

    /// The feed-forward part, gated by SiLU.
    fn feed_forward(&mut self, x: &mut [f32], weights: &LayerWeights) {
        let (rows, wide) = (self.places.len(), self.config.feed_forward);
        let Workspace { gate_up, scratch, .. } = &mut *self.workspace;
        gate_up.resize(rows * 2 * wide, 0.0);
        let normed = normed(x, &weights.feed_forward_norm, self.config.rms_epsilon);
        weights.gate_up.multiply(rows, normed, scratch, Output::Set(gate_up));
        let gated = |row: usize, values: &mut [f32]| {
            let (gate, up) = gate_up[row * 2 * wide..][..2 * wide].split_at(wide);
            elementwise::swiglu(gate, up, values);
        };
        weights.down.multiply(rows, gated, scratch, Output::Add(x));
    }
}

/// Writes `rows` of the residual stream, normed and mapped to logits, to `logits`: `[rows, vocabulary]`.
pub(crate) fn logits(
    x: Tensor<2>,
    rows: &[usize],
    norm: (&[f32], f32),
    output: &Matrix,
    workspace: &mut Workspace,
    logits: &mut [f32],
) {
    let x = primitive(x);
    let x = x.as_slice().expect("the residual stream is f32 and contiguous");
    let normed = normed(x, norm.0, norm.1);
    let selected = |row: usize, values: &mut [f32]| normed(rows[row], values);
    output.multiply(rows.len(), selected, &mut workspace.scratch, Output::Set(logits));
}

/// Attention of the rows over their lanes.
fn attend(qkv: &[f32], places: &[Place], layer: usize, config: &LlamaConfig, cache: &KvCache, out: &mut [f32]) {
    let heads = Heads { count: config.kv_heads, group: config.group(), dimension: config.head };
    let row = |&Place { lane, position }: &Place| {
        let first = config.windows[layer].map_or(0, |window| (position + 1).saturating_sub(window));
        Row { lane, span: Span { first, end: position + 1 } }
    };
    let rows: Vec<Row> = places.iter().map(row).collect();
    let cache = |lane, head| cache.head(HeadPlace { lane, layer, head });
    attend_batch((qkv, config.qkv_width()), heads, &rows, cache, out);
}

/// Root-mean-square norms of rows.
fn normed(x: &[f32], weight: &[f32], epsilon: f32) -> impl Fn(usize, &mut [f32]) + Sync {
    let width = weight.len();
    move |row, values| elementwise::rms_norm(&x[row * width..][..width], weight, epsilon, values)
}

/// What becomes of a row of queries, keys and values before they meet: the bias (Qwen2), the norms of heads (Qwen3), the rotation.
fn turn(row: &mut [f32], place: &Place, weights: &LayerWeights, config: &LlamaConfig, rope: &Rope) {
    if let Some(bias) = &weights.qkv_bias {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
    if let Some(norms) = &weights.head_norms {
        norm_heads(row, norms, config);
    }
    rope.turn(place.position, &mut row[..(config.heads + config.kv_heads) * config.head]);
}

fn norm_heads(row: &mut [f32], norms: &HeadNorms, config: &LlamaConfig) {
    let (queries, rest) = row.split_at_mut(config.heads * config.head);
    let keys = &mut rest[..config.kv_heads * config.head];
    let mut before = vec![0.0; config.head];
    for (heads, weight) in [(queries, &norms.queries), (keys, &norms.keys)] {
        for head in heads.chunks_exact_mut(config.head) {
            before.copy_from_slice(head);
            elementwise::rms_norm(&before, weight, config.rms_epsilon, head);
        }
    }
}

/// The backend's own tensor. The residual stream is made by [`embed`], so it is the CPU's.
fn primitive(tensor: Tensor<2>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("every tensor of the model is on burn-flex")
}
