//! The forward pass in burn's own operations, over one padded batch.
//!
//! Products run in the model's numbers; everything between them (residual stream, norms, rotary embedding, softmax, SwiGLU) in f32, whose
//! range activations need: some models have a few that f16 could not sum.

use std::ops::Range;

use burn::tensor::{
    Bool, DType, Device, FloatDType, Int, Tensor, TensorData,
    activation::{silu, softmax},
};

use super::{
    buckets::Shape,
    indices::{Indices, Layout},
    kv::KvLayers,
    weights::{RopeTensors, TensorLayer, TensorWeights},
};
use crate::{config::LlamaConfig, rope::Pairing};

/// What is added to the score of a position that may not be attended to: far below any score, and a number that every device can write.
const MASKED: f32 = -1e30;

/// What a forward pass reads.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) config: LlamaConfig,
    pub(super) weights: TensorWeights,
    pub(super) rope: RopeTensors,
    /// What products are computed in.
    pub(super) dtype: FloatDType,
    pub(super) device: Device,
}

/// What all layers of one pass share.
struct Batch {
    shape: Shape,
    /// Cosines and sines of every row, `[rows, 1, 1, pairs]`.
    turns: [Tensor<4>; 2],
    /// Where keys and values are written: slot and position, `[rows · heads, 2]`.
    places: Tensor<2, Int>,
    /// The slots of all keys of every lane's heads, `[lanes · heads · blocks]`.
    slots: Tensor<1, Int>,
    /// For each window that a layer has, what is added to the scores: `[lanes, 1, tokens, keys]`.
    masks: Vec<(Option<usize>, Tensor<4>)>,
}

impl Network {
    /// The residual stream after the last layer, `[rows, hidden]`, of the pass that `indices` describes.
    pub(super) fn forward(&self, shape: Shape, indices: &Tensor<1, Int>, cache: &mut KvLayers) -> Tensor<2> {
        let layout = Layout::new(shape, self.config.kv_heads);
        let batch = self.batch(shape, &layout, indices);
        let tokens = indices.clone().slice(layout.tokens);
        let mut x = self.weights.embedding.clone().select(0, tokens).cast(FloatDType::F32);
        for (number, layer) in self.weights.layers.iter().enumerate() {
            let normed = self.norm(x.clone(), &layer.attention_norm);
            let attended = self.attention(normed, number, layer, &batch, cache);
            x = x + self.linear(attended, &layer.attention_output);
            let normed = self.norm(x.clone(), &layer.feed_forward_norm);
            let gate_up = self.linear(normed, &layer.gate_up);
            x = x + self.linear(swiglu(&gate_up, self.config.feed_forward), &layer.down);
        }
        x
    }

