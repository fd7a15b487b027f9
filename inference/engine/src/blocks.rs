//! Which lanes and which blocks of the KV cache are whose.
//!
//! ```text
//! free ──take──▶ a sequence's own ──publish──▶ in the tree, used ──release──▶ in the tree, unused
//!   ▲                    │                                                          │
//!   └──────release───────┴──────────────────────evict───────────────────────────────┘
//! ```
//!
//! A request is admitted if blocks for its prompt and its whole reply are free or can be evicted. They are promised to it then and taken
//! when they are written, so that nothing runs out and what is cached stays as long as it can. A block that is full is published: other
//! requests of the tenant, also while this one runs, read it where it lies.

use std::sync::Arc;

use crate::{
    Block, BlockCopy, Lane, TokenId,
    prefix::{Found, Inserted, PrefixTree},
};

/// The bounds of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolShape {
    /// Sequences at once.
    pub(crate) lanes: usize,
    pub(crate) blocks: usize,
    /// Positions in a block.
    pub(crate) block_tokens: usize,
    /// Blocks that are kept at most when no sequence uses them.
    pub(crate) kept_blocks: usize,
}

/// The lanes and blocks of one model.
///
/// Invariant: a block is free, in the tree, or in the table of one sequence. `promised` is the sum over all sequences and no more than the
/// free and the unused blocks together.
pub(crate) struct BlockPool {
    shape: PoolShape,
    lanes: Vec<Lane>,
    free: Vec<Block>,
    promised: usize,
    tree: PrefixTree,
}

/// What a running request has of the cache.
pub(crate) struct Sequence {
    pub(crate) lane: Lane,
    tenant: Arc<str>,
    /// Where its positions lie, block by block.
    table: Vec<Block>,
    /// How many of them, from the first, are in the tree: each the child of the one before.
    shared: usize,
    /// How many more it may take.
    promised: usize,
    /// Whether the model does not know the table yet.
    moved: bool,
}

/// What a request wants of the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) tokens: &'a [TokenId],
    /// Tokens together with those of the reply, at most.
    pub(crate) positions: usize,
}

/// A request that has its place.
pub(crate) struct Admitted {
    pub(crate) sequence: Sequence,
    /// How many of its tokens are in the cache; at least one is left to compute.
    pub(crate) reused: usize,
    /// To be done before the next step, in order of admission.
    pub(crate) copy: Option<BlockCopy>,
}

impl Sequence {
    /// The table, if it changed since the last call.
    pub(crate) fn take_moved(&mut self) -> Option<&[Block]> {
        std::mem::take(&mut self.moved).then_some(&self.table)
    }

    fn tail(&self) -> Option<Block> {
        self.shared.checked_sub(1).map(|last| self.table[last])
    }
}

impl BlockPool {
    pub(crate) fn new(shape: PoolShape) -> Self {
        Self {
            shape,
            lanes: (0..shape.lanes).rev().collect(),
            // From the first on, so that memory is touched only where it must be.
            free: (0..shape.blocks as Block).rev().collect(),
            promised: 0,
            tree: PrefixTree::new(shape.blocks),
        }
    }

    /// The share of the cache that running requests hold or are promised.
    pub(crate) fn usage(&self) -> f64 {
        1.0 - self.available() as f64 / self.shape.blocks.max(1) as f64
    }

    /// Whether [`admit`](Self::admit) would admit the request now.
    pub(crate) fn has_room(&self, wanted: Wanted<'_>) -> bool {
        !self.lanes.is_empty() && self.find(wanted).is_some()
    }

    /// Blocks that can be promised.
    fn available(&self) -> usize {
        self.free.len() + self.tree.unused() - self.promised
    }

    /// What is there of the request's tokens, if there is room for the rest.
    fn find(&self, wanted: Wanted<'_>) -> Option<Found> {
        let known = &wanted.tokens[..wanted.tokens.len().saturating_sub(1)];
        let found = self.tree.find(wanted.tenant, known, self.shape.block_tokens);
        // What is found unused cannot be evicted any more.
        let revived = found.blocks.iter().filter(|block| self.tree.is_unused(**block)).count();
        let fresh = self.blocks_of(wanted.positions).saturating_sub(found.blocks.len());
        (fresh + revived <= self.available()).then_some(found)
    }

    fn blocks_of(&self, positions: usize) -> usize {
        positions.div_ceil(self.shape.block_tokens)
    }

    /// Gives the request a lane and promises it its blocks, if there is room.
    pub(crate) fn admit(&mut self, wanted: Wanted<'_>) -> Option<Admitted> {
        let Found { blocks, partial } = self.find(wanted)?;
        let lane = self.lanes.pop()?;
        blocks.iter().for_each(|block| self.tree.acquire(*block));
        let promised = self.blocks_of(wanted.positions) - blocks.len();
        self.promised += promised;
        let shared = blocks.len();
        let mut sequence =
            Sequence { lane, tenant: wanted.tenant.into(), table: blocks, shared, promised, moved: true };
        let mut reused = shared * self.shape.block_tokens;
        let copy = partial.map(|(from, positions)| {
            reused += positions;
            // The last to be evicted. If it comes to that, it is its own copy.
            self.tree.touch(from);
            BlockCopy { from, to: self.take(&mut sequence), positions }
        });
        Some(Admitted { sequence, reused, copy: copy.filter(|copy| copy.from != copy.to) })
    }

