//! Which peers have gone silent, judged by their heartbeats.
//!
//! An accrual detector for each peer (Hayashibara, Défago, Yared and Katayama 2004, "The φ accrual failure detector"): from how far apart the last
//! heartbeats came it says how unlikely the present silence is, as `φ = −log₁₀ P(silence this long or longer)`. Where φ passes the threshold
//! a suspicion begins; the next heartbeat of the same incarnation ends it, and then it was false. With the defaults a peer is suspected
//! about 1.2 s after its last heartbeat on a quiet network, later where heartbeats are lost or late.
//!
//! Suspicions are hints. Time is [lived time](LivedTime): while this process was stopped it could not hear anybody, so it suspects nobody for it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    identity::{Incarnation, NodeName},
    lived::LivedTime,
};

/// Peers at once; more are not watched.
pub const MAX_PEERS: usize = 1_024;

/// When a peer is suspected.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Between two heartbeats of a peer.
    pub interval: Duration,
    /// How much longer than usual a silence may be before it counts at all.
    pub acceptable_pause: Duration,
    /// The least deviation of intervals that is assumed, however regular they were.
    pub least_deviation: Duration,
    /// The φ from which on a peer is suspected: 8 is one false suspicion in 10⁸ intervals, were they distributed normally.
    pub threshold: f64,
    /// How many intervals are remembered.
    pub window: usize,
    /// The longest time between two ticks of this process that is no pause of its own.
    pub longest_step: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(250),
            acceptable_pause: Duration::from_millis(400),
            least_deviation: Duration::from_millis(100),
            threshold: 8.0,
            window: 64,
            longest_step: Duration::from_millis(400),
        }
    }
}

/// A change of opinion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspicion {
    /// The peer has been silent for too long.
    Began(Incarnation),
    /// It has been heard of again: the suspicion was false.
    Ended(Incarnation),
}

/// What has been counted, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Suspicions that began.
    pub begun: u64,
    /// Suspicions that a heartbeat of the same incarnation ended.
    pub falsely: u64,
    /// Pauses of this process.
    pub pauses: u64,
}

/// Listens to the heartbeats of peers.
#[derive(Debug)]
pub struct Detector {
    options: Options,
    clock: LivedTime,
    /// Invariant: at most [`MAX_PEERS`].
    peers: BTreeMap<NodeName, Peer>,
    counts: Counts,
}

#[derive(Debug)]
struct Peer {
    node: Incarnation,
    /// When it was last heard, in lived time.
    heard: Duration,
    /// Between heartbeats, in seconds. Invariant: at least one and at most `window`.
    intervals: VecDeque<f64>,
    suspected: bool,
}

impl Detector {
    /// Watches nobody yet.
    pub fn new(options: Options) -> Self {
        let clock = LivedTime::new(options.longest_step);
        Self { options, clock, peers: BTreeMap::new(), counts: Counts::default() }
    }

    /// Watches `node` from `now` on, instead of any earlier incarnation. An earlier incarnation than the one that is watched is ignored.
    pub fn watch(&mut self, node: &Incarnation, now: Duration) {
        let heard = self.clock.advance(now);
        let known = self.peers.get(&node.name);
        if known.is_some_and(|peer| peer.node.boot >= node.boot) || (known.is_none() && self.peers.len() >= MAX_PEERS) {
            return;
        }
        let intervals = VecDeque::from([self.options.interval.as_secs_f64()]);
        self.peers.insert(node.name.clone(), Peer { node: node.clone(), heard, intervals, suspected: false });
    }

    /// Watches the node no longer.
    pub fn forget(&mut self, node: &NodeName) {
        self.peers.remove(node);
    }

