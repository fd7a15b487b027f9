//! The forward pass of Llama's architecture and its relatives (Touvron et al. 2023) over ragged batches.

use burn::tensor::Tensor;
use parlance_inference_engine::{Block, BlockCopy, EngineError, Lane, LaneInput, TokenModel};

use crate::{
    blocks::{BLOCK_TOKENS, BlockTables},
    config::LlamaConfig,
    kv::KvCache,
    ops::{self, Layers, Place, Workspace},
    rope::Rope,
    weights::Weights,
};

/// Rows of logits that are computed at once where every position's are wanted.
const LOGIT_ROWS: usize = 32;

/// A model with the keys and values of its lanes. All rows of a step, whatever their lanes, form one matrix; nothing is padded.
#[derive(Debug)]
pub struct LlamaModel {
    config: LlamaConfig,
    weights: Weights,
    rope: Rope,
    cache: KvCache,
    workspace: Workspace,
    context: usize,
}

impl LlamaModel {
    pub(crate) fn new(config: LlamaConfig, weights: Weights, cache: KvCache, context: usize) -> Self {
        let rope = Rope::new(&config.rope, config.head, context);
        let workspace = Workspace::default();
        Self { config, weights, rope, cache, workspace, context }
    }

    /// How much memory the keys and values take when all blocks are full, in bytes.
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
        check_inputs(inputs, &self.cache.tables, self.context, self.config.vocabulary)?;
        let hidden = self.forward(inputs);
        let numbers =
            inputs.iter().enumerate().flat_map(|(at, input)| (0..input.tokens.len()).map(move |token| (at, token)));
        let numbers: Vec<_> = numbers.collect();
        let mut logits = Vec::new();
        for (chunk, numbers) in numbers.chunks(LOGIT_ROWS).enumerate() {
            let begin = chunk * LOGIT_ROWS;
            let rows: Vec<usize> = (begin..begin + numbers.len()).collect();
            self.logits(hidden.clone(), &rows, &mut logits);
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
        let Self { config, weights, rope, cache, workspace, .. } = self;
        let mut x = ops::embed(&weights.embedding, &tokens);
        let mut layers = Layers { config, rope, cache, workspace, places: &places };
        for (number, layer) in weights.layers.iter().enumerate() {
            x = layers.layer(x, number, layer);
        }
        for input in inputs {
            self.cache.tables.fill(input.lane, input.start, input.start + input.tokens.len());
        }
        x
    }

    /// Writes the logits of `rows` of `hidden`.
    fn logits(&mut self, hidden: Tensor<2>, rows: &[usize], logits: &mut Vec<f32>) {
        // Not cleared: every value is written, and clearing takes as long as the product of one row.
        logits.resize(rows.len() * self.config.vocabulary, 0.0);
        let norm = (&self.weights.output_norm[..], self.config.rms_epsilon);
        ops::logits(hidden, rows, norm, self.weights.output(), &mut self.workspace, logits);
    }
}

impl TokenModel for LlamaModel {
    fn lanes(&self) -> usize {
        self.cache.tables.lanes()
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn blocks(&self) -> usize {
        self.cache.tables.blocks()
    }

    fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.cache.tables.place(lane, blocks);
    }

    fn copy(&mut self, copy: BlockCopy) {
        self.cache.copy(copy);
    }

    fn context_tokens(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        check_inputs(inputs, &self.cache.tables, self.context, self.config.vocabulary)?;
        if inputs.is_empty() {
            logits.clear();
            return Ok(());
        }
        let hidden = self.forward(inputs);
        self.logits(hidden, &wanted_rows(inputs), logits);
        Ok(())
    }
}

fn places<'a>(input: &LaneInput<'a>) -> impl Iterator<Item = Place> + use<'a> {
    let LaneInput { lane, start, tokens, .. } = *input;
    (start..start + tokens.len()).map(move |position| Place { lane, position })
}

/// The rows of a step after which logits are wanted.
fn wanted_rows(inputs: &[LaneInput<'_>]) -> Vec<usize> {
    let mut end = 0;
    let rows = inputs.iter().flat_map(|input| {
        end += input.tokens.len();
        end - input.logits..end
    });
    rows.collect()
}

/// Refuses inputs that would read or write what is not the lane's own.
pub(crate) fn check_inputs(
    inputs: &[LaneInput<'_>],
    tables: &BlockTables,
    context: usize,
    vocabulary: usize,
) -> Result<(), EngineError> {
    let mut seen = vec![false; tables.lanes()];
    for input in inputs {
        let LaneInput { lane, start, tokens, logits } = *input;
        if lane >= seen.len() || std::mem::replace(&mut seen[lane], true) {
            return Err(failed(format!("lane {lane} does not exist or appears twice in one step")));
        }
        let count = tokens.len();
        if count == 0 || count > context.saturating_sub(start) || !tables.fits(lane, start, start + count) {
            return Err(failed(format!("{count} tokens at {start} do not fit lane {lane}")));
        }
        if logits > count {
            return Err(failed(format!("{logits} rows of logits are wanted of {count} tokens")));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(failed(format!("there is no token {token}")));
        }
    }
    Ok(())
}

pub(crate) fn failed(what: impl Into<String>) -> EngineError {
    EngineError::ModelFailed(what.into())
}
