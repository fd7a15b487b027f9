//! BERT and its relatives (Devlin et al. 2019) as models that embed texts: one vector per text, from the hidden states of its tokens
//! (Reimers and Gurevych 2019).
//!
//! All texts of a step form one ragged matrix of hidden states; nothing is padded, and a text attends to itself alone.

mod codec;
mod config;
mod load;
mod pooling;
mod weights;

use burn::tensor::Tensor;
use parlance_inference_engine::{EmbeddingModel, EngineError, TokenId};

pub(crate) use self::load::describe;
pub use self::{
    codec::BertCodec,
    load::{LoadedEmbedder, load_embedder},
};
use self::{config::BertConfig, pooling::Pooling, weights::BertWeights};
use crate::ops;

/// A model that embeds texts.
#[derive(Debug)]
pub struct BertModel {
    config: BertConfig,
    pooling: Pooling,
    weights: BertWeights,
}

impl BertModel {
    /// How much memory the matrices of weights take, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// The hidden states behind the last layer, one row per token.
    fn forward(&self, texts: &[&[TokenId]]) -> Tensor<2> {
        let Self { config, weights, .. } = self;
        let (tokens, lengths) = (texts.concat(), texts.iter().map(|text| text.len()).collect::<Vec<_>>());
        let embedded = ops::add_positions(ops::embed(&weights.words, &tokens), &weights.positions, &lengths);
        let mut x = ops::layer_norm(embedded, &weights.embedding_norm, config.norm_epsilon);
        for layer in &weights.layers {
            let qkv = layer.qkv.apply(x.clone());
            let attended = ops::attend_within(qkv, &lengths, config.heads);
            x = ops::layer_norm(layer.attention_output.apply(attended) + x, &layer.attention_norm, config.norm_epsilon);
            let widened = ops::gelu(layer.up.apply(x.clone()));
            x = ops::layer_norm(layer.down.apply(widened) + x, &layer.output_norm, config.norm_epsilon);
        }
        x
    }

    fn check(&self, texts: &[&[TokenId]]) -> Result<(), EngineError> {
        let failed = |what| Err(EngineError::ModelFailed(what));
        for text in texts {
            if text.is_empty() || text.len() > self.config.context {
                return failed(format!("a text of {} tokens is not one of 1 to {}", text.len(), self.config.context));
            }
            if let Some(token) = text.iter().find(|token| **token as usize >= self.config.vocabulary) {
                return failed(format!("there is no token {token}"));
            }
        }
        Ok(())
    }
}

impl EmbeddingModel for BertModel {
    fn dimensions(&self) -> usize {
        self.config.hidden
    }

    fn embed(&mut self, texts: &[&[TokenId]], vectors: &mut Vec<f32>) -> Result<(), EngineError> {
        vectors.clear();
        self.check(texts)?;
        if texts.is_empty() {
            return Ok(());
        }
        // Within the pool, forks are cheap; from outside, each would be handed over by a lock.
        let hidden = rayon::scope(|_| self.forward(texts)).into_data();
        let hidden = hidden.as_slice::<f32>();
        let mut rest = hidden.map_err(|error| EngineError::ModelFailed(format!("hidden states: {error}")))?;
        for text in texts {
            let (rows, others) = rest.split_at(text.len() * self.config.hidden);
            self.pooling.pool(rows, self.config.hidden, vectors);
            rest = others;
        }
        Ok(())
    }
}
