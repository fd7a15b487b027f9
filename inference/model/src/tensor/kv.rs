//! The keys and values of all lanes as tensors on the device, in blocks, written where they lie.

use burn::tensor::{DType, Device, FloatDType, IndexingUpdateOp, Int, Tensor};
use parlance_inference_engine::{BlockCopy, Lane};

use crate::{
    ModelError,
    blocks::{BLOCK_TOKENS, BlockTables, Capacity},
    config::LlamaConfig,
};

/// The cache: a key and a value tensor per layer, `[slots, BLOCK_TOKENS, head]`.
///
/// A slot is one head of one block of positions; the last slot is a spare one, where padding is written.
///
/// Invariant: nobody else holds a layer's tensors while they are written, so that devices that can write in place do.
#[derive(Debug)]
pub(super) struct KvTensors {
    /// Empty, which stands for zeros, until the first write and where a panic cut one short.
    layers: Vec<[Option<Tensor<3>>; 2]>,
    pub(super) tables: BlockTables,
    heads: usize,
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
        let tables = BlockTables::new(capacity, blocks);
        let layers = std::iter::repeat_with(|| [None, None]).take(config.layers).collect();
        let (heads, shape) = (config.kv_heads, [slots, BLOCK_TOKENS, config.head]);
        Ok(Self { layers, tables, heads, shape, dtype, device: device.clone() })
    }

    /// What all tensors take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        2 * self.layers.len() * self.shape.iter().product::<usize>() * DType::from(self.dtype).size()
    }

    /// Forgets everything. What a failed step left may hold values that are no numbers, which no mask takes away.
    pub(super) fn clear(&mut self) {
        self.layers.fill_with(|| [None, None]);
    }

    /// What a failed step may leave behind.
    #[cfg(test)]
    pub(super) fn fill_with_nan(&mut self) {
        self.layers.iter_mut().flatten().for_each(|tensor| *tensor = tensor.take().map(|kept| kept * f32::NAN));
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
        block.map_or(self.shape[0] - 1, |block| *block as usize * self.heads + head)
    }

    /// Copies a block, of which only the beginning matters.
    pub(super) fn copy(&mut self, copy: BlockCopy) {
        let slots = |block: u32| block as usize * self.heads..(block as usize + 1) * self.heads;
        let from = Tensor::<1, Int>::arange(slots(copy.from).start as i64..slots(copy.from).end as i64, &self.device);
        let [_, positions, head] = self.shape;
        for kept in self.layers.iter_mut().flatten() {
            *kept = kept.take().map(|tensor| {
                // A copy of its own, so that nobody else holds the tensor while it is written.
                let block = tensor.clone().select(0, from.clone());
                tensor.slice_assign([slots(copy.to), 0..positions, 0..head], block)
            });
        }
        self.tables.copied(copy);
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

    fn zeros(&self) -> impl Fn() -> Tensor<3> + use<> {
        let (shape, device, dtype) = (self.shape, self.device.clone(), DType::from(self.dtype));
        move || Tensor::zeros(shape, (&device, dtype))
    }
}
