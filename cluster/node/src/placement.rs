//! Which node should own which shard, and which should be its hot standby.
//!
//! [`plan`] is a pure function of who is there and who owns what: every node that sees the same computes the same, in whatever order it
//! lists the members. It is a hint and no more. Only a claim in the shard's log makes an owner.
//!
//! - **Quotas.** Each serving member's share is `shards · weight / sum of weights`, and it gets the share rounded down or up: nobody is
//!   a whole shard from even. Who already holds the larger number keeps it, then the largest fractions round up.
//! - **Few moves.** An owner that lives and serves keeps what its quota allows. Only what has no such owner moves, and of a member over
//!   its quota only the surplus, which is what ranks lowest with it.
//! - **Whereto.** A shard that moves goes to its warm standby, if that has room, else to the member with room that ranks highest for it
//!   ([`cost`]). Shards without a live owner choose first, then those of draining members, then the surplus.
//! - **Standby.** The highest-ranked serving member in another zone than the owner's, or in any where there is no other zone.
//!
//! With `m` members and `s` shards, `plan` takes `O(m · s + s · log s)` steps: 8 to 16 ms for 100 members and 4,096 shards, on one core of a
//! small virtual machine.

mod score;
#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BTreeMap, num::NonZeroU32};

use crate::{
    identity::{Incarnation, NodeName},
    zone::Zone,
};
pub use score::cost;

/// How much of the work a member takes, beside the others' weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(NonZeroU32);

impl Weight {
    /// The weight of a node for which none is configured.
    pub const ONE: Self = Self(NonZeroU32::MIN);
    /// The greatest weight.
    pub const MAX: u32 = 1_000_000;

    /// The weight `weight`, if it is from 1 to [`Self::MAX`].
    pub fn new(weight: u32) -> Option<Self> {
        NonZeroU32::new(weight).filter(|weight| weight.get() <= Self::MAX).map(Self)
    }

    /// As a number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// A member that lives, and may own shards unless it is draining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub node: Incarnation,
    /// Its zone. Members that name none are in one zone together.
    pub zone: Option<Zone>,
    /// Its part of the work.
    pub weight: Weight,
    /// Whether it gives up what it owns, and gets nothing.
    pub draining: bool,
}

/// What is known of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// Who claimed it last, if anybody is known to have.
    pub owner: Option<Incarnation>,
    /// Who follows its log and could take over at once.
    pub warm: Option<Incarnation>,
}

/// Who should serve a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// Who should own it; none if nobody lives who could.
    pub owner: Option<Incarnation>,
    /// Who should be its hot standby. Never the owner.
    pub standby: Option<Incarnation>,
}

/// A change of owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: u32,
    /// Who lives and owns it now, and has to release it; none if the shard has no live owner.
    pub from: Option<Incarnation>,
    /// Who should claim it.
    pub to: Incarnation,
}

/// Who should serve each shard, and what may begin to move now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By shard: where it should be once every move is done.
    pub hints: Vec<Hint>,
    /// The moves that may be under way now: shards without a live owner first, then those of draining members, then the surplus. What
    /// exceeds the bound comes in later plans; until then its shard stays where it is.
    pub moves: Vec<Move>,
}

/// Plans for `shards` (by number) among `members`, with at most `max_moves` moves at once. Of two incarnations of one node the later counts.
pub fn plan(members: &[Candidate], shards: &[Shard], max_moves: usize) -> Plan {
    let mut table = Table::new(members, shards);
    table.keep(shards);
    let mut moves = table.place(shards);
    moves.truncate(max_moves);
    Plan { hints: table.hints(), moves }
}

/// An index among the members, in the order of their names.
type Index = usize;

/// Why a shard moves, in the order of choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Orphaned,
    Draining,
    Surplus,
}

struct Table<'a> {
    members: Vec<&'a Candidate>,
    /// How many shards each member should own. Invariant: 0 for those that drain, and the sum is the number of shards if anybody serves.
    quotas: Vec<usize>,
    /// How many shards each member has been given so far. Invariant: at most its quota, once `keep` is done.
    held: Vec<usize>,
    /// By shard: its owner.
    owners: Vec<Option<Index>>,
    /// The shards that need another owner, those of each cause in the order of their numbers.
    homeless: Vec<(Cause, u32)>,
}

impl<'a> Table<'a> {
    fn new(members: &'a [Candidate], shards: &[Shard]) -> Self {
        let mut by_name = BTreeMap::<&NodeName, &Candidate>::new();
        for member in members {
            let known = by_name.entry(&member.node.name).or_insert(member);
            if member.node.boot > known.node.boot {
                *known = member;
            }
        }
        let members: Vec<_> = by_name.into_values().collect();
        let mut table =
            Self { members, quotas: Vec::new(), held: Vec::new(), owners: Vec::new(), homeless: Vec::new() };
        table.owners = shards.iter().map(|shard| table.find(shard.owner.as_ref())).collect();
        table.held = vec![0; table.members.len()];
        for owner in table.owners.iter().flatten() {
            table.held[*owner] += 1;
        }
        table.quotas = table.quotas();
        table
    }