    /// A heartbeat of `node`, or anything else, has come. Only the incarnation that is watched counts.
    pub fn heard(&mut self, node: &Incarnation, now: Duration) -> Option<Suspicion> {
        let lived = self.clock.advance(now);
        let peer = self.peers.get_mut(&node.name).filter(|peer| peer.node == *node)?;
        let silence = lived.saturating_sub(peer.heard);
        peer.heard = lived;
        // What comes in one burst after a stall says nothing about the next silence, and one long silence shall not excuse the next.
        if silence >= self.options.interval / 4 {
            let longest = self.options.interval + self.options.acceptable_pause;
            peer.intervals.push_back(silence.min(longest).as_secs_f64());
            if peer.intervals.len() > self.options.window {
                peer.intervals.pop_front();
            }
        }
        if !std::mem::take(&mut peer.suspected) {
            return None;
        }
        self.counts.falsely += 1;
        Some(Suspicion::Ended(node.clone()))
    }

    /// Looks who has been silent for too long. To be called several times in an `interval`.
    pub fn tick(&mut self, now: Duration) -> Vec<Suspicion> {
        let lived = self.clock.advance(now);
        let mut began = Vec::new();
        for peer in self.peers.values_mut().filter(|peer| !peer.suspected) {
            if peer.phi(lived, &self.options) >= self.options.threshold {
                peer.suspected = true;
                began.push(Suspicion::Began(peer.node.clone()));
            }
        }
        self.counts.begun += began.len() as u64;
        began
    }

    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        Counts { pauses: self.clock.pauses(), ..self.counts }
    }
}

