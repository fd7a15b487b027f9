//! The keys and values of all lanes: allocated once, written in place, read where they lie.

use memmap2::MmapMut;
use parlance_inference_kernels::attention::{HeadCache, KEY_BLOCK, write_key};

use crate::{ModelError, config::LlamaConfig};

/// The cache of every lane, layer and head.
///
/// The memory is reserved at once and taken from the system only where it is written, so that lanes cost what they hold.
#[derive(Debug)]
pub(crate) struct KvCache {
    memory: MmapMut,
    layers: usize,
    heads: usize,
    head: usize,
    /// Positions per lane, a multiple of [`KEY_BLOCK`].
    positions: usize,
}

impl KvCache {
    /// Reserves room for `lanes` sequences of `context` tokens.
    ///
    /// # Errors
    ///
    /// [`ModelError::Capacity`] if that is more than the address space or the system's limit.
    pub(crate) fn new(config: &LlamaConfig, lanes: usize, context: usize) -> Result<Self, ModelError> {
        let positions = context.next_multiple_of(KEY_BLOCK);
        let refused = |why: String| ModelError::Capacity {
            problem: format!("the keys and values of {lanes} lanes of {context} tokens cannot be kept: {why}"),
        };
        let bytes = bytes_per_token(config).checked_mul(positions).and_then(|lane| lane.checked_mul(lanes));
        let bytes = bytes.ok_or_else(|| refused("they are more than memory can be".to_owned()))?;
        let memory = MmapMut::map_anon(bytes).map_err(|error| refused(format!("{} MiB: {error}", bytes >> 20)))?;
        Ok(Self { memory, layers: config.layers, heads: config.kv_heads, head: config.head, positions })
    }

    /// How much memory all lanes take when full.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Keeps one position of one head.
    pub(crate) fn write(&mut self, place: HeadPlace, position: usize, key: &[f32], value: &[f32]) {
        let (begin, size, head) = (self.begin(place), self.positions * self.head, self.head);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut self.memory);
        let (keys, values) = floats[begin..begin + 2 * size].split_at_mut(size);
        write_key(keys, position, key);
        values[position * head..][..head].copy_from_slice(value);
    }

    /// Keys and values of one head.
    pub(crate) fn head(&self, place: HeadPlace) -> HeadCache<'_> {
        let (begin, size) = (self.begin(place), self.positions * self.head);
        let floats: &[f32] = bytemuck::cast_slice(&self.memory);
        let (keys, values) = floats[begin..begin + 2 * size].split_at(size);
        HeadCache { keys, values, dimension: self.head, first: 0 }
    }

    fn begin(&self, place: HeadPlace) -> usize {
        ((place.lane * self.layers + place.layer) * self.heads + place.head) * 2 * self.positions * self.head
    }
}

/// Names one head of one layer of one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadPlace {
    pub(crate) lane: usize,
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

/// The bytes that one token takes in the cache: 45 KiB for SmolLM2-135M.
pub(crate) fn bytes_per_token(config: &LlamaConfig) -> usize {
    config.layers * 2 * config.kv_heads * config.head * size_of::<f32>()
}
