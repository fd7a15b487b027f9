//! The forward pass of Llama's architecture and its relatives (Touvron et al. 2023) over ragged batches.

use burn::tensor::{Device, Int, Tensor, TensorData};
use parlance_inference_engine::{EngineError, LaneInput, TokenModel};

use crate::{
    config::LlamaConfig,
    kv::KvCache,
    ops::{self, Place},
    rope::Rope,
    weights::{LayerWeights, Weights},
};

/// Rows of logits that are computed at once where every position's are wanted.
const LOGIT_ROWS: usize = 32;

/// A model with the keys and values of its lanes. All rows of a step, whatever their lanes, form one matrix; nothing is padded.
#[derive(Debug)]
pub struct LlamaModel {
    config: LlamaConfig,
    device: Device,
    weights: Weights,
    rope: Rope,
    cache: KvCache,
    context: usize,
    /// How many positions of each lane are written.
    filled: Vec<usize>,
}

impl LlamaModel {
    pub(crate) fn new(
        config: LlamaConfig,
        device: Device,
        weights: Weights,
        cache: KvCache,
        lanes: usize,
        context: usize,
    ) -> Self {
        let rope = Rope::new(&config.rope, config.head, context);
        Self { config, device, weights, rope, cache, context, filled: vec![0; lanes] }
    }

    /// How much memory the keys and values of all lanes take when full, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// How much memory the matrices of weights take, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Computes one step as [`TokenModel::step`] does, but shows `visit` the logits after every token: the number of its input,
    /// its number in that input, and the row. For comparing with reference values; a server wants none of these but the last.
    ///
    /// # Errors
    ///
    /// As [`TokenModel::step`].
    pub fn step_every_position(
        &mut self,
        inputs: &[LaneInput<'_>],
        mut visit: impl FnMut(usize, usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(inputs)?;
        let hidden = rayon::scope(|_| self.forward(inputs));
        let numbers =
            inputs.iter().enumerate().flat_map(|(at, input)| (0..input.tokens.len()).map(move |token| (at, token)));
        let numbers: Vec<_> = numbers.collect();
        let mut logits = Vec::new();
        for (chunk, numbers) in numbers.chunks(LOGIT_ROWS).enumerate() {
            let begin = chunk * LOGIT_ROWS;
            let rows: Vec<usize> = (begin..begin + numbers.len()).collect();
            logits.clear();
            self.logits(hidden.clone(), &rows, &mut logits)?;
            for (&(input, token), row) in numbers.iter().zip(logits.chunks_exact(self.config.vocabulary)) {
                visit(input, token, row);
            }
        }
        Ok(())
    }

    /// The residual stream after the last layer, one row per token.
    fn forward(&mut self, inputs: &[LaneInput<'_>]) -> Tensor<2> {
        let tokens: Vec<_> = inputs.iter().flat_map(|input| input.tokens).copied().collect();
        let places: Vec<_> = inputs.iter().flat_map(places).collect();
        let Self { config, weights, rope, cache, .. } = self;
        let mut x = ops::embed(&weights.embedding, &tokens);
        for (number, layer) in weights.layers.iter().enumerate() {
            let normed = ops::rms_norm(x.clone(), &layer.attention_norm, config.rms_epsilon);
            let qkv = project(normed, layer, config);
            let attended = ops::attention(qkv, &places, number, config, rope, cache);
            x = x + ops::linear(attended, &layer.attention_output);
            let normed = ops::rms_norm(x.clone(), &layer.feed_forward_norm, config.rms_epsilon);
            let gated = ops::swiglu(ops::linear(normed, &layer.gate_up), config.feed_forward);
            x = x + ops::linear(gated, &layer.down);
        }
        for input in inputs {
            self.filled[input.lane] = input.start + input.tokens.len();
        }
        x
    }

    /// Appends the logits of `rows` of `hidden`.
    fn logits(&self, hidden: Tensor<2>, rows: &[usize], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        let numbers: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let count = numbers.len();
        let numbers = Tensor::<1, Int>::from_data(TensorData::new(numbers, [count]), &self.device);
        let selected = hidden.select(0, numbers);
        let normed = ops::rms_norm(selected, &self.weights.output_norm, self.config.rms_epsilon);
        let computed = ops::linear(normed, self.weights.output()).into_data();
        let computed = computed.as_slice::<f32>().map_err(|error| failed(format!("logits: {error}")))?;
        logits.extend_from_slice(computed);
        Ok(())
    }

    /// Refuses inputs that would read or write what is not the lane's own.
    fn check(&self, inputs: &[LaneInput<'_>]) -> Result<(), EngineError> {
        let mut seen = vec![false; self.filled.len()];
        for input in inputs {
            let LaneInput { lane, start, tokens, .. } = *input;
            if lane >= seen.len() || std::mem::replace(&mut seen[lane], true) {
                return Err(failed(format!("lane {lane} does not exist or appears twice in one step")));
            }
            if tokens.is_empty() || start > self.filled[lane] || tokens.len() > self.context.saturating_sub(start) {
                let (filled, count) = (self.filled[lane], tokens.len());
                return Err(failed(format!("{count} tokens at {start} do not fit lane {lane}, which holds {filled}")));
            }
            if let Some(token) = tokens.iter().find(|token| **token as usize >= self.config.vocabulary) {
                return Err(failed(format!("there is no token {token}")));
            }
        }
        Ok(())
    }
}

impl TokenModel for LlamaModel {
    fn lanes(&self) -> usize {
        self.filled.len()
    }

    fn context_tokens(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        logits.clear();
        self.check(inputs)?;
        if inputs.is_empty() {
            return Ok(());
        }
        // Within the pool, forks are cheap; from outside, each would be handed over by a lock.
        rayon::scope(|_| {
            let hidden = self.forward(inputs);
            let rows = wanted_rows(inputs);
            if rows.is_empty() { Ok(()) } else { self.logits(hidden, &rows, logits) }
        })
    }
}

/// Queries, keys and values side by side, before the rotary embedding.
fn project(normed: Tensor<2>, layer: &LayerWeights, config: &LlamaConfig) -> Tensor<2> {
    let mut qkv = ops::linear(normed, &layer.qkv);
    if let Some(bias) = &layer.qkv_bias {
        qkv = ops::add_bias(qkv, bias);
    }
    if let Some(norms) = &layer.head_norms {
        qkv = ops::norm_heads(qkv, norms, config);
    }
    qkv
}

fn places<'a>(input: &LaneInput<'a>) -> impl Iterator<Item = Place> + use<'a> {
    let LaneInput { lane, start, tokens, .. } = *input;
    (start..start + tokens.len()).map(move |position| Place { lane, position })
}

/// The rows of a step after which logits are wanted.
fn wanted_rows(inputs: &[LaneInput<'_>]) -> Vec<usize> {
    let mut end = 0;
    let rows = inputs.iter().filter_map(|input| {
        end += input.tokens.len();
        input.want_logits.then_some(end - 1)
    });
    rows.collect()
}

fn failed(what: impl Into<String>) -> EngineError {
    EngineError::ModelFailed(what.into())
}
