//! The keys and values of all sequences: allocated once, in blocks that lanes hold alone or share, written in place, read where they lie.

use memmap2::MmapMut;
use parlance_inference_engine::{BlockCopy, Lane};
use parlance_inference_kernels::{
    attention::{HeadCache, write_key},
    team,
};

use crate::{
    ModelError,
    blocks::{BLOCK_TOKENS, BlockTables, Capacity},
    config::LlamaConfig,
    ops::Place,
};

/// Rows from which on several threads write: fewer take no longer than another thread takes to begin.
const LEAST_SHARED_ROWS: usize = 8;

/// The cache of every block, layer and head, and which blocks are which lane's.
///
/// The memory is reserved at once and taken from the system only where it is written, so that blocks cost what they hold. It is
/// `[layer][head][keys, then values][block]`: what a step reads of one head lies together as far as its blocks do.
#[derive(Debug)]
pub(crate) struct KvCache {
    memory: MmapMut,
    layers: usize,
    heads: usize,
    head: usize,
    pub(crate) tables: BlockTables,
}

impl KvCache {
    /// Reserves the memory.
    ///
    /// # Errors
    ///
    /// [`ModelError::Capacity`] if that is more than the address space or the system's limit.
    pub(crate) fn new(config: &LlamaConfig, capacity: Capacity) -> Result<Self, ModelError> {
        let Capacity { lanes, tokens, .. } = capacity;
        let refused = |why: String| ModelError::Capacity {
            problem: format!("the keys and values of {tokens} tokens in {lanes} lanes cannot be kept: {why}"),
        };
        let too_many = || refused("they are more than memory can be".to_owned());
        let blocks = capacity.blocks().ok_or_else(too_many)?;
        let bytes = bytes_per_token(config).checked_mul(blocks * BLOCK_TOKENS).ok_or_else(too_many)?;
        let memory = MmapMut::map_anon(bytes).map_err(|error| refused(format!("{} MiB: {error}", bytes >> 20)))?;
        let (layers, heads, head) = (config.layers, config.kv_heads, config.head);
        Ok(Self { memory, layers, heads, head, tables: BlockTables::new(capacity, blocks) })
    }

    /// How much memory all blocks take when full.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Copies the beginning of a block.
    pub(crate) fn copy(&mut self, copy: BlockCopy) {
        let BlockCopy { from, to, .. } = copy;
        let (size, stride) = (BLOCK_TOKENS * self.head, self.stride());
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut self.memory);
        // Of values the beginning would do, of keys it lies all over the block.
        for all in floats.chunks_exact_mut(stride) {
            all.copy_within(from as usize * size..(from as usize + 1) * size, to as usize * size);
        }
        self.tables.copied(copy);
    }

    /// Keeps one layer's keys and values of a step: `of(row, head)` gives both, `places` where they belong.
    pub(crate) fn write<'a>(
        &mut self,
        layer: usize,
        places: &[Place],
        of: impl Fn(usize, usize) -> (&'a [f32], &'a [f32]) + Sync,
    ) {
        let (stride, size, tables) = (self.stride(), BLOCK_TOKENS * self.head, &self.tables);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut self.memory);
        let of_layer = &mut floats[layer * self.heads * 2 * stride..][..self.heads * 2 * stride];
        let write_head = |head: usize, memory: &mut [f32]| {
            let (keys, values) = memory.split_at_mut(stride);
            for (row, place) in places.iter().enumerate() {
                let (block, within) = (place.position / BLOCK_TOKENS, place.position % BLOCK_TOKENS);
                let begin = tables.of(place.lane)[block] as usize * size;
                let (key, value) = of(row, head);
                write_key(&mut keys[begin..][..size], within, key);
                values[begin + within * value.len()..][..value.len()].copy_from_slice(value);
            }
        };
        if places.len() < LEAST_SHARED_ROWS {
            of_layer.chunks_exact_mut(2 * stride).enumerate().for_each(|(head, memory)| write_head(head, memory));
        } else {
            team::each_chunk(of_layer, 2 * stride, write_head);
        }
    }

    /// Keys and values of one head.
    pub(crate) fn head(&self, place: HeadPlace) -> HeadCache<'_> {
        debug_assert!(place.layer < self.layers);
        let stride = self.stride();
        let begin = (place.layer * self.heads + place.head) * 2 * stride;
        let floats: &[f32] = bytemuck::cast_slice(&self.memory);
        let (keys, values) = floats[begin..begin + 2 * stride].split_at(stride);
        HeadCache { keys, values, blocks: self.tables.of(place.lane), dimension: self.head }
    }

    /// Floats of the keys or the values of one head.
    fn stride(&self) -> usize {
        self.tables.blocks() * BLOCK_TOKENS * self.head
    }
}

/// Names one head of one layer of one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadPlace {
    pub(crate) lane: Lane,
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

/// The bytes that one token takes in the cache: 45 KiB for SmolLM2-135M.
pub(crate) fn bytes_per_token(config: &LlamaConfig) -> usize {
    config.layers * 2 * config.kv_heads * config.head * size_of::<f32>()
}
