//! The keys and values of all lanes as tensors on the device, in blocks, written where they lie.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::tensor::{DType, Device, FloatDType, IndexingUpdateOp, Int, Tensor};
use parlance_inference_engine::{BlockCopy, Lane};

use crate::{
    ModelError,
    blocks::{BLOCK_TOKENS, BlockTables, Capacity},
    config::LlamaConfig,
};

/// Where the keys and values of every lane lie, and the tensors that they lie in.
#[derive(Debug)]
pub(super) struct KvTensors {
    pub(super) tables: BlockTables,
    layers: SharedLayers,
    heads: usize,
    slots: usize,
}

/// The tensors of all layers, which recorded steps have a share in. One thread computes, so nobody waits for the lock.
#[derive(Debug, Clone)]
pub(super) struct SharedLayers(Arc<Mutex<KvLayers>>);

/// A key and a value tensor per layer, `[slots, BLOCK_TOKENS, head]`.
///
/// A slot is one head of one block of positions; the last slot is a spare one, where padding is written.
///
/// Invariant: nobody else holds a layer's tensors while they are written, so that devices that can write in place do. Recorded steps
/// rely on it: they read and write the memory that the tensors had when they were recorded.
#[derive(Debug)]
pub(super) struct KvLayers {
    /// Empty, which stands for zeros, until the first write and where a panic cut one short.
    layers: Vec<[Option<Tensor<3>>; 2]>,
    shape: [usize; 3],
    dtype: FloatDType,
    device: Device,
}

impl KvTensors {
    /// Zeros. The first pass takes the memory.
    ///
    /// # Errors
    ///
    /// [`ModelError::Capacity`] if that is more than memory can be; a device that has less says so later.
    pub(super) fn new(
        config: &LlamaConfig,
        capacity: Capacity,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let blocks = capacity.blocks();
        let slots = blocks.and_then(|blocks| (blocks * config.kv_heads).checked_add(1));
        let bytes = slots.and_then(|slots| slots.checked_mul(2 * config.layers * BLOCK_TOKENS * config.head * 4));
        let (Some(blocks), Some(slots), Some(_)) = (blocks, slots, bytes.filter(|&bytes| bytes <= isize::MAX as usize))
        else {
            let Capacity { lanes, tokens, .. } = capacity;
            let problem =
                format!("the keys and values of {tokens} tokens in {lanes} lanes are more than memory can be");
            return Err(ModelError::Capacity { problem });
        };
        let layers = std::iter::repeat_with(|| [None, None]).take(config.layers).collect();
        let shape = [slots, BLOCK_TOKENS, config.head];
        let layers = SharedLayers(Arc::new(Mutex::new(KvLayers { layers, shape, dtype, device: device.clone() })));
        Ok(Self { tables: BlockTables::new(capacity, blocks), layers, heads: config.kv_heads, slots })
    }

    /// What all tensors take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let KvLayers { layers, shape, dtype, .. } = &*self.layers.lock();
        2 * layers.len() * shape.iter().product::<usize>() * DType::from(*dtype).size()
    }

    /// The tensors.
    pub(super) fn layers(&self) -> &SharedLayers {
        &self.layers
    }

    /// Forgets everything. What a failed step left may hold values that are no numbers, which no mask takes away.
    pub(super) fn clear(&mut self) {
        self.layers.lock().layers.fill_with(|| [None, None]);
        self.tables.forget();
    }

    /// What a failed step may leave behind.
    #[cfg(test)]
    pub(super) fn fill_with_nan(&mut self) {
        let mut kept = self.layers.lock();
        kept.layers.iter_mut().flatten().for_each(|tensor| *tensor = tensor.take().map(|kept| kept * f32::NAN));
    }

    /// Where one position of a head is written: its slot, and the position in it. Padding has no lane.
    pub(super) fn place(&self, lane: Option<Lane>, position: usize, head: usize) -> [i64; 2] {
        [self.slot(lane, position / BLOCK_TOKENS, head) as i64, (position % BLOCK_TOKENS) as i64]
    }

    /// The slots that the first `count` positions of a head lie in.
    pub(super) fn slots(&self, lane: Option<Lane>, head: usize, count: usize) -> impl Iterator<Item = i64> {
        (0..count.div_ceil(BLOCK_TOKENS)).map(move |block| self.slot(lane, block, head) as i64)
    }

    fn slot(&self, lane: Option<Lane>, block: usize, head: usize) -> usize {
        let block = lane.and_then(|lane| self.tables.of(lane).get(block));
        block.map_or(self.slots - 1, |block| *block as usize * self.heads + head)
    }

    /// Copies a block, of which only the beginning matters.
    pub(super) fn copy(&mut self, copy: BlockCopy) {
        let slots = |block: u32| (block as usize * self.heads) as i64..((block as usize + 1) * self.heads) as i64;
        self.layers.lock().copy(slots(copy.from), slots(copy.to));
        self.tables.copied(copy);
    }
}

impl SharedLayers {
    /// A step that panicked is followed by [`KvTensors::clear`], so what it left is fit to be locked again.
    pub(super) fn lock(&self) -> MutexGuard<'_, KvLayers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvLayers {
    fn copy(&mut self, from: Range<i64>, to: Range<i64>) {
        let numbers = |slots| Tensor::<1, Int>::arange(slots, &self.device);
        let (from, to) = (numbers(from), numbers(to).unsqueeze_dim::<2>(1));
        for kept in self.layers.iter_mut().flatten() {
            *kept = kept.take().map(|tensor| {
                // A copy of its own, so that nobody else holds the tensor while it is written.
                let block = tensor.clone().select(0, from.clone());
                tensor.scatter_nd(to.clone(), block, IndexingUpdateOp::Assign)
            });
        }
    }

    /// Keeps keys and values of one layer, `[rows · heads, head]`, at `places`, `[rows · heads, 2]`: slot and position.
    pub(super) fn write(&mut self, layer: usize, places: &Tensor<2, Int>, new: [Tensor<2>; 2]) {
        let zeros = self.zeros();
        for (kept, new) in self.layers[layer].iter_mut().zip(new) {
            let tensor = kept.take().unwrap_or_else(&zeros);
            *kept = Some(tensor.scatter_nd(places.clone(), new, IndexingUpdateOp::Assign));
        }
    }

    /// The keys and values in `slots`, as many of them for each of `heads`: `[heads, positions, head]` each.
    pub(super) fn read(&self, layer: usize, slots: &Tensor<1, Int>, heads: usize) -> [Tensor<3>; 2] {
        let (zeros, [count]) = (self.zeros(), slots.dims());
        self.layers[layer].each_ref().map(|kept| {
            let tensor = kept.clone().unwrap_or_else(&zeros).select(0, slots.clone());
            tensor.reshape([heads, count / heads * BLOCK_TOKENS, self.shape[2]])
        })
    }

    /// Whether nobody else holds a tensor that was written.
    pub(super) fn are_written_in_place(&self) -> bool {
        self.layers.iter().flatten().flatten().all(Tensor::can_mut)
    }

    fn zeros(&self) -> impl Fn() -> Tensor<3> + use<> {
        let (shape, device, dtype) = (self.shape, self.device.clone(), DType::from(self.dtype));
        move || Tensor::zeros(shape, (&device, dtype))
    }
}
