//! The pool over a cache that remembers what was written where, and by whom: whoever reads a block must find its own tokens.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::random;

const SIZE: usize = 4;
const TENANTS: [&str; 3] = ["a", "b", "c"];

impl BlockPool {
    /// Checks that every lane and block is somewhere once, given what is held.
    pub(crate) fn check(&self, held: &[&Sequence]) {
        let lanes: HashSet<_> = held.iter().map(|sequence| sequence.lane).chain(self.lanes.iter().copied()).collect();
        assert_eq!((lanes.len(), held.len() + self.lanes.len()), (self.shape.lanes, self.shape.lanes), "lanes leak");
        let mut users = HashMap::<Block, usize>::new();
        let own = held.iter().flat_map(|sequence| &sequence.table[sequence.shared..]);
        let mut outside: Vec<Block> = own.chain(&self.free).copied().collect();
        for block in held.iter().flat_map(|sequence| &sequence.table[..sequence.shared]) {
            *users.entry(*block).or_default() += 1;
        }
        outside.extend(self.tree.check(&users));
        outside.sort_unstable();
        assert_eq!(outside, (0..self.shape.blocks as Block).collect::<Vec<_>>(), "blocks leak");
        assert_eq!(self.promised, held.iter().map(|sequence| sequence.promised).sum::<usize>(), "promises leak");
        assert!(self.promised <= self.free.len() + self.tree.unused(), "more is promised than there is");
    }

    /// Whether nothing is held and nothing kept.
    fn is_empty(&self) -> bool {
        (self.lanes.len(), self.free.len(), self.promised) == (self.shape.lanes, self.shape.blocks, 0)
    }
}

