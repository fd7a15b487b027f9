//! How soon turns are answered once nothing is wrong any more.
//!
//! Whoever does something to a deployment says from when to when: a [`Trouble`]. A turn's *calm wait* is the time that it waited outside every
//! trouble. Time-outs promise nothing during one, but all calm time counts, also that between two: a turn that each of ten troubles delays has
//! no excuse for the nine pauses. So this is at least as strict as counting from the last heal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Violation;
use crate::history::{Event, EventKind};

/// An acknowledged turn must be answered within so much calm time.
const LIMIT_US: u64 = 60_000_000;
/// Nearly all that were under way during a trouble are to be answered within so much calm time.
const SOON_US: u64 = 10_000_000;

/// From when to when something was done to the deployment, on the history's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When it began, in microseconds.
    pub from_us: u64,
    /// When it was healed, in microseconds.
    pub until_us: u64,
}

/// How soon turns were answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pace {
    /// Messages that were answered with a reply, of all that were sent.
    pub success_ratio: f64,
    /// Messages that were under way during a trouble. Those that a client gave up without knowing whether they were accepted do not count.
    pub affected: usize,
    /// Those of them that were answered within 10 s of calm, of all: 1 where there were none.
    pub soon_ratio: f64,
    /// The longest calm wait between acknowledgement and answer, or the client's last look, in microseconds.
    pub slowest_us: u64,
}

/// How long one message took, for a plot over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Waited {
    /// When it was first sent, in microseconds.
    pub invoked_us: u64,
    /// From then until its acknowledgement, if there was one.
    pub acknowledged_after_us: Option<u64>,
    /// From then until its answer, if there was one.
    pub answered_after_us: Option<u64>,
}

/// How long every message took, in the order in which they were first sent. Unlike in [`pace`], time under trouble counts.
pub fn waits(history: &[Event]) -> Vec<Waited> {
    let waited = |wait: &Wait| {
        let after = |at_us: Option<u64>| at_us.map(|at_us| at_us - wait.invoked_us);
        let (acknowledged_after_us, answered_after_us) = (after(wait.acknowledged_us), after(wait.answered_us));
        Waited { invoked_us: wait.invoked_us, acknowledged_after_us, answered_after_us }
    };
    let mut waits: Vec<Waited> = collect(history).values().map(waited).collect();
    waits.sort_unstable_by_key(|wait| wait.invoked_us);
    waits
}

/// What a client went through with one message.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    invoked_us: u64,
    acknowledged_us: Option<u64>,
    /// When it was answered, with a reply or a failure.
    answered_us: Option<u64>,
    is_reply: bool,
    /// When the client last saw anything of it.
    last_us: u64,
    is_refused: bool,
}

/// Measures a history, and finds what was answered too late. `troubles` may overlap and be in any order.
pub fn pace(history: &[Event], troubles: &[Trouble]) -> (Pace, Vec<Violation>) {
    let troubles = merge(troubles);
    let waits = collect(history);
    let mut pace = Pace { soon_ratio: 1.0, ..Pace::default() };
    let (mut replied, mut soon) = (0, 0);
    let mut late = Vec::new();
    for (message, wait) in &waits {
        replied += usize::from(wait.is_reply);
        if wait.is_affected(&troubles) {
            pace.affected += 1;
            let calm_us = calm(&troubles, wait.invoked_us, wait.end_us());
            soon += usize::from(wait.answered_us.is_some() && calm_us <= SOON_US);
        }
        let Some(acknowledged_us) = wait.acknowledged_us else { continue };
        let calm_us = calm(&troubles, acknowledged_us, wait.end_us());
        pace.slowest_us = pace.slowest_us.max(calm_us);
        if calm_us > LIMIT_US {
            late.push(Violation::AnsweredLate { message: (*message).to_owned(), calm_us });
        }
    }
    pace.success_ratio = ratio(replied, waits.len());
    pace.soon_ratio = ratio(soon, pace.affected);
    (pace, late)
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

fn collect(history: &[Event]) -> BTreeMap<&str, Wait> {
    let mut waits: BTreeMap<&str, Wait> = BTreeMap::new();
    for event in history {
        let at_us = event.at_us;
        let wait = waits.entry(&event.message).or_insert(Wait { invoked_us: at_us, ..Wait::default() });
        wait.last_us = at_us;
        wait.is_refused = matches!(event.kind, EventKind::Refused { .. });
        if let EventKind::Acknowledged { .. } | EventKind::Replied { .. } | EventKind::Failed { .. } = event.kind {
            wait.acknowledged_us.get_or_insert(at_us);
        }
        if let EventKind::Replied { .. } | EventKind::Failed { .. } = event.kind {
            wait.answered_us.get_or_insert(at_us);
            wait.is_reply |= matches!(event.kind, EventKind::Replied { .. });
        }
    }
    waits
}

impl Wait {
    fn end_us(&self) -> u64 {
        self.answered_us.unwrap_or(self.last_us)
    }

    fn is_affected(&self, troubles: &[Trouble]) -> bool {
        let is_known = self.acknowledged_us.is_some() || self.is_refused;
        let touches = |trouble: &Trouble| trouble.from_us <= self.end_us() && self.invoked_us <= trouble.until_us;
        is_known && troubles.iter().any(touches)
    }
}

/// The same times without overlaps, in order.
fn merge(troubles: &[Trouble]) -> Vec<Trouble> {
    let mut sorted = troubles.to_vec();
    sorted.sort_unstable_by_key(|trouble| trouble.from_us);
    let mut merged: Vec<Trouble> = Vec::new();
    for trouble in sorted {
        match merged.last_mut() {
            Some(last) if trouble.from_us <= last.until_us => last.until_us = last.until_us.max(trouble.until_us),
            _ => merged.push(trouble),
        }
    }
    merged
}

/// How much of a time lies outside all troubles, which do not overlap.
fn calm(troubles: &[Trouble], from_us: u64, until_us: u64) -> u64 {
    let overlap = |trouble: &Trouble| trouble.until_us.min(until_us).saturating_sub(trouble.from_us.max(from_us));
    until_us.saturating_sub(from_us) - troubles.iter().map(overlap).sum::<u64>()
}

#[cfg(test)]
mod tests;
