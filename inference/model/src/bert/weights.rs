//! The weights of a BERT model, packed for the kernels.

use super::config::BertConfig;
use crate::{
    ModelError,
    matrix::Matrix,
    precision::Numbers,
    tensors::Tensors,
    weights::{Rows, WeightReader, pack_rows},
};

/// All weights of a model.
#[derive(Debug)]
pub(super) struct BertWeights {
    pub(super) words: Matrix,
    /// What is added to a word's row, by its position: `[positions, hidden]`.
    pub(super) positions: Vec<f32>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<BertLayer>,
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct BertLayer {
    /// Queries, keys and values in one product.
    pub(super) qkv: Affine,
    pub(super) attention_output: Affine,
    pub(super) attention_norm: Norm,
    pub(super) up: Affine,
    pub(super) down: Affine,
    pub(super) output_norm: Norm,
}

/// A linear map with a bias.
#[derive(Debug)]
pub(super) struct Affine {
    pub(super) weight: Matrix,
    pub(super) bias: Vec<f32>,
}

/// The weights of a layer norm.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// What transformers saves and no vector depends on.
pub(super) fn is_ignored(name: &str) -> bool {
    name == "embeddings.position_ids" || name.starts_with("pooler.")
}

impl BertWeights {
    /// Reads all tensors; `progress` hears the bytes that are done.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if a tensor is missing, has another shape, or belongs to nothing that would be computed.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        config: &BertConfig,
        numbers: Numbers,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, ModelError> {
        let make = |rows: &Rows<'_>| pack_rows(rows, numbers);
        let reader = WeightReader::new(tensors, &make, progress);
        let hidden = config.hidden;
        let words = reader.matrix(&[("embeddings.word_embeddings.weight", config.vocabulary)], hidden)?;
        let mut positions = reader.rows("embeddings.position_embeddings.weight", config.positions, hidden)?;
        let kinds = reader.rows("embeddings.token_type_embeddings.weight", config.kinds, hidden)?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&kinds).for_each(|(position, kind)| *position += kind);
        }
        let embedding_norm = read_norm(&reader, "embeddings.LayerNorm", hidden)?;
        let layers = (0..config.layers).map(|layer| read_layer(&reader, config, layer)).collect::<Result<_, _>>()?;
        reader.check_that_all_were_read()?;
        Ok(Self { words, positions, embedding_norm, layers })
    }

    /// What the matrices take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of_layer = |layer: &BertLayer| {
            [&layer.qkv, &layer.attention_output, &layer.up, &layer.down]
                .map(|map| map.weight.bytes())
                .iter()
                .sum::<usize>()
        };
        let layers: usize = self.layers.iter().map(of_layer).sum();
        self.words.bytes() + self.positions.len() * size_of::<f32>() + layers
    }
}

fn read_layer(reader: &WeightReader<'_, Matrix>, config: &BertConfig, layer: usize) -> Result<BertLayer, ModelError> {
    let name = |part: &str| format!("encoder.layer.{layer}.{part}");
    let (hidden, wide) = (config.hidden, config.feed_forward);
    let of_self = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
    let qkv: Vec<(&str, usize)> = of_self.iter().map(|part| (part.as_str(), hidden)).collect();
    Ok(BertLayer {
        qkv: read_affine(reader, &qkv, hidden)?,
        attention_output: read_affine(reader, &[(&name("attention.output.dense"), hidden)], hidden)?,
        attention_norm: read_norm(reader, &name("attention.output.LayerNorm"), hidden)?,
        up: read_affine(reader, &[(&name("intermediate.dense"), wide)], hidden)?,
        down: read_affine(reader, &[(&name("output.dense"), hidden)], wide)?,
        output_norm: read_norm(reader, &name("output.LayerNorm"), hidden)?,
    })
}

/// Several maps over the same inputs as one, their outputs in order.
fn read_affine(
    reader: &WeightReader<'_, Matrix>,
    parts: &[(&str, usize)],
    inputs: usize,
) -> Result<Affine, ModelError> {
    let names: Vec<String> = parts.iter().map(|(name, _)| format!("{name}.weight")).collect();
    let weights: Vec<_> = names.iter().zip(parts).map(|(name, (_, outputs))| (name.as_str(), *outputs)).collect();
    let weight = reader.matrix(&weights, inputs)?;
    let biases = parts.iter().map(|(name, outputs)| reader.vector(&format!("{name}.bias"), *outputs));
    Ok(Affine { weight, bias: biases.collect::<Result<Vec<_>, _>>()?.concat() })
}

fn read_norm(reader: &WeightReader<'_, Matrix>, name: &str, width: usize) -> Result<Norm, ModelError> {
    let part = |part: &str| reader.vector(&format!("{name}.{part}"), width);
    Ok(Norm { weight: part("weight")?, bias: part("bias")? })
}
