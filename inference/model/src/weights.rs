//! Reads the tensors of a model into weights: matrices in the form of whoever computes with them, and vectors.

use std::{collections::HashSet, sync::Mutex};

use parlance_inference_kernels::{
    BLOCK, PANEL,
    int4::{Block, Int4Matrix},
    int8::Int8Matrix,
    linear::F32Matrix,
};
use rayon::prelude::*;

use crate::{
    ModelError,
    config::LlamaConfig,
    gguf::{TensorInfo, dequantise, four_bits},
    matrix::Matrix,
    precision::Numbers,
    rope::Scaling,
    tensors::{ROPE_FACTORS, Tensors},
};

/// All weights of a model, its matrices as `M`: packed for the kernels, or burn's own.
#[derive(Debug)]
pub(crate) struct Weights<M = Matrix> {
    pub(crate) embedding: M,
    pub(crate) layers: Vec<LayerWeights<M>>,
    pub(crate) output_norm: Vec<f32>,
    /// The map to logits, where it is not the embedding.
    pub(crate) output: Option<M>,
}

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct LayerWeights<M = Matrix> {
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values in one product.
    pub(crate) qkv: M,
    /// What is added to them, where the family has it.
    pub(crate) qkv_bias: Option<Vec<f32>>,
    /// The norms of each head of queries and of keys, where the family has them.
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) attention_output: M,
    pub(crate) feed_forward_norm: Vec<f32>,
    /// Gate and up in one product.
    pub(crate) gate_up: M,
    pub(crate) down: M,
}

/// The weights of the norms of heads, one head wide.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
}

impl<M> Weights<M> {
    /// Reads all tensors and has `make` form each matrix; `progress` hears the bytes of the file that are done.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if a tensor is missing, has another shape, or belongs to nothing that would be computed.
    pub(crate) fn read(
        tensors: &Tensors<'_>,
        config: &LlamaConfig,
        make: &(dyn Fn(&Rows<'_>) -> M + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, ModelError> {
        let reader = WeightReader::new(tensors, make, progress);
        let hidden = config.hidden;
        let embedding = reader.matrix(&[("token_embd.weight", config.vocabulary)], hidden)?;
        let layers = (0..config.layers).map(|layer| read_layer(&reader, config, layer)).collect::<Result<_, _>>()?;
        let output_norm = reader.vector("output_norm.weight", hidden)?;
        let output = match config.tied {
            true => None,
            false => Some(reader.matrix(&[("output.weight", config.vocabulary)], hidden)?),
        };
        if let (Scaling::Factors(_), Some(factors)) = (&config.rope.scaling, tensors.get(ROPE_FACTORS)) {
            reader.done(factors);
        }
        reader.check_that_all_were_read()?;
        Ok(Self { embedding, layers, output_norm, output })
    }

    /// The map to logits.
    pub(crate) fn output(&self) -> &M {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix, once.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &M> {
        let layers = self.layers.iter();
        let layers = layers.flat_map(|layer| [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down]);
        layers.chain([&self.embedding]).chain(&self.output)
    }
}

impl Weights {
    /// What the matrices take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum()
    }
}

/// Forms matrices for the kernels.
pub(crate) fn pack_rows(rows: &Rows<'_>, numbers: Numbers) -> Matrix {
    let (inputs, outputs) = (rows.inputs, rows.outputs());
    match numbers {
        Numbers::F32 => {
            let mut matrix = F32Matrix::new(inputs, outputs);
            rows.each_panel(matrix.panels_mut(), |mut panel, values| panel.fill(values));
            Matrix::F32(matrix)
        }
        Numbers::Int4 if rows.have_four_bits() => {
            let mut matrix = Int4Matrix::new(inputs, outputs);
            rows.each_block(matrix.panels_mut(), |panel, lane, number, block| panel.set(lane, number, block));
            Matrix::Int4(matrix)
        }
        Numbers::Int8 | Numbers::Int4 => {
            let mut matrix = Int8Matrix::new(inputs, outputs);
            rows.each_panel(matrix.panels_mut(), |mut panel, values| panel.fill(values));
            Matrix::Int8(matrix)
        }
    }
}

fn read_layer<M>(
    reader: &WeightReader<'_, M>,
    config: &LlamaConfig,
    layer: usize,
) -> Result<LayerWeights<M>, ModelError> {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let (queries, keys) = (config.heads * config.head, config.kv_heads * config.head);
    let (hidden, wide) = (config.hidden, config.feed_forward);
    let qkv = [(&*name("attn_q"), queries), (&*name("attn_k"), keys), (&*name("attn_v"), keys)];
    Ok(LayerWeights {
        attention_norm: reader.vector(&name("attn_norm"), hidden)?,
        qkv: reader.matrix(&qkv, hidden)?,
        qkv_bias: config.qkv_bias.then(|| read_bias(reader, layer, [queries, keys, keys])).transpose()?,
        head_norms: config.qk_norm.then(|| read_head_norms(reader, config, layer)).transpose()?,
        attention_output: reader.matrix(&[(&name("attn_output"), hidden)], queries)?,
        feed_forward_norm: reader.vector(&name("ffn_norm"), hidden)?,
        gate_up: reader.matrix(&[(&name("ffn_gate"), wide), (&name("ffn_up"), wide)], hidden)?,
        down: reader.matrix(&[(&name("ffn_down"), hidden)], wide)?,
    })
}

fn read_bias<M>(reader: &WeightReader<'_, M>, layer: usize, widths: [usize; 3]) -> Result<Vec<f32>, ModelError> {
    let parts = ["attn_q", "attn_k", "attn_v"].into_iter().zip(widths);
    let parts = parts.map(|(part, width)| reader.vector(&format!("blk.{layer}.{part}.bias"), width));
    Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
}

fn read_head_norms<M>(
    reader: &WeightReader<'_, M>,
    config: &LlamaConfig,
    layer: usize,
) -> Result<HeadNorms, ModelError> {
    let norm = |part: &str| reader.vector(&format!("blk.{layer}.{part}.weight"), config.head);
    Ok(HeadNorms { queries: norm("attn_q_norm")?, keys: norm("attn_k_norm")? })
}

/// The rows of one matrix, or of several over the same inputs, in order. Each is one output's weights.
pub(crate) struct Rows<'a> {
    /// A tensor, and the number of the row in it.
    rows: Vec<(&'a TensorInfo<'a>, usize)>,
    pub(crate) inputs: usize,
}

impl Rows<'_> {
    pub(crate) fn outputs(&self) -> usize {
        self.rows.len()
    }

