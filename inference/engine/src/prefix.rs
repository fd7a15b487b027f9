//! What the KV cache holds, as a tree of blocks: sequences of one tenant that begin alike share the blocks of their beginning.
//!
//! ```text
//! tenant a ─┬─ [system prompt, 1st block] ─── [2nd block] ─┬─ [first conversation …] ─── [… partly filled]
//!           │                                              └─ [second conversation …]
//!           └─ [another prompt, partly filled]
//! tenant b ─── [the same system prompt: a block of its own]
//! ```
//!
//! A node is a block of the cache and the tokens in it. Full blocks are shared where they lie; a block that is filled in part can be
//! continued in one way only, so it is a leaf, and whoever begins like it copies what it has. Lookup compares tokens, not hashes of them:
//! a collision would answer one conversation with another's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::{Block, TokenId};

/// The blocks of finished and running sequences.
///
/// Invariant: no sibling's tokens begin with all of another's, so the sibling with the longest common beginning is next to where a key
/// would stand.
pub(crate) struct PrefixTree {
    /// By tenant. Nothing is ever found across tenants.
    roots: HashMap<Arc<str>, Children>,
    /// By block; none where the block is not in the tree.
    nodes: Vec<Option<Node>>,
    /// Leaves that no sequence uses, by when they were used last.
    evictable: BTreeSet<(u64, Block)>,
    /// Nodes that no sequence uses.
    unused: usize,
    clock: u64,
}

type Children = BTreeMap<Arc<[TokenId]>, Block>;

struct Node {
    parent: Parent,
    tokens: Arc<[TokenId]>,
    children: Children,
    /// Running sequences that read it. Invariant: no fewer than any child's.
    users: usize,
    used: u64,
}

#[derive(Clone)]
enum Parent {
    Tenant(Arc<str>),
    Node(Block),
    /// The tree has forgotten this node; it is there only for the sequences that use it.
    Nobody,
}

/// What a tenant's tree has of a sequence's beginning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Whole blocks, in order.
    pub(crate) blocks: Vec<Block>,
    /// A block that goes on like the sequence, and for how many positions.
    pub(crate) partial: Option<(Block, usize)>,
}

/// What became of a block that was offered to the tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It is in the tree now. It took the place of another, which is free.
    Added { superseded: Option<Block> },
    /// This block holds the same already, or more.
    Exists(Block),
    /// Its parent is forgotten.
    Refused,
}

