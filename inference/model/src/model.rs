//! A loaded model, whatever computes it.

use parlance_inference_engine::{Block, BlockCopy, EngineError, Lane, LaneInput, TokenModel};

use crate::{llama::LlamaModel, tensor::TensorModel};

/// A loaded model with the keys and values of its lanes.
#[derive(Debug)]
pub enum Model {
    /// On the processor, by our own kernels.
    Kernels(Box<LlamaModel>),
    /// On another device, by burn's operations.
    Tensors(Box<TensorModel>),
}

impl Model {
    /// How much memory the keys and values of all lanes take when full, in bytes.
    pub fn cache_bytes(&self) -> usize {
        match self {
            Self::Kernels(model) => model.cache_bytes(),
            Self::Tensors(model) => model.cache_bytes(),
        }
    }

    /// How much memory the matrices of weights take, in bytes.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Kernels(model) => model.weight_bytes(),
            Self::Tensors(model) => model.weight_bytes(),
        }
    }

    fn inner(&self) -> &dyn TokenModel {
        match self {
            Self::Kernels(model) => &**model,
            Self::Tensors(model) => &**model,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn TokenModel {
        match self {
            Self::Kernels(model) => &mut **model,
            Self::Tensors(model) => &mut **model,
        }
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
        let model = match self {
            Self::Kernels(model) => return model.step_every_position(inputs, visit),
            Self::Tensors(model) => model,
        };
        let mut logits = Vec::new();
        model.compute(inputs, |input| input.tokens.len(), &mut logits)?;
        let numbers = inputs.iter().enumerate().flat_map(|(at, input)| (0..input.tokens.len()).map(move |to| (at, to)));
        for ((input, token), row) in numbers.zip(logits.chunks_exact(model.vocabulary())) {
            visit(input, token, row);
        }
        Ok(())
    }
}

impl TokenModel for Model {
    fn lanes(&self) -> usize {
        self.inner().lanes()
    }

    fn context_tokens(&self) -> usize {
        self.inner().context_tokens()
    }

    fn vocabulary(&self) -> usize {
        self.inner().vocabulary()
    }

    fn block_tokens(&self) -> usize {
        self.inner().block_tokens()
    }

    fn blocks(&self) -> usize {
        self.inner().blocks()
    }

    fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.inner_mut().place(lane, blocks);
    }

    fn copy(&mut self, copy: BlockCopy) {
        self.inner_mut().copy(copy);
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        self.inner_mut().step(inputs, logits)
    }
}
