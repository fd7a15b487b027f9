//! Models of Llama's architecture and its relatives, and of BERT's for embeddings, read from GGUF files or safetensors directories and
//! run by burn: weights, tokenizer, chat template, forward pass.
//!
//! [`load`] turns a file or a directory into a [`LoadedModel`]: a model for the engine's thread and a codec to share; [`load_embedder`]
//! does so for models that embed, and [`kind`] tells which of both a model is for. The device is picked in one place, the module
//! `device`. On the processor the hot operations have one door to burn's backend, the module `ops`; on other devices the forward pass is in
//! burn's own operations, the module `tensor`. Models that embed run on the processor, by the kernels alone.

mod bert;
mod blocks;
mod checkpoint;
mod codec;
mod config;
mod device;
mod error;
mod gguf;
mod kv;
mod llama;
mod load;
mod matrix;
mod model;
mod ops;
mod precision;
mod rope;
mod source;
mod template;
mod tensor;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;
mod weights;

pub use bert::{BertCodec, BertModel, LoadedEmbedder, load_embedder};
pub use codec::ChatCodec;
pub use device::{DeviceChoice, UnknownDevice};
pub use error::ModelError;
pub use llama::LlamaModel;
pub use load::{Footprint, LoadOptions, LoadProgress, LoadStage, LoadedModel, inspect, kind, load};
pub use model::Model;
pub use precision::{Precision, UnknownPrecision};
pub use tensor::TensorModel;

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