    /// Where the incarnation stands, if it lives.
    fn find(&self, node: Option<&Incarnation>) -> Option<Index> {
        let node = node?;
        let index = self.members.binary_search_by(|member| member.node.name.cmp(&node.name)).ok()?;
        (self.members[index].node == *node).then_some(index)
    }

    fn serving(&self) -> impl Iterator<Item = Index> + '_ {
        (0..self.members.len()).filter(|&member| !self.members[member].draining)
    }

    /// The weighted shares, in whole shards.
    fn quotas(&self) -> Vec<usize> {
        let mut quotas = vec![0; self.members.len()];
        let shards = self.owners.len() as u128;
        let weight = |member: Index| u128::from(self.members[member].weight.get());
        let total: u128 = self.serving().map(weight).sum();
        let mut fractions = Vec::new();
        for member in self.serving() {
            quotas[member] = (shards * weight(member) / total) as usize;
            fractions.push((member, shards * weight(member) % total));
        }
        let left: u128 = fractions.iter().map(|(_, fraction)| fraction).sum::<u128>().checked_div(total).unwrap_or(0);
        fractions.retain(|&(_, fraction)| fraction > 0);
        fractions.sort_by_key(|&(member, fraction)| (self.held[member] <= quotas[member], Reverse(fraction), member));
        for (member, _) in fractions.into_iter().take(left as usize) {
            quotas[member] += 1;
        }
        quotas
    }

    /// Leaves owners what their quotas allow, and notes what has to go elsewhere.
    fn keep(&mut self, shards: &[Shard]) {
        let mut owned = vec![Vec::new(); self.members.len()];
        for shard in 0..shards.len() as u32 {
            match self.owners[shard as usize] {
                None => self.homeless.push((Cause::Orphaned, shard)),
                Some(owner) => owned[owner].push(shard),
            }
        }
        for (owner, mut owned) in owned.into_iter().enumerate() {
            let Candidate { node, weight, draining, .. } = self.members[owner];
            if owned.len() > self.quotas[owner] {
                owned.sort_by_cached_key(|&shard| (cost(&node.name, *weight, shard), shard));
                let cause = if *draining { Cause::Draining } else { Cause::Surplus };
                self.homeless.extend(owned.drain(self.quotas[owner]..).map(|shard| (cause, shard)));
            }
            self.held[owner] = owned.len();
        }
        self.homeless.sort_unstable();
    }

    /// Finds an owner for every homeless shard, as far as anybody serves.
    fn place(&mut self, shards: &[Shard]) -> Vec<Move> {
        let mut moves = Vec::with_capacity(self.homeless.len());
        let homeless = std::mem::take(&mut self.homeless);
        for cause in homeless.chunk_by(|(one, _), (other, _)| one == other) {
            // Twice: nobody takes the room of a warm standby before it has been asked.
            let mut left = Vec::new();
            for &(_, shard) in cause {
                let warm = self.find(shards[shard as usize].warm.as_ref()).filter(|&member| self.has_room(member));
                match warm {
                    Some(member) => moves.push(self.give(shard, member)),
                    None => left.push(shard),
                }
            }
            for shard in left {
                if let Some(member) = self.best(shard, |member| self.has_room(member)) {
                    moves.push(self.give(shard, member));
                }
            }
        }
        moves
    }

    fn has_room(&self, member: Index) -> bool {
        self.held[member] < self.quotas[member]
    }

    fn give(&mut self, shard: u32, to: Index) -> Move {
        let from = self.owners[shard as usize].replace(to);
        self.held[to] += 1;
        Move { shard, from: from.map(|owner| self.members[owner].node.clone()), to: self.members[to].node.clone() }
    }

    /// The highest-ranked serving member that is eligible.
    fn best(&self, shard: u32, eligible: impl Fn(Index) -> bool) -> Option<Index> {
        self.serving().filter(|&member| eligible(member)).min_by_key(|&member| (self.cost(member, shard), member))
    }

    fn cost(&self, member: Index, shard: u32) -> u64 {
        cost(&self.members[member].node.name, self.members[member].weight, shard)
    }

    fn hints(&self) -> Vec<Hint> {
        let node = |member: Index| self.members[member].node.clone();
        let hints = self.owners.iter().zip(0..).map(|(&owner, shard)| Hint {
            owner: owner.map(node),
            standby: owner.and_then(|owner| self.standby(owner, shard)).map(node),
        });
        hints.collect()
    }

    fn standby(&self, owner: Index, shard: u32) -> Option<Index> {
        let zone = &self.members[owner].zone;
        self.serving()
            .filter(|&member| member != owner)
            .min_by_key(|&member| (self.members[member].zone == *zone, self.cost(member, shard), member))
    }
}
