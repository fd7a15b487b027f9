//! How tenants share the lanes while several are there.
//!
//! Nothing is preempted, so a lane that a newcomer is to find at once must be free already: who has its share of the lanes leaves
//! some idle ones to those who have less. One tenant alone may have all of them.

/// One lane in this many is kept; of fewer lanes, none. Enough for a tenant whose requests come at random to find one nearly always.
const LANES_PER_KEPT: usize = 4;

/// How many lanes each of `contenders` tenants may have before it must leave some.
pub(crate) fn share(lanes: usize, contenders: usize) -> usize {
    lanes.div_ceil(contenders.max(1))
}

/// How many idle lanes are left to those who have less than their share.
pub(crate) fn kept(lanes: usize) -> usize {
    lanes / LANES_PER_KEPT
}
