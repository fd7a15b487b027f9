//! The simulated network: messages that take time, cuts, and links that notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use parlance_cluster_node::identity::Incarnation;
use parlance_cluster_protocol::peer::Report;
use rand::{RngExt as _, rngs::StdRng};

/// A link on which nothing comes for so long is over.
const SILENCE: Duration = Duration::from_millis(1_250);
/// How long two nodes take to link when nothing is in the way.
const LINKS_AFTER: Duration = Duration::from_millis(100);
const LONGEST_WAY_MS: u64 = 20;

/// What nodes send each other.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Gossip(Bytes),
    Report(Report),
    Heartbeat,
    /// Record this in the shard.
    Ask {
        shard: u16,
        proposal: u64,
    },
}

/// What becomes of a link.
pub(super) enum Change {
    Up(Incarnation, Incarnation),
    Down(Incarnation, Incarnation),
}

#[derive(Default)]
struct Pair {
    linked: bool,
    /// Since when it could be otherwise than it is.
    since: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Network {
    /// By time and order of sending.
    under_way: BTreeMap<(Duration, u64), (Incarnation, Incarnation, Message)>,
    sent: u64,
    /// Names between which nothing comes through, in this direction.
    cuts: BTreeSet<(String, String)>,
    /// Links, the smaller name first.
    pairs: BTreeMap<(Incarnation, Incarnation), Pair>,
}

impl Network {
    pub(super) fn send(
        &mut self,
        now: Duration,
        rng: &mut StdRng,
        from: &Incarnation,
        to: &Incarnation,
        message: Message,
    ) {
        if self.is_cut(from, to) || !self.linked(from, to) {
            return;
        }
        let way = Duration::from_millis(rng.random_range(0..LONGEST_WAY_MS));
        self.sent += 1;
        self.under_way.insert((now + way, self.sent), (from.clone(), to.clone(), message));
    }

    /// The next message that has arrived.
    pub(super) fn arrived(&mut self, now: Duration) -> Option<(Incarnation, Incarnation, Message)> {
        let first = self.under_way.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(super) fn cut(&mut self, from: &str, to: &str) {
        self.cuts.insert((from.to_owned(), to.to_owned()));
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
    }

    fn is_cut(&self, from: &Incarnation, to: &Incarnation) -> bool {
        self.cuts.contains(&(from.name.to_string(), to.name.to_string()))
    }

    pub(super) fn linked(&self, a: &Incarnation, b: &Incarnation) -> bool {
        self.pairs.get(&key(a, b)).is_some_and(|pair| pair.linked)
    }

    /// Links that come and go among those that live; `runs` says who does not stand still.
    pub(super) fn look(
        &mut self,
        now: Duration,
        live: &[Incarnation],
        runs: impl Fn(&Incarnation) -> bool,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone = |node: &Incarnation| !live.contains(node);
        for ((a, b), pair) in &self.pairs {
            if pair.linked && (gone(a) || gone(b)) {
                changes.push(Change::Down(a.clone(), b.clone()));
            }
        }
        self.pairs.retain(|(a, b), _| !gone(a) && !gone(b));
        for (index, a) in live.iter().enumerate() {
            for b in &live[index + 1..] {
                let open = runs(a) && runs(b) && !self.is_cut(a, b) && !self.is_cut(b, a);
                let (a, b) = key(a, b);
                let pair = self.pairs.entry((a.clone(), b.clone())).or_default();
                if pair.linked == open {
                    pair.since = None;
                    continue;
                }
                let since = *pair.since.get_or_insert(now);
                if now - since < if pair.linked { SILENCE } else { LINKS_AFTER } {
                    continue;
                }
                (pair.linked, pair.since) = (open, None);
                changes.push(if open { Change::Up(a, b) } else { Change::Down(a, b) });
            }
        }
        changes
    }
}

fn key(a: &Incarnation, b: &Incarnation) -> (Incarnation, Incarnation) {
    if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}
