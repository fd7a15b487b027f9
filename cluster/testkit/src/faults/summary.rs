//! A whole run of faults: what came of them, what the nodes counted, and whether that is enough to prove anything.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use parlance_loadtest::{
    checker::{
        owners::Ownership,
        pace::{Pace, Trouble},
    },
    load::Load,
};
use serde::Serialize;

use super::{Outcome, Planned};
use crate::cluster::Cluster;

/// Writes of owners that were none any more, seen and dropped.
pub const FENCED: &str = "parlance_fenced_records_total";
/// Repeated messages that joined their first one.
pub const DEDUPED: &str = "parlance_dedupe_hits_total";
/// Shards that changed their owner.
pub const MOVES: &str = "parlance_shard_moves_total";
const COUNTED: [&str; 3] = [FENCED, DEDUPED, MOVES];

/// Counters over all starts of all nodes, as far as they were scraped: what a node counts after the last scrape before its death is lost.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// By node and boot, then by counter.
    boots: BTreeMap<(String, String), BTreeMap<&'static str, f64>>,
}

impl Tally {
    /// Scrapes every node that answers.
    pub async fn scrape(&mut self, cluster: &Cluster) {
        for name in cluster.running() {
            if let (Some(boot), Ok(metrics)) = (cluster.boot(name), cluster.metrics(name).await) {
                let counts = COUNTED.map(|counter| (counter, metrics.sum(counter, &[])));
                self.note(name, boot, counts);
            }
        }
    }

    fn note(&mut self, node: &str, boot: String, counts: [(&'static str, f64); COUNTED.len()]) {
        self.boots.entry((node.to_owned(), boot)).or_default().extend(counts);
    }

    /// All starts of all nodes together.
    pub fn total(&self, counter: &str) -> f64 {
        self.boots.values().filter_map(|counts| counts.get(counter)).sum()
    }
}

/// What a run of faults came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// The seed of its schedule.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    /// Every fault.
    pub outcomes: Vec<Outcome>,
    /// What the nodes counted.
    pub tally: Tally,
}

/// What a run must show so that its result means anything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gate {
    /// What is asked for.
    pub what: &'static str,
    /// At least so much.
    pub wanted: f64,
    /// What there was.
    pub found: f64,
}

impl Gate {
    /// Whether there was enough.
    pub fn holds(&self) -> bool {
        self.found >= self.wanted
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds() { "ok" } else { "too little" };
        write!(f, "{}: {} of at least {}, {verdict}", self.what, self.found, self.wanted)
    }
}

impl Summary {
    /// Does all faults of a schedule, one after the other, to a cluster under this load. Tells each outcome as it comes, as a line of JSON.
    ///
    /// # Panics
    ///
    /// As [`Cluster::inflict`].
    pub async fn of_run(
        cluster: &Cluster,
        load: &Load,
        seed: u64,
        schedule: &[Planned],
        mut tell: impl FnMut(&str),
    ) -> Self {
        let begun = Instant::now();
        let mut summary = Self { seed, ..Self::default() };
        for planned in schedule {
            summary.tally.scrape(cluster).await;
            let outcome = cluster.inflict(planned, load.recorder()).await;
            tell(&json(&outcome));
            summary.outcomes.push(outcome);
        }
        summary.tally.scrape(cluster).await;
        summary.took = begun.elapsed();
        summary
    }

    /// When faults were under way.
    pub fn troubles(&self) -> Vec<Trouble> {
        let trouble = |outcome: &Outcome| Trouble { from_us: outcome.from_us, until_us: outcome.until_us };
        self.outcomes.iter().map(trouble).collect()
    }