    /// Shares what others have published since of the tokens behind the first `computed`; how many are in the cache then.
    pub(crate) fn catch_up(&mut self, sequence: &mut Sequence, tokens: &[TokenId], mut computed: usize) -> usize {
        let size = self.shape.block_tokens;
        while computed == sequence.shared * size
            && sequence.table.len() == sequence.shared
            && computed + size < tokens.len()
            && let Some(block) = self.tree.child(&sequence.tenant, sequence.tail(), &tokens[computed..computed + size])
        {
            self.tree.acquire(block);
            self.promised -= 1;
            sequence.promised -= 1;
            sequence.table.push(block);
            sequence.shared += 1;
            sequence.moved = true;
            computed += size;
        }
        computed
    }

    /// Sees that the first `positions` of a sequence have their blocks.
    pub(crate) fn extend(&mut self, sequence: &mut Sequence, positions: usize) {
        while sequence.table.len() < self.blocks_of(positions) {
            self.take(sequence);
        }
    }

    fn take(&mut self, sequence: &mut Sequence) -> Block {
        debug_assert!(sequence.promised > 0, "lane {} takes more than it was promised", sequence.lane);
        let block = self.free.pop().or_else(|| self.tree.evict()).expect("no more is promised than there is");
        self.promised -= 1;
        sequence.promised -= 1;
        sequence.table.push(block);
        sequence.moved = true;
        block
    }

    /// Lets others share the blocks that are full, now that `computed` tokens are in the cache. What another sequence has published
    /// before is used instead.
    pub(crate) fn publish(&mut self, sequence: &mut Sequence, computed: &[TokenId]) {
        for tokens in computed.chunks_exact(self.shape.block_tokens).skip(sequence.shared) {
            let block = sequence.table[sequence.shared];
            match self.tree.insert(&sequence.tenant, sequence.tail(), tokens, block, 1) {
                Inserted::Added { superseded } => self.free.extend(superseded),
                Inserted::Exists(other) => {
                    self.tree.acquire(other);
                    self.free.push(block);
                    sequence.table[sequence.shared] = other;
                    sequence.moved = true;
                }
                Inserted::Refused => return,
            }
            sequence.shared += 1;
        }
    }

    /// Gives everything back. The tree keeps the `computed` tokens, as far as it may.
    pub(crate) fn release(&mut self, mut sequence: Sequence, computed: &[TokenId]) {
        self.publish(&mut sequence, computed);
        self.keep_rest(&mut sequence, computed);
        self.clear(&mut sequence);
        debug_assert!(!self.lanes.contains(&sequence.lane), "lane {} is released twice", sequence.lane);
        self.lanes.push(sequence.lane);
        while self.tree.unused() > self.shape.kept_blocks
            && let Some(block) = self.tree.evict()
        {
            self.free.push(block);
        }
    }

    /// Puts the last block, which is not full, into the tree.
    fn keep_rest(&mut self, sequence: &mut Sequence, computed: &[TokenId]) {
        let rest = computed.get(sequence.shared * self.shape.block_tokens..).unwrap_or_default();
        if rest.is_empty() || rest.len() >= self.shape.block_tokens {
            return;
        }
        let block = sequence.table[sequence.shared];
        if let Inserted::Added { superseded } = self.tree.insert(&sequence.tenant, sequence.tail(), rest, block, 0) {
            self.free.extend(superseded);
            sequence.table.remove(sequence.shared);
        }
    }

    /// Takes all blocks and promises from a sequence.
    fn clear(&mut self, sequence: &mut Sequence) {
        self.promised -= std::mem::take(&mut sequence.promised);
        self.free.extend(sequence.table.drain(sequence.shared..));
        while let Some(block) = sequence.table.pop() {
            if self.tree.release(block) {
                self.free.push(block);
            }
        }
        sequence.shared = 0;
        sequence.moved = true;
    }

    /// Lets a sequence begin anew. `false`: there is no longer room for it, as what it shared with others it would now have alone.
    #[must_use]
    pub(crate) fn restart(&mut self, sequence: &mut Sequence, positions: usize) -> bool {
        self.clear(sequence);
        let needed = self.blocks_of(positions);
        let fits = needed <= self.available();
        if fits {
            self.promised += needed;
            sequence.promised = needed;
        }
        fits
    }

    /// Forgets what is cached, after a failure of the model. Running sequences keep what they have until they release it.
    pub(crate) fn forget(&mut self) {
        let free = self.tree.forget();
        self.free.extend(free);
    }
}

#[cfg(test)]
mod tests;