    /// Whether every row stands in the file in 4 bits.
    fn have_four_bits(&self) -> bool {
        self.rows.iter().all(|(tensor, _)| tensor.kind.has_four_bits())
    }

    /// Reads rows of 4 bits as they stand in the file and has each block set: its panel, lane and number.
    fn each_block<P: Send>(
        &self,
        panels: impl IndexedParallelIterator<Item = P>,
        set: impl Fn(&mut P, usize, usize, &Block) + Sync,
    ) {
        let blocks = self.inputs / BLOCK;
        panels.zip(self.rows.par_chunks(PANEL)).for_each(|(mut panel, rows)| {
            for (lane, &(tensor, row)) in rows.iter().enumerate() {
                (0..blocks).for_each(|number| set(&mut panel, lane, number, &four_bits(tensor, row * blocks + number)));
            }
        });
    }

    /// Reads rows as floats, [`PANEL`] of them for each panel, and has each panel filled with its own.
    pub(crate) fn each_panel<P: Send>(
        &self,
        panels: impl IndexedParallelIterator<Item = P>,
        fill: impl Fn(P, &[f32]) + Sync,
    ) {
        let inputs = self.inputs;
        panels.zip(self.rows.par_chunks(PANEL)).for_each_init(
            || vec![0.0; PANEL * inputs],
            |values, (panel, rows)| {
                for (&(tensor, row), values) in rows.iter().zip(values.chunks_exact_mut(inputs)) {
                    dequantise(tensor, row * (inputs / tensor.kind.block_values()), values);
                }
                fill(panel, &values[..rows.len() * inputs]);
            },
        );
    }
}

/// Reads tensors, and knows which were.
pub(crate) struct WeightReader<'a, M> {
    tensors: &'a Tensors<'a>,
    make: &'a (dyn Fn(&Rows<'_>) -> M + Sync),
    progress: &'a (dyn Fn(u64) + Sync),
    state: Mutex<ReadSoFar>,
}

#[derive(Default)]
struct ReadSoFar {
    names: HashSet<String>,
    bytes: u64,
}

impl<'a, M> WeightReader<'a, M> {
    /// Reads `tensors` and has `make` form each matrix; `progress` hears the bytes that are done.
    pub(crate) fn new(
        tensors: &'a Tensors<'a>,
        make: &'a (dyn Fn(&Rows<'_>) -> M + Sync),
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self { tensors, make, progress, state: Mutex::default() }
    }

    /// A tensor of one dimension.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let values = self.tensors.vector(name, length)?;
        self.tensors.get(name).into_iter().for_each(|tensor| self.done(tensor));
        Ok(values)
    }

    /// The rows of a table as floats, one after the other.
    pub(crate) fn rows(&self, name: &str, rows: usize, width: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensors.shaped(name, &[width, rows])?;
        let mut values = vec![0.0; rows * width];
        if !width.is_multiple_of(tensor.kind.block_values()) {
            let problem = format!("the tensor {name:?} with rows of {width} values is not whole blocks");
            return Err(ModelError::inconsistent(self.tensors.source(), problem));
        }
        dequantise(tensor, 0, &mut values);
        self.done(tensor);
        Ok(values)
    }

    /// Several matrices over the same inputs as one, their outputs in order.
    pub(crate) fn matrix(&self, parts: &[(&str, usize)], inputs: usize) -> Result<M, ModelError> {
        let tensors = parts.iter().map(|&(name, outputs)| self.tensors.shaped(name, &[inputs, outputs]));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let rows = tensors.iter().flat_map(|tensor| (0..tensor.shape[1]).map(move |row| (*tensor, row)));
        let matrix = (self.make)(&Rows { rows: rows.collect(), inputs });
        tensors.into_iter().for_each(|tensor| self.done(tensor));
        Ok(matrix)
    }

    fn done(&self, tensor: &TensorInfo<'_>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.names.insert(tensor.name.to_owned());
        state.bytes += tensor.data.len() as u64;
        (self.progress)(state.bytes);
    }

    /// A tensor that nothing read (a bias, a rope factor) would change what the model computes.
    pub(crate) fn check_that_all_were_read(&self) -> Result<(), ModelError> {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut left: Vec<_> = self.tensors.names().filter(|name| !state.names.contains(*name)).collect();
        left.sort_unstable();
        match left.first() {
            None => Ok(()),
            Some(name) => {
                let what = format!("the tensor {name:?} ({} such tensors)", left.len());
                Err(ModelError::unsupported(self.tensors.source(), what, "the tensors of the model's own family"))
            }
        }
    }
}