    /// Faults that no probe saw.
    pub fn unconfirmed(&self) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|outcome| !outcome.confirmed).collect()
    }

    /// Against a vacuous pass. The numbers are those for 200 faults; a shorter run owes its share. What the shards' logs tell of late writes and
    /// moves counts in the place of what the nodes counted, which their deaths make less.
    pub fn gates(&self, pace: &Pace, owners: Option<&Ownership>) -> Vec<Gate> {
        let share = |of_all: f64| (of_all * self.outcomes.len() as f64 / 200.0).floor();
        let confirmed = self.outcomes.len() - self.unconfirmed().len();
        let gate = |what, wanted, found| Gate { what, wanted, found };
        let fenced = owners.map_or_else(|| self.tally.total(FENCED), |owners| owners.inert as f64);
        let moves = owners.map_or_else(|| self.tally.total(MOVES), |owners| owners.moves as f64);
        vec![
            gate("share of turns that succeed", 0.95, pace.success_ratio),
            gate("share answered within 10 s after heal", 0.99, pace.soon_ratio),
            gate("faults confirmed by a probe", self.outcomes.len() as f64, confirmed as f64),
            gate("writes of former owners dropped", share(20.0), fenced),
            gate("repeated messages joined", share(50.0), self.tally.total(DEDUPED)),
            gate("moves of shards", share(100.0), moves),
        ]
    }

    /// Every outcome as a line of JSON.
    pub fn json_lines(&self) -> String {
        self.outcomes.iter().map(|outcome| json(outcome) + "\n").collect()
    }

    /// A table for a document: how often each fault was done, and what came of it.
    pub fn markdown(&self, pace: &Pace, owners: Option<&Ownership>) -> String {
        let mut rows: BTreeMap<_, (usize, usize, u64)> = BTreeMap::new();
        for outcome in &self.outcomes {
            let row = rows.entry(outcome.fault).or_default();
            row.0 += 1;
            row.1 += usize::from(outcome.confirmed);
            row.2 = row.2.max(outcome.until_us - outcome.from_us);
        }
        let mut text = format!("{} faults in {} s, seed {}.\n\n", self.outcomes.len(), self.took.as_secs(), self.seed);
        text += "| fault | times | confirmed | longest, until all were ready again, s |\n|---|---|---|---|\n";
        for (fault, (times, confirmed, longest_us)) in rows {
            let longest_s = longest_us as f64 / 1e6;
            text += &format!("| {} | {times} | {confirmed} | {longest_s:.1} |\n", name(fault));
        }
        text += "\n| gate | at least | found |\n|---|---|---|\n";
        for gate in self.gates(pace, owners) {
            text += &format!("| {} | {} | {:.4} |\n", gate.what, gate.wanted, gate.found);
        }
        text
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn name(fault: super::Fault) -> String {
    json(&fault).trim_matches('"').replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    fn outcome(number: usize, confirmed: bool) -> Outcome {
        let (victims, evidence) = (vec!["a".to_owned()], "state Stopped".to_owned());
        let from_us = number as u64 * 1_000;
        Outcome { number, fault: Fault::Pause, victims, from_us, until_us: from_us + 500, confirmed, evidence }
    }

    fn run(confirmed: usize, not: usize) -> Summary {
        let outcomes = (0..confirmed + not).map(|number| outcome(number, number < confirmed)).collect();
        Summary { seed: 7, outcomes, ..Summary::default() }
    }

    fn failing(summary: &Summary, pace: &Pace, owners: Option<&Ownership>) -> Vec<&'static str> {
        summary.gates(pace, owners).iter().filter(|gate| !gate.holds()).map(|gate| gate.what).collect()
    }

    #[test]
    fn counters_are_summed_over_boots_and_no_scrape_counts_twice() {
        let mut tally = Tally::default();
        let counts = |fenced| COUNTED.map(|counter| (counter, if counter == FENCED { fenced } else { 0.0 }));
        tally.note("a", "1".into(), counts(3.0));
        tally.note("a", "1".into(), counts(5.0));
        tally.note("a", "2".into(), counts(1.0));
        tally.note("b", "1".into(), counts(2.0));
        assert_eq!((tally.total(FENCED), tally.total(MOVES)), (8.0, 0.0));
    }

    #[test]
    fn a_run_that_shows_nothing_does_not_pass() {
        let pace = Pace { success_ratio: 0.94, soon_ratio: 0.98, ..Pace::default() };
        let all = run(199, 1);
        assert_eq!(failing(&all, &pace, None).len(), 6, "every gate fails");
        let mut good = run(200, 0);
        good.tally.note("a", "1".into(), [(FENCED, 20.0), (DEDUPED, 50.0), (MOVES, 100.0)]);
        let pace = Pace { success_ratio: 0.95, soon_ratio: 0.99, ..Pace::default() };
        assert_eq!(failing(&good, &pace, None), [""; 0]);
        let owners = Ownership { inert: 19, moves: 100, ..Ownership::default() };
        assert_eq!(failing(&good, &pace, Some(&owners)), ["writes of former owners dropped"]);
    }

    #[test]
    fn troubles_and_lines_tell_every_fault() {
        let summary = run(2, 1);
        assert_eq!(summary.troubles()[1], Trouble { from_us: 1_000, until_us: 1_500 });
        let lines = summary.json_lines();
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.starts_with(r#"{"number":0,"fault":"pause","victims":["a"],"from_us":0,"#), "{lines}");
        let table = summary.markdown(&Pace::default(), None);
        assert!(table.contains("| pause | 3 | 2 | 0.0 |") && table.contains("seed 7"), "{table}");
    }
}
