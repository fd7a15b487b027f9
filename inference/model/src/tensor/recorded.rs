//! Passes that are recorded once and replayed: one launch instead of hundreds, on devices that have such a thing (CUDA graphs). Others
//! compute the pass anew each time.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::tensor::{Graph, IndexingUpdateOp, Int, Tensor, capture};
use parlance_inference_engine::EngineError;

use super::{buckets::Shape, forward::Network, indices::Indices, kv::SharedLayers};
use crate::llama::failed;

/// The passes of one shape, ready to be run again and again.
///
/// Invariant: the memory that the recording reads and writes stays where it is: weights, rope tables, caches and `indices`. The closure
/// has a share in all of them, and caches and `indices` are only ever written in place.
pub(super) struct Recorded {
    shape: Shape,
    indices: SharedIndices,
    /// The numbers of all indices, `[indices, 1]`.
    every: Tensor<2, Int>,
    layers: SharedLayers,
    graph: Graph<Tensor<2>, Compute>,
}

type Compute = Box<dyn FnMut() -> Tensor<2> + Send>;

#[derive(Clone)]
struct SharedIndices(Arc<Mutex<Tensor<1, Int>>>);

impl SharedIndices {
    fn lock(&self) -> MutexGuard<'_, Tensor<1, Int>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorded {
    /// Computes the pass a few times on `padding`, so that its kernels are compiled, and records it.
    ///
    /// # Panics
    ///
    /// As burn does where a device fails.
    pub(super) fn new(network: &Arc<Network>, layers: &SharedLayers, shape: Shape, padding: Indices) -> Self {
        let count = padding.0.len();
        let every = network.ints((0..count as i64).collect()).reshape([count, 1]);
        let indices = SharedIndices(Arc::new(Mutex::new(network.upload(padding))));
        let (read, kept, computing) = (indices.clone(), layers.clone(), Arc::clone(network));
        let pass: Compute = Box::new(move || computing.forward(shape, &read.lock(), &mut kept.lock()));
        Self { shape, indices, every, layers: layers.clone(), graph: capture(&network.device, pass) }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether a replay is one launch.
    pub(super) fn is_one_launch(&self) -> bool {
        self.graph.is_hardware()
    }

    /// The residual stream after the last layer, `[rows, hidden]`. The next run may write over it.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`] if what the recording reads was moved: a bug, which must not become a wrong answer.
    ///
    /// # Panics
    ///
    /// As burn does where a device fails.
    pub(super) fn run(&mut self, network: &Network, indices: Indices) -> Result<Tensor<2>, EngineError> {
        let mut kept = self.indices.lock();
        if self.is_one_launch() && !(kept.can_mut() && self.layers.lock().are_written_in_place()) {
            return Err(failed("the memory of a recorded pass is held elsewhere"));
        }
        let new = network.upload(indices);
        kept.inplace(|kept| kept.scatter_nd(self.every.clone(), new, IndexingUpdateOp::Assign));
        // The pass locks them.
        drop(kept);
        // SAFETY: the closure in the graph shares everything that it reads and writes, so all of it lives; caches and indices are
        // written in place; and one thread at a time runs a model, on the model's own queue.
        Ok(unsafe { self.graph.replay() }.clone())
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("shape", &self.shape).finish_non_exhaustive()
    }
}
