//! The keys and values of all sequences: allocated once, in blocks that lanes hold alone or share, written in place, read where they lie.

use memmap2::MmapMut;
use parlance_inference_engine::{Block, BlockCopy, Lane};
use parlance_inference_kernels::{
    attention::{HeadCache, KEY_BLOCK, write_key},
    team,
};

use crate::{ModelError, config::LlamaConfig, ops::Place};

/// Positions in a block: what the kernel reads at once.
pub(crate) const BLOCK_TOKENS: usize = KEY_BLOCK;
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
    blocks: usize,
    /// The blocks of each lane, in order of their positions.
    tables: Vec<Vec<Block>>,
    /// How many positions of each block are written.
    filled: Vec<usize>,
}

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) lanes: usize,
    /// The most positions of one lane.
    pub(crate) context: usize,
    /// Positions of all lanes together, shared ones counted once; at least `context`.
    pub(crate) tokens: usize,
}

impl KvCache {
    /// Reserves the memory. A lane begins with blocks of its own, as many as there are for it.
    ///
    /// # Errors
    ///
    /// [`ModelError::Capacity`] if that is more than the address space or the system's limit.
    pub(crate) fn new(config: &LlamaConfig, capacity: Capacity) -> Result<Self, ModelError> {
        let Capacity { lanes, context, tokens } = capacity;
        let refused = |why: String| ModelError::Capacity {
            problem: format!("the keys and values of {tokens} tokens in {lanes} lanes cannot be kept: {why}"),
        };
        let too_many = || refused("they are more than memory can be".to_owned());
        let blocks = tokens.max(context).div_ceil(BLOCK_TOKENS);
        let bytes = blocks.checked_mul(BLOCK_TOKENS).and_then(|tokens| tokens.checked_mul(bytes_per_token(config)));
        let bytes = bytes.filter(|_| u32::try_from(blocks).is_ok()).ok_or_else(too_many)?;
        let memory = MmapMut::map_anon(bytes).map_err(|error| refused(format!("{} MiB: {error}", bytes >> 20)))?;
        let per_lane = context.div_ceil(BLOCK_TOKENS);
        let own = |lane: usize| (lane * per_lane..(lane + 1) * per_lane).filter(|block| *block < blocks);
        let tables = (0..lanes).map(|lane| own(lane).map(|block| block as Block).collect()).collect();
        let (layers, heads, head) = (config.layers, config.kv_heads, config.head);
        Ok(Self { memory, layers, heads, head, blocks, tables, filled: vec![0; blocks] })
    }

    /// How much memory all blocks take when full.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    pub(crate) fn lanes(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Says where the positions of a lane lie from now on.
    pub(crate) fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.tables[lane].clear();
        self.tables[lane].extend_from_slice(blocks);
    }

    /// Whether every position of a lane before `start` is written and those before `end` have a place.
    pub(crate) fn fits(&self, lane: Lane, start: usize, end: usize) -> bool {
        let table = &self.tables[lane];
        let written = |at: usize| self.filled[table[at] as usize] >= BLOCK_TOKENS.min(start - at * BLOCK_TOKENS);
        end <= table.len() * BLOCK_TOKENS && (0..start.div_ceil(BLOCK_TOKENS)).all(written)
    }

    /// Notes that a lane's positions from `start` to `end` are written.
    pub(crate) fn fill(&mut self, lane: Lane, start: usize, end: usize) {
        for at in start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS) {
            self.filled[self.tables[lane][at] as usize] = BLOCK_TOKENS.min(end - at * BLOCK_TOKENS);
        }
    }

    /// Copies the beginning of a block.
    pub(crate) fn copy(&mut self, copy: BlockCopy) {
        let BlockCopy { from, to, positions } = copy;
        let (size, stride) = (BLOCK_TOKENS * self.head, self.stride());
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut self.memory);
        // Of values the beginning would do, of keys it lies all over the block.
        for all in floats.chunks_exact_mut(stride) {
            all.copy_within(from as usize * size..(from as usize + 1) * size, to as usize * size);
        }
        self.filled[to as usize] = positions;
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
                let begin = tables[place.lane][block] as usize * size;
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
        HeadCache { keys, values, blocks: &self.tables[place.lane], dimension: self.head }
    }

    /// Floats of the keys or the values of one head.
    fn stride(&self) -> usize {
        self.blocks * BLOCK_TOKENS * self.head
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