impl Peer {
    /// How unlikely its silence is, with a logistic approximation of the normal distribution.
    fn phi(&self, lived: Duration, options: &Options) -> f64 {
        let silence = lived.saturating_sub(self.heard).as_secs_f64();
        let count = self.intervals.len() as f64;
        let mean = self.intervals.iter().sum::<f64>() / count;
        let variance = self.intervals.iter().map(|interval| (interval - mean).powi(2)).sum::<f64>() / count;
        let deviation = variance.sqrt().max(options.least_deviation.as_secs_f64()).max(f64::EPSILON);
        let above = (silence - mean - options.acceptable_pause.as_secs_f64()) / deviation;
        let odds = (-above * (1.5976 + 0.070_566 * above * above)).exp();
        if above > 0.0 { -(odds / (1.0 + odds)).log10() } else { -(1.0 - 1.0 / (1.0 + odds)).log10() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::BootId;

    fn node(name: &str, boot: u64) -> Incarnation {
        Incarnation { name: name.parse().expect("a name"), boot: BootId(boot) }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A detector that has heard `peers` every 250 ms until 60 s.
    fn accustomed(peers: &[Incarnation]) -> Detector {
        let mut detector = Detector::new(Options::default());
        for peer in peers {
            detector.watch(peer, ms(0));
        }
        for now in (0..=60_000).step_by(50) {
            if now % 250 == 0 {
                assert!(peers.iter().all(|peer| detector.heard(peer, ms(now)).is_none()));
            }
            assert_eq!(detector.tick(ms(now)), []);
        }
        detector
    }

    /// Ticks every 50 ms after `from`, until somebody is suspected.
    fn next_suspicion(detector: &mut Detector, from: u64) -> (u64, Vec<Suspicion>) {
        (1..200)
            .map(|tick| from + tick * 50)
            .map(|now| (now, detector.tick(ms(now))))
            .find(|(_, began)| !began.is_empty())
            .expect("suspicion")
    }

    #[test]
    fn silence_is_suspected_in_time_and_ends_with_a_heartbeat() {
        let peers = [node("a", 1), node("b", 1)];
        let mut detector = accustomed(&peers);
        let (now, began) = (60_050..)
            .step_by(50)
            .map(|now| {
                detector.heard(&peers[1], ms(now));
                (now, detector.tick(ms(now)))
            })
            .find(|(_, began)| !began.is_empty())
            .expect("a suspicion");
        assert_eq!(began, [Suspicion::Began(peers[0].clone())]);
        assert!((61_000..=61_300).contains(&now), "{now}");
        assert_eq!(detector.tick(ms(now + 50)), [], "it begins once");
        assert_eq!(detector.heard(&peers[0], ms(now + 60)), Some(Suspicion::Ended(peers[0].clone())));
        assert_eq!(detector.heard(&peers[0], ms(now + 310)), None);
        assert_eq!(detector.counts(), Counts { begun: 1, falsely: 1, pauses: 0 });
    }

    #[test]
    fn irregular_heartbeats_earn_patience_and_one_long_silence_does_not() {
        let peer = node("a", 1);
        let mut regular = accustomed(std::slice::from_ref(&peer));
        let mut irregular = Detector::new(Options::default());
        irregular.watch(&peer, ms(0));
        // Two of every six heartbeats are lost.
        for now in (0..=60_000).step_by(50) {
            if now % 250 == 0 && ![1, 2].contains(&(now / 250 % 6)) {
                assert_eq!(irregular.heard(&peer, ms(now)), None);
            }
            assert_eq!(irregular.tick(ms(now)), []);
        }
        let (quick, _) = next_suspicion(&mut regular, 60_000);
        let (patient, _) = next_suspicion(&mut irregular, 60_000);
        assert!(patient >= quick + 300 && patient < 63_000, "{quick} {patient}");
        regular.heard(&peer, ms(70_000));
        let (again, _) = next_suspicion(&mut regular, 70_000);
        assert!(again - 70_000 < quick - 60_000 + 300, "{again}");
    }

    #[test]
    fn a_pause_of_ones_own_suspects_nobody() {
        let peers = [node("a", 1), node("b", 1), node("c", 1)];
        let mut detector = accustomed(&peers);
        assert_eq!(detector.tick(ms(75_000)), []);
        assert_eq!(detector.counts().pauses, 1);
        // Two go on, one died meanwhile: it is found as fast as ever, counted from the end of the pause.
        let mut began = Vec::new();
        for now in (75_050..=76_300).step_by(50) {
            if now % 250 == 0 {
                assert!(peers[..2].iter().all(|peer| detector.heard(peer, ms(now)).is_none()));
            }
            began.extend(detector.tick(ms(now)));
        }
        assert_eq!(began, [Suspicion::Began(peers[2].clone())]);
    }

    #[test]
    fn clocks_may_jump_and_stand_still() {
        let peers = [node("a", 1), node("b", 1)];
        for jump in [0, 1, 59_999, 60_000, 3_660_000, u64::MAX / 2_000_000] {
            let mut detector = accustomed(&peers);
            for step in 0..40 {
                let now = ms(jump + step * 50);
                assert_eq!(detector.tick(now), [], "{jump}");
                assert!(peers.iter().all(|peer| detector.heard(peer, now).is_none()));
            }
            assert!((0..100).all(|_| detector.tick(ms(jump + 1_950)).is_empty()));
            assert_eq!(next_suspicion(&mut detector, jump + 1_950).1.len(), 2);
        }
    }

    #[test]
    fn only_the_latest_incarnation_counts() {
        let (old, new) = (node("a", 1), node("a", 2));
        let mut detector = accustomed(std::slice::from_ref(&old));
        let (now, _) = next_suspicion(&mut detector, 60_000);
        detector.watch(&new, ms(now));
        assert_eq!(detector.heard(&old, ms(now + 10)), None);
        assert_eq!(detector.heard(&new, ms(now + 20)), None);
        detector.watch(&old, ms(now + 30));
        let (_, began) = next_suspicion(&mut detector, now + 30);
        assert_eq!(began, [Suspicion::Began(new)]);
        assert_eq!(detector.heard(&old, ms(now + 5_000)), None);
        assert_eq!(detector.counts().falsely, 0, "another incarnation is no proof of the first's life");
    }

    #[test]
    fn the_number_of_peers_is_bounded() {
        let mut detector = Detector::new(Options::default());
        for number in 0..2 * MAX_PEERS {
            detector.watch(&node(&format!("n{number}"), 1), ms(0));
        }
        assert_eq!(next_suspicion(&mut detector, 0).1.len(), MAX_PEERS);
        detector.forget(&"n0".parse().expect("a name"));
        assert_eq!(detector.peers.len(), MAX_PEERS - 1);
    }
}
