//! What a member says of itself.

use foca::Identity;

use crate::{
    identity::{Incarnation, NodeName},
    placement::{Candidate, Weight},
    zone::Zone,
};

/// The longest address, in bytes: a name of DNS, a colon and a port.
pub const MAX_ADDRESS_BYTES: usize = 260;

/// Whether a member may own shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duty {
    /// It may.
    Serving,
    /// It gives up what it owns, and gets nothing.
    Draining,
    /// It is about to stop, and does not come back in this incarnation.
    Leaving,
}

/// The versions of the protocol between nodes that a member speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versions {
    /// The first.
    pub oldest: u32,
    /// The last. Invariant: not before the first.
    pub newest: u32,
}

/// A member's record. Only the member itself changes it.
///
/// Of two records under one name the greater counts: that of the later boot, and of one boot the later revision. The order of the fields
/// says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Which start of which node.
    pub node: Incarnation,
    /// How often this start has changed its record, or has come back after others took it for dead.
    pub revision: u32,
    /// Its duty.
    pub duty: Duty,
    /// Where other nodes reach it: host and port. Empty if unknown. Invariant: at most [`MAX_ADDRESS_BYTES`].
    pub address: String,
    /// Its zone.
    pub zone: Option<Zone>,
    /// Its part of the work.
    pub weight: Weight,
    /// What it speaks.
    pub versions: Versions,
}

impl Member {
    /// What is known of a node with which nothing but a link exists.
    pub(super) fn unknown(node: Incarnation) -> Self {
        Self {
            node,
            revision: 0,
            duty: Duty::Serving,
            address: String::new(),
            zone: None,
            weight: Weight::ONE,
            versions: Versions { oldest: 0, newest: 0 },
        }
    }

    /// Its record the next time it changes; none after four billion changes.
    pub(super) fn next(&self) -> Option<Self> {
        Some(Self { revision: self.revision.checked_add(1)?, ..self.clone() })
    }

    /// As [`plan`](crate::placement::plan) wants to know it.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            node: self.node.clone(),
            zone: self.zone.clone(),
            weight: self.weight,
            draining: self.duty != Duty::Serving,
        }
    }
}

impl Identity for Member {
    type Addr = NodeName;

    /// Who was taken for dead and is not goes on under its next revision.
    fn renew(&self) -> Option<Self> {
        if self.duty == Duty::Leaving { None } else { self.next() }
    }

    fn addr(&self) -> NodeName {
        self.node.name.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self > adversary
    }
}
