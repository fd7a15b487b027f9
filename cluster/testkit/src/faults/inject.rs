//! Does a fault to a cluster, looks whether it happened, and undoes it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parlance_loadtest::load::Recorder;
use rand::{
    SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde::Serialize;

use super::{Fault, Planned, pick};
use crate::{
    broker::Broker,
    cluster::{Cluster, LOG, RECORDS},
    network::{Counts, Weather},
    process::ProcessState,
};

/// A kill waits so long for a turn that is between its acknowledgement and its reply.
const OPEN_TURN_WAIT: Duration = Duration::from_secs(2);
/// A second kill waits so long for the first one's shards to be claimed.
const RECOVERY_WAIT: Duration = Duration::from_millis(500);
/// What a fault does to the network shows within so long after its time.
const EVIDENCE_WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// What became of a planned fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Its place in the schedule.
    pub number: usize,
    /// What was done.
    pub fault: Fault,
    /// The nodes that it was done to.
    pub victims: Vec<String>,
    /// When it was done, on the load's clock, in microseconds.
    pub from_us: u64,
    /// When it was undone and every node was ready again.
    pub until_us: u64,
    /// Whether a probe saw it.
    pub confirmed: bool,
    /// What the probe saw, for people.
    pub evidence: String,
}

/// What a probe saw.
struct Seen {
    victims: Vec<String>,
    confirmed: bool,
    evidence: String,
}

impl Cluster {
    /// Waits for the calm before a fault, does it, probes it, undoes it, and waits until every node is ready.
    ///
    /// # Panics
    ///
    /// Where a node has ended by itself, does not start, or is not ready within [`PATIENCE`](crate::PATIENCE); and for a fault of the network or
    /// of brokers where the plan has none.
    pub async fn inflict(&self, planned: &Planned, recorder: &Recorder) -> Outcome {
        tokio::time::sleep(planned.calm).await;
        self.assert_alive();
        let mut rng = StdRng::seed_from_u64(planned.draw);
        self.wait_for_open_turn(recorder).await;
        let from_us = recorder.now_us();
        let seen = self.perform(planned, recorder, &mut rng).await;
        if self.has_network() {
            self.network().heal_all();
        }
        self.assert_alive();
        self.start_all().await;
        let Seen { victims, confirmed, evidence } = seen;
        let until_us = recorder.now_us();
        Outcome { number: planned.number, fault: planned.fault, victims, from_us, until_us, confirmed, evidence }
    }

    /// Panics where a node has ended that nobody has ended.
    fn assert_alive(&self) {
        for name in self.running() {
            assert!(self.state(name) != ProcessState::Gone, "{name} has ended\n{}", self.log_tail(name));
        }
    }

