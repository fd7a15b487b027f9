//! Which blocks of the KV cache are which lane's, and how much of them is written; the same for either path.

use parlance_inference_engine::{Block, BlockCopy, Lane};
use parlance_inference_kernels::attention::KEY_BLOCK;

/// Positions in a block: what the attention kernel reads at once.
pub(crate) const BLOCK_TOKENS: usize = KEY_BLOCK;

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) lanes: usize,
    /// The most positions of one lane.
    pub(crate) context: usize,
    /// Positions of all lanes together, shared ones counted once.
    pub(crate) tokens: usize,
}

impl Capacity {
    /// Blocks for that many tokens, and for one context at least. None if there are more than can be counted.
    pub(crate) fn blocks(&self) -> Option<usize> {
        let blocks = self.tokens.max(self.context).div_ceil(BLOCK_TOKENS);
        Block::try_from(blocks).is_ok().then_some(blocks)
    }
}

/// The blocks of every lane.
#[derive(Debug)]
pub(crate) struct BlockTables {
    /// By lane, in order of their positions.
    tables: Vec<Vec<Block>>,
    /// How many positions of each block are written.
    filled: Vec<usize>,
}

impl BlockTables {
    /// A lane begins with blocks of its own, as many as there are for it.
    pub(crate) fn new(capacity: Capacity, blocks: usize) -> Self {
        let per_lane = capacity.context.div_ceil(BLOCK_TOKENS);
        let own = |lane: usize| (lane * per_lane..(lane + 1) * per_lane).filter(|block| *block < blocks);
        let tables = (0..capacity.lanes).map(|lane| own(lane).map(|block| block as Block).collect()).collect();
        Self { tables, filled: vec![0; blocks] }
    }

    pub(crate) fn lanes(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.filled.len()
    }

    /// The blocks of a lane.
    pub(crate) fn of(&self, lane: Lane) -> &[Block] {
        &self.tables[lane]
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

    /// Notes that the beginning of a block was copied.
    pub(crate) fn copied(&mut self, copy: BlockCopy) {
        self.filled[copy.to as usize] = copy.positions;
    }

    /// Notes that nothing is written any more.
    pub(crate) fn forget(&mut self) {
        self.filled.fill(0);
    }
}