    /// The logits of rows of the residual stream, `[rows, vocabulary]` in f32.
    pub(super) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.linear(self.norm(hidden, &self.weights.output_norm), &self.weights.output)
    }

    /// Brings what describes a pass to the device.
    pub(super) fn upload(&self, indices: Indices) -> Tensor<1, Int> {
        self.ints(indices.0)
    }

    pub(super) fn ints(&self, values: Vec<i64>) -> Tensor<1, Int> {
        let shape = [values.len()];
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    fn attention(
        &self,
        normed: Tensor<2>,
        number: usize,
        layer: &TensorLayer,
        batch: &Batch,
        cache: &mut KvLayers,
    ) -> Tensor<2> {
        let LlamaConfig { heads, kv_heads, head, .. } = self.config;
        let mut qkv = self.linear(normed, &layer.qkv);
        if let Some(bias) = &layer.qkv_bias {
            qkv = qkv + bias.clone().unsqueeze();
        }
        let norms = layer.head_norms.as_ref();
        let queries = self.turned_heads(&qkv, 0..heads, norms.map(|[queries, _]| queries), batch);
        let keys = self.turned_heads(&qkv, heads..heads + kv_heads, norms.map(|[_, keys]| keys), batch);
        let values = columns(&qkv, (heads + kv_heads) * head, kv_heads * head);
        let new_rows = [batch.shape.rows() * kv_heads, head];
        let new = [keys.reshape(new_rows), values.reshape(new_rows)].map(|new| new.cast(self.dtype));
        cache.write(number, &batch.places, new);
        self.attend(queries, number, batch, cache)
    }

    /// Some heads of queries or keys, normed where the family does so, and turned: `[rows, heads, head]`.
    fn turned_heads(&self, qkv: &Tensor<2>, heads: Range<usize>, norm: Option<&Tensor<1>>, batch: &Batch) -> Tensor<3> {
        let (head, rows) = (self.config.head, batch.shape.rows());
        let mut x = columns(qkv, heads.start * head, heads.len() * head).reshape([rows, heads.len(), head]);
        if let Some(weight) = norm {
            x = self.norm(x, weight);
        }
        self.turn(x, batch)
    }

    /// Attention of turned queries over what the cache holds. The query heads of one head of keys and values are rows of one product.
    fn attend(&self, queries: Tensor<3>, number: usize, batch: &Batch, cache: &KvLayers) -> Tensor<2> {
        let LlamaConfig { heads, kv_heads, head, .. } = self.config;
        let (Shape { lanes, tokens, keys: count }, group) = (batch.shape, self.config.group());
        let [keys, values] = cache.read(number, &batch.slots, lanes * kv_heads);
        let queries = queries.mul_scalar((head as f32).sqrt().recip()).reshape([lanes, tokens, kv_heads, group, head]);
        let queries = queries.permute([0, 2, 3, 1, 4]).reshape([lanes * kv_heads, group * tokens, head]);
        let scores = queries.cast(self.dtype).matmul(keys.swap_dims(1, 2)).cast(FloatDType::F32);
        let scores = scores.reshape([lanes, heads, tokens, count]) + batch.mask(self.config.windows[number]);
        let shares = softmax(scores, 3).reshape([lanes * kv_heads, group * tokens, count]);
        let out = shares.cast(self.dtype).matmul(values).cast(FloatDType::F32);
        let out = out.reshape([lanes, kv_heads, group, tokens, head]).permute([0, 3, 1, 2, 4]);
        out.reshape([lanes * tokens, heads * head])
    }

    /// `x · Wᵀ`: `[rows, inputs]` to `[rows, outputs]`, from f32 to f32, the parts of the inputs side by side.
    fn linear(&self, x: Tensor<2>, weight: &Tensor<3>) -> Tensor<2> {
        let ([rows, _], [parts, outputs, inputs]) = (x.dims(), weight.dims());
        let x = x.cast(self.dtype).reshape([rows, parts, inputs]).swap_dims(0, 1);
        let sums = x.matmul(weight.clone().swap_dims(1, 2)).cast(FloatDType::F32);
        let sum = if parts == 1 { sums } else { sums.sum_dim(0) };
        sum.reshape([rows, outputs])
    }

    /// Root-mean-square norm over the last dimension, times `weight`.
    fn norm<const D: usize>(&self, x: Tensor<D>, weight: &Tensor<1>) -> Tensor<D> {
        let mean = x.clone().square().mean_dim(D - 1).add_scalar(self.config.rms_epsilon);
        x * mean.sqrt().recip() * weight.clone().unsqueeze()
    }

    /// The rotary embedding of `[rows, heads, head]`. Neighbours leave it as halves: scores do not depend on the order of a head's
    /// values, as long as queries and keys have the same.
    fn turn(&self, x: Tensor<3>, batch: &Batch) -> Tensor<3> {
        let [rows, heads, head] = x.dims();
        let pairs = match self.rope.pairing {
            Pairing::Halves => x.reshape([rows, heads, 2, head / 2]),
            Pairing::Neighbours => x.reshape([rows, heads, head / 2, 2]).swap_dims(2, 3),
        };
        let (a, b) = (pairs.clone().slice_dim(2, 0..1), pairs.slice_dim(2, 1..2));
        let [cosine, sine] = batch.turns.clone();
        let left = a.clone() * cosine.clone() - b.clone() * sine.clone();
        Tensor::cat(vec![left, a * sine + b * cosine], 2).reshape([rows, heads, head])
    }

    fn batch(&self, shape: Shape, layout: &Layout, indices: &Tensor<1, Int>) -> Batch {
        let part = |range: &Range<usize>| indices.clone().slice(range.clone());
        let positions = part(&layout.positions);
        let turns = [&self.rope.cosines, &self.rope.sines].map(|table| {
            let turns = table.clone().select(0, positions.clone());
            turns.unsqueeze_dims(&[1, 1])
        });
        let places = part(&layout.places).reshape([shape.rows() * self.config.kv_heads, 2]);
        let queries = positions.reshape([shape.lanes, 1, shape.tokens, 1]);
        let mut masks: Vec<(Option<usize>, Tensor<4>)> = Vec::new();
        for &window in &self.config.windows {
            if masks.iter().all(|(known, _)| *known != window) {
                masks.push((window, self.mask(shape, queries.clone(), window)));
            }
        }
        Batch { shape, turns, places, slots: part(&layout.slots), masks }
    }

    /// Positions after a row's own are masked, and those that its window leaves behind.
    fn mask(&self, shape: Shape, queries: Tensor<4, Int>, window: Option<usize>) -> Tensor<4> {
        let Shape { lanes, tokens, keys } = shape;
        let all = [lanes, 1, tokens, keys];
        let queries = queries.expand(all);
        let keys = Tensor::<1, Int>::arange(0..keys as i64, &self.device).reshape([1, 1, 1, keys]).expand(all);
        let mut masked: Tensor<4, Bool> = keys.clone().greater(queries.clone());
        if let Some(window) = window {
            masked = masked.bool_or(keys.add_scalar(window as i64).lower_equal(queries));
        }
        Tensor::zeros(all, (&self.device, DType::F32)).mask_fill(masked, MASKED)
    }
}

impl Batch {
    fn mask(&self, window: Option<usize>) -> Tensor<4> {
        let mask = self.masks.iter().find(|(known, _)| *known == window);
        mask.map(|(_, mask)| mask.clone()).expect("every window of the model has its mask")
    }
}

/// `silu(gate) · up` of rows that hold both side by side.
fn swiglu(gate_up: &Tensor<2>, width: usize) -> Tensor<2> {
    silu(columns(gate_up, 0, width)) * columns(gate_up, width, width)
}

/// `count` columns from `first` on.
fn columns(x: &Tensor<2>, first: usize, count: usize) -> Tensor<2> {
    x.clone().slice_dim(1, first..first + count)
}
