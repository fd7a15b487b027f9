//! BERT and its relatives (Devlin et al. 2019) as models that embed texts: one vector per text, from the hidden states of its tokens
//! (Reimers and Gurevych 2019).
//!
//! All texts of a step form one ragged matrix of hidden states; nothing is padded, and a text attends to itself alone.

mod codec;
mod config;
mod forward;
mod load;
mod pooling;
mod weights;

use parlance_inference_engine::{EmbeddingModel, EngineError, TokenId};

pub(crate) use self::load::describe;
pub use self::{
    codec::BertCodec,
    load::{LoadedEmbedder, load_embedder},
};
use self::{
    config::BertConfig,
    forward::{Forward, Workspace},
    pooling::Pooling,
    weights::BertWeights,
};

/// A model that embeds texts.
#[derive(Debug)]
pub struct BertModel {
    config: BertConfig,
    pooling: Pooling,
    weights: BertWeights,
    workspace: Workspace,
}

impl BertModel {
    /// How much memory the matrices of weights take, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
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
        let Self { config, weights, workspace, .. } = self;
        let mut rest = Forward { config, weights, workspace, texts }.hidden();
        for text in texts {
            let (rows, others) = rest.split_at(text.len() * config.hidden);
            self.pooling.pool(rows, config.hidden, vectors);
            rest = others;
        }
        Ok(())
    }
}
