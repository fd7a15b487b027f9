//! What foca wants to do later.

use std::{collections::BTreeMap, time::Duration};

use foca::Timer;

use super::record::Member;
use crate::identity::NodeName;

/// One series of timers. foca runs one of each at a time, so what replaces another in its series has made it void.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Series {
    IndirectProbe,
    Probe,
    Gossip,
    Announce,
    Down(NodeName),
}

/// The pending timers: at most one for each member and four more.
#[derive(Debug, Default)]
pub(super) struct Timers {
    pending: BTreeMap<Series, (Duration, Timer<Member>)>,
}

impl Timers {
    /// Has `timer` fire at `due`.
    pub(super) fn set(&mut self, timer: Timer<Member>, due: Duration) {
        let series = match &timer {
            Timer::SendIndirectProbe { .. } => Series::IndirectProbe,
            Timer::ProbeRandomMember(_) => Series::Probe,
            Timer::PeriodicGossip(_) => Series::Gossip,
            Timer::PeriodicAnnounce(_) => Series::Announce,
            Timer::ChangeSuspectToDown { member_id, .. } => Series::Down(member_id.node.name.clone()),
            // Not configured: the membership does both itself.
            Timer::PeriodicAnnounceDown(_) | Timer::RemoveDown(_) => return,
        };
        match self.pending.get(&series) {
            // A second suspicion of the same must not put off the end of the first.
            Some((_, pending)) if *pending == timer => {}
            _ => drop(self.pending.insert(series, (due, timer))),
        }
    }

    /// Takes out the next that is due, the earliest first.
    pub(super) fn next(&mut self, now: Duration) -> Option<Timer<Member>> {
        let (series, _) =
            self.pending.iter().filter(|(_, (due, _))| *due <= now).min_by_key(|(series, (due, _))| (*due, *series))?;
        let series = series.clone();
        self.pending.remove(&series).map(|(_, timer)| timer)
    }
}