impl PrefixTree {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            roots: HashMap::new(),
            nodes: std::iter::repeat_with(|| None).take(blocks).collect(),
            evictable: BTreeSet::new(),
            unused: 0,
            clock: 0,
        }
    }

    /// How many nodes no sequence uses: all of them can be evicted, leaves first.
    pub(crate) fn unused(&self) -> usize {
        self.unused
    }

    /// Whether no sequence uses the node.
    pub(crate) fn is_unused(&self, block: Block) -> bool {
        self.node(block).users == 0
    }

    /// Finds the longest beginning of `tokens`.
    pub(crate) fn find(&self, tenant: &str, tokens: &[TokenId], block_tokens: usize) -> Found {
        let (mut found, mut children) = (Found::default(), self.roots.get(tenant));
        for chunk in tokens.chunks(block_tokens) {
            let Some(siblings) = children else { break };
            match siblings.get(chunk) {
                Some(&block) if chunk.len() == block_tokens => {
                    found.blocks.push(block);
                    children = Some(&self.node(block).children);
                }
                _ => {
                    found.partial = nearest(siblings, chunk);
                    break;
                }
            }
        }
        found
    }

    /// The node behind `parent`, or at the tenant's root, that holds exactly `tokens`.
    pub(crate) fn child(&self, tenant: &str, parent: Option<Block>, tokens: &[TokenId]) -> Option<Block> {
        self.children(tenant, parent)?.get(tokens).copied()
    }

    fn children(&self, tenant: &str, parent: Option<Block>) -> Option<&Children> {
        parent.map_or_else(|| self.roots.get(tenant), |parent| Some(&self.node(parent).children))
    }

    /// Offers `block`, which holds `tokens`, as a node behind `parent` with so many users.
    pub(crate) fn insert(
        &mut self,
        tenant: &Arc<str>,
        parent: Option<Block>,
        tokens: &[TokenId],
        block: Block,
        users: usize,
    ) -> Inserted {
        if parent.is_some_and(|parent| matches!(self.node(parent).parent, Parent::Nobody)) {
            return Inserted::Refused;
        }
        let (before, after) = self.children(tenant, parent).map_or((None, None), |all| neighbours(all, tokens));
        if let Some((_, other)) = after.filter(|(key, _)| key.starts_with(tokens)) {
            self.touch(other);
            return Inserted::Exists(other);
        }
        // Only a block that is filled in part can be the beginning of another: a leaf without users.
        let superseded = before.filter(|(key, _)| tokens.starts_with(key)).map(|(_, other)| other);
        superseded.into_iter().for_each(|other| self.remove(other));
        self.add(tenant, parent, tokens.into(), block, users);
        Inserted::Added { superseded }
    }

    fn add(&mut self, tenant: &Arc<str>, parent: Option<Block>, tokens: Arc<[TokenId]>, block: Block, users: usize) {
        self.clock += 1;
        let node = Node {
            parent: parent.map_or_else(|| Parent::Tenant(tenant.clone()), Parent::Node),
            tokens: tokens.clone(),
            children: Children::new(),
            users,
            used: self.clock,
        };
        debug_assert!(self.nodes[block as usize].is_none(), "block {block} is in the tree twice");
        self.nodes[block as usize] = Some(node);
        self.unused += usize::from(users == 0);
        self.settle(block);
        match parent {
            None => {
                self.roots.entry(tenant.clone()).or_default().insert(tokens, block);
            }
            Some(parent) => {
                self.node_mut(parent).children.insert(tokens, block);
                self.settle(parent);
            }
        }
    }

    /// Notes that one more sequence uses the node.
    pub(crate) fn acquire(&mut self, block: Block) {
        let node = self.node_mut(block);
        node.users += 1;
        if node.users == 1 {
            self.unused -= 1;
            self.settle(block);
        }
    }

    /// Notes that one sequence fewer uses the node. Whether its block is free: the tree has forgotten it.
    #[must_use]
    pub(crate) fn release(&mut self, block: Block) -> bool {
        let node = self.node_mut(block);
        node.users -= 1;
        if node.users > 0 {
            return false;
        }
        if matches!(node.parent, Parent::Nobody) {
            self.nodes[block as usize] = None;
            return true;
        }
        self.unused += 1;
        self.touch(block);
        false
    }

    /// Makes the node the one that was used last.
    pub(crate) fn touch(&mut self, block: Block) {
        self.clock += 1;
        let clock = self.clock;
        let before = std::mem::replace(&mut self.node_mut(block).used, clock);
        self.evictable.remove(&(before, block));
        self.settle(block);
    }

    /// Takes out the leaf that was used longest ago among those that no sequence uses.
    pub(crate) fn evict(&mut self) -> Option<Block> {
        let (_, block) = self.evictable.first().copied()?;
        self.remove(block);
        Some(block)
    }

    /// Forgets everything: what no sequence uses is free at once, the rest when its last user releases it.
    pub(crate) fn forget(&mut self) -> Vec<Block> {
        self.roots.clear();
        self.evictable.clear();
        self.unused = 0;
        let mut free = Vec::new();
        for (block, slot) in (0..).zip(&mut self.nodes) {
            match slot {
                Some(node) if node.users > 0 => {
                    node.parent = Parent::Nobody;
                    node.children.clear();
                }
                Some(_) => {
                    *slot = None;
                    free.push(block);
                }
                None => {}
            }
        }
        free
    }

    fn remove(&mut self, block: Block) {
        let Some(node) = self.nodes[block as usize].take() else { return };
        debug_assert!(node.users == 0 && node.children.is_empty(), "block {block} is in use");
        self.unused -= 1;
        self.evictable.remove(&(node.used, block));
        match node.parent {
            Parent::Tenant(tenant) => {
                let children = self.roots.get_mut(&tenant);
                if children.is_some_and(|all| all.remove(&node.tokens).is_some() && all.is_empty()) {
                    self.roots.remove(&tenant);
                }
            }
            Parent::Node(parent) => {
                self.node_mut(parent).children.remove(&node.tokens);
                self.settle(parent);
            }
            Parent::Nobody => {}
        }
    }

    /// Puts a node among those that can be evicted, or takes it out.
    fn settle(&mut self, block: Block) {
        let node = self.node(block);
        let entry = (node.used, block);
        if node.users == 0 && node.children.is_empty() {
            self.evictable.insert(entry);
        } else {
            self.evictable.remove(&entry);
        }
    }

    fn node(&self, block: Block) -> &Node {
        self.nodes[block as usize].as_ref().expect("a block that was found or inserted and not removed")
    }

    fn node_mut(&mut self, block: Block) -> &mut Node {
        self.nodes[block as usize].as_mut().expect("a block that was found or inserted and not removed")
    }
}

