//! Faults, as a schedule that a seed draws, each with a probe that it really happened.

mod inject;
mod summary;

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom as _};
use serde::Serialize;

pub use self::{
    inject::Outcome,
    summary::{DEDUPED, FENCED, Gate, MOVES, Summary, Tally},
};

/// How long a node stands still, or a network is broken, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 1_000..=15_000;
const BREAK_MS: std::ops::RangeInclusive<u64> = 1_000..=10_000;

/// What can be done to a cluster. Which nodes are hit is drawn when it is done, for only then it is known who owns what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL of a node that owns a shard, while turns are open.
    KillOwner,
    /// SIGKILL of two nodes at once.
    KillTwo,
    /// SIGKILL of all nodes of a zone at once.
    KillZone,
    /// SIGKILL of an owner, and of another node as soon as the first one's shards have a new owner, or half a second later.
    KillAgain,
    /// SIGSTOP of an owner: it comes back believing that it still owns.
    Pause,
    /// An owner reaches no other node and none reaches it; it still reaches the stores.
    Isolate,
    /// The nodes fall into a minority and a majority.
    Split,
    /// What an owner says reaches no other node; it hears them.
    OneWay,
    /// An owner does not reach the brokers.
    LogCut,
    /// What an owner asks reaches the brokers; their answers do not reach it, so that it knows of no outcome.
    LogDeaf,
    /// SIGKILL of a broker of the test's own.
    BrokerKill,
    /// SIGSTOP of a broker of the test's own.
    BrokerPause,
    /// An owner does not reach the CQL server.
    RecordsCut,
    /// No node reaches the CQL server.
    RecordsDown,
    /// Writes reach the CQL server and its answers reach no node: time-outs after they were applied.
    RecordsDeaf,
    /// Between all nodes 30 % of what is sent is lost, and sent again as TCP does.
    Lossy,
    /// Between all nodes everything is 50 to 500 ms late.
    Slow,
    /// Every connection between an owner and the others is reset.
    Reset,
    /// SIGTERM of a node, and its start.
    Restart,
    /// The same for every node, one after the other.
    RollingRestart,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 20] = [
        Self::KillOwner,
        Self::KillTwo,
        Self::KillZone,
        Self::KillAgain,
        Self::Pause,
        Self::Isolate,
        Self::Split,
        Self::OneWay,
        Self::LogCut,
        Self::LogDeaf,
        Self::BrokerKill,
        Self::BrokerPause,
        Self::RecordsCut,
        Self::RecordsDown,
        Self::RecordsDeaf,
        Self::Lossy,
        Self::Slow,
        Self::Reset,
        Self::Restart,
        Self::RollingRestart,
    ];

    /// Those that need only processes: no network, and no brokers behind it.
    pub const PROCESSES: [Self; 7] = [
        Self::KillOwner,
        Self::KillTwo,
        Self::KillZone,
        Self::KillAgain,
        Self::Pause,
        Self::Restart,
        Self::RollingRestart,
    ];

    /// Whether it needs brokers of the test's own.
    pub fn needs_brokers(self) -> bool {
        matches!(self, Self::LogCut | Self::LogDeaf | Self::BrokerKill | Self::BrokerPause)
    }

    /// How long it lasts by itself, if it does; the others are over when what was ended runs again.
    fn lasts_ms(self) -> Option<std::ops::RangeInclusive<u64>> {
        match self {
            Self::Pause => Some(PAUSE_MS),
            Self::KillOwner | Self::KillTwo | Self::KillZone | Self::KillAgain | Self::BrokerKill => Some(500..=3_000),
            Self::Reset | Self::Restart | Self::RollingRestart => None,
            _ => Some(BREAK_MS),
        }
    }
}

/// A fault of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// Its place in the schedule, from 0.
    pub number: usize,
    /// What is done.
    pub fault: Fault,
    /// How long it lasts: for a kill, until the dead are started again.
    pub lasts: Duration,
    /// Calm before it.
    pub calm: Duration,
    /// Draws whom it hits.
    pub draw: u64,
}

/// Draws a schedule of `count` faults. Every kind comes once before any comes twice. The same seed draws the same schedule.
///
/// # Panics
///
/// Where there is no kind of fault to draw.
pub fn schedule(seed: u64, kinds: &[Fault], count: usize, calm: std::ops::RangeInclusive<Duration>) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut left: Vec<Fault> = Vec::new();
    let draw = |number| {
        if left.is_empty() {
            left = kinds.to_vec();
        }
        let fault = left.swap_remove(rng.random_range(0..left.len()));
        let lasts = fault.lasts_ms().map_or(0, |range| rng.random_range(range));
        let (calm, draw) = (rng.random_range(calm.clone()), rng.random());
        Planned { number, fault, lasts: Duration::from_millis(lasts), calm, draw }
    };
    (0..count).map(draw).collect()
}

/// Draws one of a list, which is not empty.
fn pick<'a>(rng: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(rng).copied().unwrap_or_else(|| panic!("there is nobody to choose from"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CALM: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(2);

    #[test]
    fn a_seed_draws_one_schedule_and_another_draws_another() {
        let one = schedule(7, &Fault::ALL, 100, CALM);
        assert_eq!(one, schedule(7, &Fault::ALL, 100, CALM));
        assert_ne!(one, schedule(8, &Fault::ALL, 100, CALM));
        // A longer run begins like a shorter one.
        assert_eq!(one[..50], schedule(7, &Fault::ALL, 50, CALM));
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let drawn = schedule(3, &Fault::ALL, 2 * Fault::ALL.len(), CALM);
        for round in drawn.chunks(Fault::ALL.len()) {
            let kinds: BTreeSet<Fault> = round.iter().map(|planned| planned.fault).collect();
            assert_eq!(kinds, BTreeSet::from(Fault::ALL));
        }
    }

    #[test]
    fn faults_last_as_long_as_they_may() {
        for planned in schedule(5, &Fault::ALL, 500, CALM) {
            assert!(CALM.contains(&planned.calm), "{planned:?}");
            let lasts_ms = planned.lasts.as_millis() as u64;
            let range = planned.fault.lasts_ms().unwrap_or(0..=0);
            assert!(range.contains(&lasts_ms), "{planned:?}");
        }
    }
}
