//! The forward pass for devices other than the processor: burn's own operations, on whatever device burn has.
//!
//! The processor's path (`llama`, `ops`) takes tensors apart and calls kernels; here nothing leaves the device but logits. A step is cut
//! into passes, padded batches of few shapes (`plan`, `buckets`), and every shape is run and recorded while the model is loaded
//! (`recorded`), so that no request waits for a kernel to be compiled, and a pass is one launch where the device has such a thing. A step
//! with decoding lanes and a chunk of a prompt takes two passes.
//!
//! What holds here: padding and neighbours never enter a lane's sums. What does not: burn picks kernels by shape, so a lane's logits are the
//! same bits only in passes of the same shape, and close in others. That is why the numerics class says `tensor`.

mod buckets;
mod forward;
mod indices;
mod kv;
mod plan;
mod recorded;
mod weights;

use std::sync::Arc;

use burn::tensor::{Device, FloatDType, StreamId, Tensor};
use parlance_inference_engine::{Block, BlockCopy, EngineError, Lane, LaneInput, TokenModel};

use self::{
    buckets::{Buckets, Shape},
    forward::Network,
    indices::Indices,
    kv::KvTensors,
    plan::Pass,
    recorded::Recorded,
    weights::{RopeTensors, TensorWeights},
};
use crate::{
    ModelError,
    blocks::{BLOCK_TOKENS, Capacity},
    config::LlamaConfig,
    llama::{check_inputs, failed},
    rope::Rope,
    tensors::Tensors,
    weights::{Rows, Weights},
};

/// The most tokens of one lane whose logits may all be wanted by a server; every such shape is warmed too.
const DRAFTED_TOKENS: usize = 8;

/// What a model is to be on a device.
#[derive(Debug, Clone)]
pub(crate) struct TensorOptions {
    pub(crate) device: Device,
    /// What weights and cache are kept in, and products computed.
    pub(crate) dtype: FloatDType,
    pub(crate) capacity: Capacity,
}

/// A model on a device, with the keys and values of its lanes.
#[derive(Debug)]
pub struct TensorModel {
    network: Arc<Network>,
    cache: KvTensors,
    buckets: Buckets,
    /// The passes that were computed so far, one for each shape.
    recorded: Vec<Recorded>,
    context: usize,
    /// Whether a step began and did not end well: the cache may hold anything.
    is_spoilt: bool,
    /// burn queues operations by thread, and waits wherever a tensor of one queue is used in another. The model is loaded on other threads
    /// than it runs on, so it has a queue of its own.
    stream: StreamId,
}

impl TensorModel {
    /// Reads the weights to the device; `progress` hears the bytes of the file that are done.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the tensors are not the model's, or the cache cannot be had.
    ///
    /// # Panics
    ///
    /// As burn does where a device fails.
    pub(crate) fn read(
        config: LlamaConfig,
        tensors: &Tensors<'_>,
        options: TensorOptions,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, ModelError> {
        let TensorOptions { device, dtype, capacity } = options;
        let Capacity { lanes, context, .. } = capacity;
        let stream = new_stream();
        let buckets = Buckets::new(lanes.min(isize::MAX as usize), context);
        let cache = KvTensors::new(&config, capacity, dtype, &device)?;
        let matrix = |rows: &Rows<'_>| stream.executes(|| weights::matrix(rows, dtype, &device));
        let weights = Weights::read(tensors, &config, &matrix, progress)?;
        stream.executes(|| {
            let weights = TensorWeights::new(weights, &device);
            let rope = RopeTensors::new(&Rope::new(&config.rope, config.head, context), &device);
            let network = Arc::new(Network { config, weights, rope, dtype, device });
            Ok(Self { network, cache, buckets, recorded: Vec::new(), context, is_spoilt: false, stream })
        })
    }

    /// Runs every shape, on padding alone, and records it. The number of shapes.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`] if the device cannot.
    pub(crate) fn warm_up(&mut self) -> Result<usize, EngineError> {
        let shapes: Vec<Shape> = self.buckets.all().collect();
        let stream = self.stream;
        stream.executes(|| {
            for &shape in &shapes {
                let hidden = self.forward(&Pass { shape, parts: Vec::new() })?;
                for count in self.row_counts(shape) {
                    self.read_logits(self.logits(hidden.clone(), vec![0; count]))?;
                }
            }
            self.cache.copy(BlockCopy { from: 0, to: 0, positions: 0 });
            Ok(shapes.len())
        })
    }

    /// How much memory the keys and values of all lanes take, in bytes.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// How much memory the matrices of weights take, in bytes.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.network.weights.bytes
    }