    async fn wait_for_open_turn(&self, recorder: &Recorder) {
        let begun = Instant::now();
        while recorder.open_turns() == 0 && begun.elapsed() < OPEN_TURN_WAIT {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn perform(&self, planned: &Planned, recorder: &Recorder, rng: &mut StdRng) -> Seen {
        match planned.fault {
            Fault::KillOwner => {
                let victims = vec![self.draw_owner(rng).await];
                self.kill_all(&victims, planned.lasts, recorder).await
            }
            Fault::KillTwo => {
                let mut names = self.running();
                names.shuffle(rng);
                self.kill_all(&owned(&names[..names.len().min(2)]), planned.lasts, recorder).await
            }
            Fault::KillZone => {
                let running = self.running();
                let zone = self.zone(pick(rng, &running));
                let in_zone: Vec<&str> = running.into_iter().filter(|name| self.zone(name) == zone).collect();
                self.kill_all(&owned(&in_zone), planned.lasts, recorder).await
            }
            Fault::KillAgain => self.kill_again(planned.lasts, recorder, rng).await,
            Fault::Pause => self.pause_owner(planned.lasts, rng).await,
            Fault::Restart => {
                let name = pick(rng, &self.running()).to_owned();
                self.restart_all(&[name]).await
            }
            Fault::RollingRestart => self.restart_all(&owned(&self.running())).await,
            Fault::BrokerKill => self.kill_broker(planned.lasts, rng).await,
            Fault::BrokerPause => self.pause_broker(planned.lasts, rng).await,
            _ => self.break_network(planned, rng).await,
        }
    }

    async fn kill_all(&self, victims: &[String], lasts: Duration, recorder: &Recorder) -> Seen {
        let open = recorder.open_turns();
        let lived = victims.iter().filter(|name| self.kill(name)).count();
        let gone = victims.iter().filter(|name| self.state(name) == ProcessState::Gone).count();
        tokio::time::sleep(lasts).await;
        let evidence = format!("{lived} ended by SIGKILL, {gone} gone, {open} turns open");
        Seen { victims: victims.to_vec(), confirmed: lived == victims.len() && gone == lived, evidence }
    }

    async fn kill_again(&self, lasts: Duration, recorder: &Recorder, rng: &mut StdRng) -> Seen {
        let first = self.draw_owner(rng).await;
        let mut seen = self.kill_all(std::slice::from_ref(&first), Duration::ZERO, recorder).await;
        let begun = Instant::now();
        while begun.elapsed() < RECOVERY_WAIT && self.may_own(&first).await {
            tokio::time::sleep(PAUSE).await;
        }
        if self.running().is_empty() {
            return seen;
        }
        let second = self.draw_owner(rng).await;
        let again = self.kill_all(&[second], lasts, recorder).await;
        seen.victims.extend(again.victims);
        seen.confirmed &= again.confirmed;
        seen.evidence = format!("{}; then {}", seen.evidence, again.evidence);
        seen
    }

    /// Whether a node that lives still believes that `name` owns a shard.
    async fn may_own(&self, name: &str) -> bool {
        for witness in self.running() {
            if let Ok(owners) = self.owners(witness).await {
                return owners.values().any(|owner| owner == name);
            }
        }
        true
    }

    async fn pause_owner(&self, lasts: Duration, rng: &mut StdRng) -> Seen {
        let victim = self.draw_owner(rng).await;
        self.pause(&victim);
        let begun = Instant::now();
        while self.state(&victim) != ProcessState::Stopped && begun.elapsed() < EVIDENCE_WAIT {
            tokio::time::sleep(PAUSE).await;
        }
        let stopped = self.state(&victim);
        tokio::time::sleep(lasts).await;
        let (still, _) = (self.state(&victim), self.resume(&victim));
        let confirmed = stopped == ProcessState::Stopped && still == ProcessState::Stopped;
        Seen { victims: vec![victim], confirmed, evidence: format!("state {stopped:?}, after {lasts:?} {still:?}") }
    }

    async fn restart_all(&self, victims: &[String]) -> Seen {
        let (mut codes, mut new_boots) = (Vec::new(), 0);
        for name in victims {
            let before = self.boot(name);
            codes.push(self.restart(name).await);
            self.wait_ready(name).await;
            new_boots += usize::from(self.boot(name) != before);
        }
        let confirmed = new_boots == victims.len() && codes.iter().all(|code| *code == Some(0));
        let evidence = format!("exit codes {codes:?}, {new_boots} new boots");
        Seen { victims: victims.to_vec(), confirmed, evidence }
    }

    async fn kill_broker(&self, lasts: Duration, rng: &mut StdRng) -> Seen {
        let (broker, number) = self.draw_broker(rng);
        broker.signal("-KILL");
        let begun = Instant::now();
        while broker.state() != ProcessState::Gone && begun.elapsed() < EVIDENCE_WAIT {
            tokio::time::sleep(PAUSE).await;
        }
        let state = broker.state();
        tokio::time::sleep(lasts).await;
        // It takes seconds, and clients go on meanwhile.
        let started = tokio::task::spawn_blocking(move || broker.restart()).await;
        started.expect("the broker starts again");
        let confirmed = state == ProcessState::Gone;
        Seen { victims: vec![number], confirmed, evidence: format!("state {state:?}") }
    }

    async fn pause_broker(&self, lasts: Duration, rng: &mut StdRng) -> Seen {
        let (broker, number) = self.draw_broker(rng);
        broker.signal("-STOP");
        tokio::time::sleep(lasts).await;
        let state = broker.state();
        broker.signal("-CONT");
        let confirmed = state == ProcessState::Stopped;
        Seen { victims: vec![number], confirmed, evidence: format!("after {lasts:?} {state:?}") }
    }

    /// A broker, and what it is called.
    fn draw_broker(&self, rng: &mut StdRng) -> (Arc<Broker>, String) {
        let numbered: Vec<_> = self.brokers().iter().zip(1..).collect();
        let (broker, number) = numbered.choose(rng).expect("the plan has brokers of the test's own");
        ((*broker).clone(), format!("broker {number}"))
    }

    /// An owner of a shard, or any node where nobody tells.
    async fn draw_owner(&self, rng: &mut StdRng) -> String {
        let running = self.running();
        for witness in &running {
            let owners = self.owners(witness).await.unwrap_or_default();
            let living: Vec<&str> =
                running.iter().copied().filter(|name| owners.values().any(|owner| owner == name)).collect();
            if !living.is_empty() {
                return pick(rng, &living).to_owned();
            }
        }
        pick(rng, &running).to_owned()
    }

    async fn break_network(&self, planned: &Planned, rng: &mut StdRng) -> Seen {
        let victims = self.draw_network_victims(planned.fault, rng).await;
        let links = self.links_of(planned.fault, &victims);
        let before = self.counts(&links);
        for (from, to) in &links {
            self.break_link(planned.fault, from, to);
        }
        let begun = Instant::now();
        tokio::time::sleep(planned.lasts).await;
        let is_seen = |counts: &Counts| match planned.fault {
            Fault::Lossy | Fault::Slow => counts.delayed > 0,
            Fault::Reset => counts.resets > 0,
            _ => counts.held_bytes + counts.held_connections > 0,
        };
        let mut counts = self.counts(&links).since(&before);
        while !is_seen(&counts) && begun.elapsed() < planned.lasts + EVIDENCE_WAIT {
            tokio::time::sleep(PAUSE).await;
            counts = self.counts(&links).since(&before);
        }
        Seen { victims, confirmed: is_seen(&counts), evidence: format!("{counts:?}") }
    }

    async fn draw_network_victims(&self, fault: Fault, rng: &mut StdRng) -> Vec<String> {
        match fault {
            Fault::RecordsDown | Fault::RecordsDeaf | Fault::Lossy | Fault::Slow => owned(&self.names()),
            Fault::Split => {
                let mut names = self.names();
                names.shuffle(rng);
                owned(&names[..(names.len().saturating_sub(1) / 2).max(1)])
            }
            _ => vec![self.draw_owner(rng).await],
        }
    }

    /// The directed links that a fault breaks.
    fn links_of(&self, fault: Fault, victims: &[String]) -> Vec<(String, String)> {
        let link = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let both = |one: &str, other: &str| [link(one, other), link(other, one)];
        let of_victim = |victim: &String| -> Vec<(String, String)> {
            let others = self.names().into_iter().filter(|name| match fault {
                Fault::Isolate | Fault::Split | Fault::OneWay | Fault::Reset => {
                    !victims.iter().any(|victim| victim == name)
                }
                // Each pair once in each direction, as everyone is a victim.
                Fault::Lossy | Fault::Slow => name != victim,
                _ => false,
            });
            match fault {
                Fault::LogCut => both(victim, LOG).to_vec(),
                Fault::LogDeaf => vec![link(LOG, victim)],
                Fault::RecordsCut | Fault::RecordsDown => both(victim, RECORDS).to_vec(),
                Fault::RecordsDeaf => vec![link(RECORDS, victim)],
                Fault::OneWay | Fault::Lossy | Fault::Slow => others.map(|other| link(victim, other)).collect(),
                _ => others.flat_map(|other| both(victim, other)).collect(),
            }
        };
        victims.iter().flat_map(of_victim).collect()
    }

    fn break_link(&self, fault: Fault, from: &str, to: &str) {
        let ms = Duration::from_millis;
        match fault {
            Fault::Lossy => self.network().slow(from, to, Weather { loss: 0.3, ..Weather::default() }),
            Fault::Slow => self.network().slow(from, to, Weather { delay: ms(50)..=ms(500), loss: 0.0 }),
            Fault::Reset => self.network().reset(from, to),
            _ => self.network().cut_towards(from, to),
        }
    }

    fn counts(&self, links: &[(String, String)]) -> Counts {
        let count = |(from, to): &(String, String)| self.network().counts(from, to);
        links.iter().map(count).fold(Counts::default(), |sum, counts| sum.and(&counts))
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}