/// A token with its tenant, as a block remembers it.
type Written = (&'static str, TokenId);

/// A sequence as it should be.
struct Expected {
    sequence: Sequence,
    tenant: &'static str,
    tokens: Vec<TokenId>,
    positions: usize,
    computed: usize,
}

/// A pool, what is in its blocks, and who runs.
struct World {
    pool: BlockPool,
    blocks: Vec<Vec<Written>>,
    running: Vec<Expected>,
    reused: usize,
}

impl World {
    fn new(lanes: usize, blocks: usize, kept_blocks: usize) -> Self {
        let shape = PoolShape { lanes, blocks, block_tokens: SIZE, kept_blocks };
        Self { pool: BlockPool::new(shape), blocks: vec![vec![]; blocks], running: vec![], reused: 0 }
    }

    /// How many of the tokens are in the cache; none: there is no room.
    fn admit(&mut self, tenant: &'static str, tokens: Vec<TokenId>, reply: usize) -> Option<usize> {
        let positions = tokens.len() + reply;
        let wanted = Wanted { tenant, tokens: &tokens, positions };
        let has_room = self.pool.has_room(wanted);
        let admitted = self.pool.admit(wanted);
        assert_eq!(has_room, admitted.is_some());
        let Admitted { sequence, reused, copy } = admitted?;
        if let Some(BlockCopy { from, to, positions }) = copy {
            self.blocks[to as usize] = self.blocks[from as usize][..positions].to_vec();
        }
        assert!(reused < tokens.len());
        self.reused += reused;
        let expected = Expected { sequence, tenant, tokens, positions, computed: reused };
        self.read(&expected);
        self.running.push(expected);
        Some(reused)
    }

    /// Computes up to `count` tokens of the prompt, or one of the reply.
    fn compute(&mut self, number: usize, count: usize, token: TokenId) {
        let Expected { sequence, tenant, tokens, positions, computed } = &mut self.running[number];
        if *computed == tokens.len() && tokens.len() < *positions {
            tokens.push(token);
        }
        *computed = self.pool.catch_up(sequence, tokens, *computed);
        let end = tokens.len().min(*computed + count);
        self.pool.extend(sequence, end);
        for (at, token) in tokens.iter().enumerate().take(end).skip(*computed) {
            let block = &mut self.blocks[sequence.table[at / SIZE] as usize];
            block.truncate(at % SIZE);
            assert_eq!(block.len(), at % SIZE, "a hole");
            block.push((tenant, *token));
        }
        *computed = end;
        self.pool.publish(sequence, &tokens[..end]);
        self.read(&self.running[number]);
    }

    /// The cache must have what the sequence computed or was told that it has.
    fn read(&self, expected: &Expected) {
        let Expected { sequence, tenant, tokens, computed, .. } = expected;
        for (at, token) in tokens[..*computed].iter().enumerate() {
            let block = &self.blocks[sequence.table[at / SIZE] as usize];
            assert_eq!(block.get(at % SIZE), Some(&(*tenant, *token)), "lane {} at {at}", sequence.lane);
        }
    }

    fn release(&mut self, number: usize) {
        let Expected { sequence, tokens, computed, .. } = self.running.swap_remove(number);
        self.pool.release(sequence, &tokens[..computed]);
    }

    /// As after a failure of the model.
    fn fail(&mut self) {
        self.pool.forget();
        self.blocks.fill(vec![("nobody", 0); SIZE]);
        for expected in std::mem::take(&mut self.running) {
            let mut expected = Expected { computed: 0, ..expected };
            if self.pool.restart(&mut expected.sequence, expected.positions) {
                self.running.push(expected);
            } else {
                self.pool.release(expected.sequence, &[]);
            }
        }
    }

    fn check(&self) {
        self.pool.check(&self.running.iter().map(|expected| &expected.sequence).collect::<Vec<_>>());
        self.running.iter().for_each(|expected| self.read(expected));
        let kept = self.pool.shape.kept_blocks + self.running.iter().map(|one| one.sequence.table.len()).sum::<usize>();
        assert!(self.pool.tree.unused() <= kept);
    }
}

/// Few different beginnings, so that much is shared.
fn tokens(dice: u64) -> Vec<TokenId> {
    let length = 1 + (dice % 40) as usize;
    let turns = [dice / 40 % 3, dice / 120 % 4, dice / 480 % 50];
    (0..length).map(|at| (turns[(at / 11).min(2)] * 100) as TokenId + at as TokenId).collect()
}

#[test]
fn nothing_leaks_and_nothing_is_mixed_up_in_a_million_operations() {
    let mut world = World::new(6, 48, 20);
    let (mut refused, mut admitted) = (0, 0);
    for operation in 0..1_000_000 {
        let dice = random::bits(7, operation);
        let (kind, number, dice) = (dice % 64, (dice / 64 % 1_000) as usize, dice / 64_000);
        let running = world.running.len();
        match kind {
            0..15 => match world.admit(TENANTS[number % 3], tokens(dice), number % 20) {
                Some(_) => admitted += 1,
                None => refused += 1,
            },
            15..54 if running > 0 => {
                world.compute(number % running, 1 + (dice % 9) as usize, (dice / 9 % 5) as TokenId)
            }
            54..63 if running > 0 => world.release(number % running),
            63 if dice % 100 == 0 => world.fail(),
            _ => {}
        }
        if operation % 64 == 0 {
            world.check();
        }
    }
    assert!(admitted > 50_000 && refused > 1_000 && world.reused > 500_000, "{admitted}, {refused}, {}", world.reused);
    (0..world.running.len()).rev().for_each(|number| world.release(number));
    world.check();
    while let Some(block) = world.pool.tree.evict() {
        world.pool.free.push(block);
    }
    assert!(world.pool.is_empty());
}

#[test]
fn as_much_is_found_as_was_computed_and_no_more() {
    // Nothing is evicted here, so that it is known what must be there: all of what ended, the full blocks of what runs.
    let mut world = World::new(400, 10_000, 10_000);
    let mut computed: Vec<(&str, Vec<TokenId>)> = Vec::new();
    for request in 0..300 {
        let dice = random::bits(8, request);
        let (tenant, tokens) = (TENANTS[(dice % 3) as usize], tokens(dice / 3));
        let known = &tokens[..tokens.len() - 1];
        let common = |(_, other): &(_, Vec<TokenId>)| other.iter().zip(known).take_while(|(a, b)| a == b).count();
        let best = computed.iter().filter(|(other, _)| *other == tenant).map(common).max().unwrap_or(0);
        assert_eq!(world.admit(tenant, tokens.clone(), 0), Some(best), "request {request}");
        let number = world.running.len() - 1;
        world.compute(number, tokens.len(), 0);
        if dice.is_multiple_of(2) {
            world.release(number);
            computed.push((tenant, tokens));
        } else {
            computed.push((tenant, tokens[..tokens.len() / SIZE * SIZE].to_vec()));
        }
    }
}

#[test]
fn what_was_used_longest_ago_is_evicted_first() {
    let mut world = World::new(1, 12, 12);
    let conversation = |number: TokenId| -> Vec<TokenId> { (0..13).map(|at| number * 100 + at).collect() };
    let mut ask = |number| {
        let reused = world.admit("a", conversation(number), 3).expect("there is room");
        world.compute(0, 13, 0);
        world.release(0);
        reused
    };
    // Each takes four blocks, of which the last has one token: three fit.
    assert_eq!([ask(1), ask(2), ask(3)], [0, 0, 0]);
    assert_eq!([ask(1), ask(2), ask(3)], [12, 12, 12]);
    assert_eq!([ask(1), ask(4)], [12, 0]);
    assert_eq!(ask(1), 12);
    // The fourth took the end of the second, which was used longest ago, and its beginning last.
    assert!(ask(2) < 12);
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut world = World::new(2, 100, 3);
    for number in 0..10 {
        world.admit("a", (0..30).map(|at| number * 100 + at).collect(), 0);
        world.compute(0, 30, 0);
        world.release(0);
        assert_eq!(world.pool.tree.unused(), 3);
    }
    // The beginning stays longest.
    assert_eq!(world.admit("a", (900..930).collect(), 0), Some(12));
}

#[test]
fn a_beginning_is_kept_once_while_its_requests_run() {
    let mut world = World::new(9, 100, 100);
    let system: Vec<TokenId> = (1..=20).collect();
    for caller in 0..8 {
        let prompt = [&system[..], &[100 + caller; 3]].concat();
        // The first block that differs goes on alike for nobody yet: the fifth block ends where the system prompt does.
        assert_eq!(world.admit("a", prompt, 1), Some(if caller == 0 { 0 } else { 20 }));
        let number = world.running.len() - 1;
        world.compute(number, 23, 0);
    }
    assert_eq!(world.admit("b", system, 1), Some(0));
    world.check();
    // Five blocks for all together, one more for each.
    assert_eq!(world.pool.free.len(), 100 - 5 - 8);
}

#[test]
fn requests_that_begin_together_compute_their_beginning_once() {
    let mut world = World::new(3, 100, 100);
    let prompt: Vec<TokenId> = (1..=21).collect();
    for _ in 0..3 {
        assert_eq!(world.admit("a", prompt.clone(), 1), Some(0));
    }
    world.compute(0, 12, 0);
    world.compute(0, 12, 0);
    // One had computed its own first block by then, which is given up for the one that is there.
    world.compute(1, 21, 0);
    world.check();
    assert_eq!(world.running[0].sequence.table[..5], world.running[1].sequence.table[..5]);
    assert_eq!(world.pool.free.len(), 100 - 5 - 2);
}