    /// Computes one step, and logits after the last `wanted(input)` tokens of every input; their rows are in input order.
    ///
    /// # Errors
    ///
    /// As [`TokenModel::step`].
    pub(crate) fn compute(
        &mut self,
        inputs: &[LaneInput<'_>],
        wanted: impl Fn(&LaneInput<'_>) -> usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        logits.clear();
        let vocabulary = self.network.config.vocabulary;
        self.forget_if_spoilt();
        check_inputs(inputs, &self.cache.tables, self.context, vocabulary)?;
        let stream = self.stream;
        stream.executes(|| {
            self.is_spoilt = true;
            logits.resize(inputs.iter().map(&wanted).sum::<usize>() * vocabulary, 0.0);
            for pass in plan::passes(inputs, &wanted, &self.buckets) {
                self.run(&pass, logits)?;
            }
            self.is_spoilt = false;
            let tables = &mut self.cache.tables;
            inputs.iter().for_each(|input| tables.fill(input.lane, input.start, input.start + input.tokens.len()));
            Ok(())
        })
    }

    fn run(&mut self, pass: &Pass<'_>, logits: &mut [f32]) -> Result<(), EngineError> {
        let hidden = self.forward(pass)?;
        let wanted: Vec<(usize, usize)> = pass.wanted().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut rows: Vec<i64> = wanted.iter().map(|&(row, _)| row as i64).collect();
        // Repeated rows fill the shape up.
        let count = self.row_counts(pass.shape).find(|&count| rows.len() <= count).unwrap_or(pass.shape.rows());
        rows.resize(count, 0);
        let computed = self.read_logits(self.logits(hidden, rows))?;
        let vocabulary = self.network.config.vocabulary;
        for (row, (_, output)) in computed.chunks_exact(vocabulary).zip(wanted) {
            if row.iter().any(|logit| !logit.is_finite()) {
                return Err(failed("a logit is not a finite number"));
            }
            logits[output * vocabulary..][..vocabulary].copy_from_slice(row);
        }
        Ok(())
    }

    /// The residual stream after the last layer, by the recording of the pass's shape.
    fn forward(&mut self, pass: &Pass<'_>) -> Result<Tensor<2>, EngineError> {
        let number = self.recorded.iter().position(|recorded| recorded.shape() == pass.shape);
        let number = number.unwrap_or_else(|| self.record(pass.shape));
        let indices = self.indices(pass);
        self.recorded[number].run(&self.network, indices)
    }

    /// Records a shape that was not recorded yet, or not since a step failed.
    fn record(&mut self, shape: Shape) -> usize {
        let padding = self.indices(&Pass { shape, parts: Vec::new() });
        let recorded = Recorded::new(&self.network, self.cache.layers(), shape, padding);
        tracing::debug!(?shape, one_launch = recorded.is_one_launch(), "the shape of a pass is recorded");
        self.recorded.push(recorded);
        self.recorded.len() - 1
    }

    fn indices(&self, pass: &Pass<'_>) -> Indices {
        Indices::new(pass, self.network.config.kv_heads, &self.cache)
    }

    fn logits(&self, hidden: Tensor<2>, rows: Vec<i64>) -> Tensor<2> {
        self.network.logits(hidden.select(0, self.network.ints(rows)))
    }

    /// Of how many rows logits are computed at once: of one per lane, or of all.
    fn row_counts(&self, shape: Shape) -> impl Iterator<Item = usize> + use<> {
        let all = (1 < shape.tokens && shape.tokens <= DRAFTED_TOKENS).then(|| shape.rows());
        [shape.lanes].into_iter().chain(all)
    }

    fn read_logits(&self, logits: Tensor<2>) -> Result<Vec<f32>, EngineError> {
        logits.try_into_vec_as::<f32>().map_err(|error| failed(format!("the device gave no logits: {error}")))
    }

    /// What a failed step may leave behind.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self) {
        self.is_spoilt = true;
        self.cache.fill_with_nan();
    }

    fn forget_if_spoilt(&mut self) {
        if std::mem::take(&mut self.is_spoilt) {
            let stream = self.stream;
            stream.executes(|| {
                self.recorded.clear();
                self.cache.clear();
            });
        }
    }
}

/// A queue that no thread has: every thread begins one, and this one ends at once.
fn new_stream() -> StreamId {
    std::thread::spawn(StreamId::current).join().unwrap_or_else(|_| StreamId::current())
}

impl TokenModel for TensorModel {
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
        let stream = self.stream;
        stream.executes(|| self.cache.copy(copy));
    }

    fn context_tokens(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.network.config.vocabulary
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        self.compute(inputs, |input| input.logits, logits)
    }
}
