//! The shards' logs as anyone can read them: who owned what when, and whether nothing was accepted of anyone else.
//!
//! The rules are written here once more, apart from the ones that the nodes use, so that a mistake there is seen: a claim counts if it names the
//! latest one that counts; a record counts if it is of the latest claim that counts and has its next number; a release is the last of its claim.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Violation;

/// One entry of a shard's log, and what the nodes made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The shard.
    pub shard: u32,
    /// Its place in the shard's log.
    pub offset: u64,
    /// What it says.
    #[serde(flatten)]
    pub kind: EntryKind,
    /// Whether it counts for the nodes.
    pub accepted: bool,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum EntryKind {
    /// A node asks to own the shard.
    Claim {
        /// The node.
        node: String,
        /// Its own for this claim.
        nonce: String,
        /// The claim that it takes for the latest; none on a shard that nobody has claimed.
        previous: Option<Epoch>,
    },
    /// An owner's record.
    Data {
        /// The claim that it is written under.
        epoch: Epoch,
        /// Counted from 0.
        seq: u64,
    },
    /// An owner's last entry.
    Release {
        /// The claim that it ends.
        epoch: Epoch,
        /// Counted like a record.
        seq: u64,
    },
}

/// A claim by its place and its nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Where the claim lies.
    pub offset: u64,
    /// Its nonce.
    pub nonce: String,
}

/// Who owned the shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ownership {
    /// Claims that count.
    pub claims: usize,
    /// Those of them by another node than the one before.
    pub moves: usize,
    /// Records and releases that count for nobody: late writes of owners that were none any more, and what lies behind a gap.
    pub inert: usize,
    /// What must not be.
    pub violations: Vec<Violation>,
}

/// The state of one shard before an entry.
#[derive(Debug, Default)]
struct Shard<'a> {
    current: Option<Epoch>,
    owner: Option<&'a str>,
    /// The number of the owner's next entry; none behind its release.
    next: Option<u64>,
    next_offset: u64,
}

/// Judges whole logs from their beginnings; the entries of each shard are in order, and shards may alternate.
pub fn owners(log: &[LogEntry]) -> Ownership {
    let mut result = Ownership::default();
    let mut shards: BTreeMap<u32, Shard<'_>> = BTreeMap::new();
    let mut claimants: BTreeMap<&str, &str> = BTreeMap::new();
    for entry in log {
        let (shard, offset) = (entry.shard, entry.offset);
        let state = shards.entry(shard).or_default();
        if offset < state.next_offset {
            result.violations.push(Violation::LogOutOfOrder { shard, offset });
        }
        state.next_offset = offset + 1;
        if let EntryKind::Claim { node, nonce, .. } = &entry.kind
            && claimants.insert(nonce, node).is_some_and(|other| other != node)
        {
            result.violations.push(Violation::TwoOwners { shard, offset });
        }
        match (state.judge(entry, &mut result), entry.accepted) {
            (false, true) => result.violations.push(Violation::AcceptedOfNoOwner { shard, offset }),
            (true, false) => result.violations.push(Violation::DroppedOfOwner { shard, offset }),
            _ => {}
        }
    }
    result
}

impl<'a> Shard<'a> {
    /// Whether an entry counts; takes it in if so.
    fn judge(&mut self, entry: &'a LogEntry, result: &mut Ownership) -> bool {
        match &entry.kind {
            EntryKind::Claim { node, nonce, previous } => {
                let counts = *previous == self.current;
                if counts {
                    result.claims += 1;
                    result.moves += usize::from(self.owner.is_some_and(|owner| owner != node));
                    self.current = Some(Epoch { offset: entry.offset, nonce: nonce.clone() });
                    (self.owner, self.next) = (Some(node.as_str()), Some(0));
                }
                counts
            }
            EntryKind::Data { epoch, seq } | EntryKind::Release { epoch, seq } => {
                let counts = self.current.as_ref() == Some(epoch) && self.next == Some(*seq);
                result.inert += usize::from(!counts);
                if counts {
                    let is_last = matches!(entry.kind, EntryKind::Release { .. });
                    self.next = (!is_last).then_some(seq + 1);
                }
                counts
            }
        }
    }
}

#[cfg(test)]
mod tests;