/// A node among its siblings.
type Sibling = (Arc<[TokenId]>, Block);

/// What stands before a key, and what stands at it or behind.
fn neighbours(siblings: &Children, key: &[TokenId]) -> (Option<Sibling>, Option<Sibling>) {
    let owned = |(tokens, block): (&Arc<[TokenId]>, &Block)| (tokens.clone(), *block);
    let before = siblings.range::<[TokenId], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
    let after = siblings.range::<[TokenId], _>((Bound::Included(key), Bound::Unbounded)).next();
    (before.map(owned), after.map(owned))
}

/// The sibling that has the most tokens in common with the beginning of `wanted`, and how many.
fn nearest(siblings: &Children, wanted: &[TokenId]) -> Option<(Block, usize)> {
    let (before, after) = neighbours(siblings, wanted);
    let common = |tokens: &[TokenId]| tokens.iter().zip(wanted).take_while(|(a, b)| a == b).count();
    let both = before.into_iter().chain(after).map(|(tokens, block)| (block, common(&tokens)));
    both.filter(|(_, common)| *common > 0).max_by_key(|(_, common)| *common)
}

#[cfg(test)]
impl PrefixTree {
    /// Checks that the tree is in order, given who uses what; the blocks in it.
    pub(crate) fn check(&self, users: &HashMap<Block, usize>) -> Vec<Block> {
        let nodes = (0..).zip(&self.nodes).filter_map(|(block, node)| Some((block, node.as_ref()?)));
        let mut unused = 0;
        for (block, node) in nodes.clone() {
            assert_eq!(node.users, users.get(&block).copied().unwrap_or(0), "users of block {block}");
            let reachable = match &node.parent {
                Parent::Tenant(tenant) => self.child(tenant, None, &node.tokens) == Some(block),
                Parent::Node(parent) => {
                    assert!(self.node(*parent).users >= node.users, "block {block} is used without its parent");
                    self.child("", Some(*parent), &node.tokens) == Some(block)
                }
                Parent::Nobody => node.users > 0 && node.children.is_empty(),
            };
            assert!(reachable, "block {block} is lost");
            let evictable = node.users == 0 && node.children.is_empty();
            assert_eq!(self.evictable.contains(&(node.used, block)), evictable, "block {block}");
            unused += usize::from(node.users == 0);
        }
        assert_eq!(unused, self.unused);
        let leaves = nodes.clone().filter(|(_, node)| node.users == 0 && node.children.is_empty()).count();
        assert_eq!(leaves, self.evictable.len());
        let all = self.roots.values().chain(nodes.clone().map(|(_, node)| &node.children));
        for siblings in all {
            let keys: Vec<_> = siblings.keys().collect();
            assert!(keys.windows(2).all(|pair| !pair[1].starts_with(pair[0])), "one sibling begins another");
        }
        assert!(self.roots.values().all(|children| !children.is_empty()), "a tenant without anything");
        nodes.map(|(block, _)| block).collect()
    }
}
