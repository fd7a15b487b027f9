//! A whole cluster in one thread: a queue of what happens next, a clock that jumps from one to the next, and a network that loses things.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use bytes::Bytes;
use parlance_cluster_node::{
    detector::{Counts, Detector, Suspicion},
    identity::{BootId, Incarnation, NodeName},
    membership::{Duty, Event, Input, Member, Membership, Options, Output, Standing, Versions},
    placement::Weight,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use xxhash_rust::xxh3::Xxh3;

/// Milliseconds of the world's own time.
pub(crate) type Ms = u64;

const TICK: Ms = 100;
const HEARTBEAT: Ms = 250;
/// After so long without a word a link is a new one.
const SILENCE: Ms = 1_250;
/// How many of the running nodes, the first by number, everybody dials: what a name service lists.
const SEEDS: usize = 2;
/// Where clocks start, so that they can jump back.
const EPOCH: Ms = 100_000_000;

/// A process of the simulation. Those of one name follow each other, but an earlier one may still run.
type Pid = usize;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Tick(Pid),
    Beat(Pid),
    Arrive { to: Pid, from: Pid, datagram: Option<Bytes> },
}

/// A running process.
struct Process {
    node: Incarnation,
    membership: Membership,
    detector: Detector,
    /// With whom it has links, and when each was last heard.
    links: BTreeMap<Incarnation, Ms>,
    running: bool,
    paused_until: Ms,
    /// How far its clock is from the world's.
    clock: i64,
    /// The last boot that it spoke of, by name.
    boots: BTreeMap<NodeName, BootId>,
}

/// How the network treats messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    /// Percentage that is lost.
    pub(crate) loss: u32,
    /// The longest delay; the shortest is 1 ms.
    pub(crate) delay: Ms,
    /// By number of the name: its side. Nothing passes between two sides.
    pub(crate) sides: BTreeMap<usize, u32>,
}

/// The world.
pub(crate) struct World {
    pub(crate) now: Ms,
    pub(crate) rng: StdRng,
    pub(crate) network: Network,
    queue: BinaryHeap<Reverse<(Ms, u64, Action)>>,
    sequence: u64,
    processes: Vec<Process>,
    /// By number of the name: the process that answers under it.
    current: BTreeMap<usize, Pid>,
    trace: Xxh3,
    /// What must never happen and did.
    pub(crate) violations: Vec<String>,
    /// When who suspected whom, by (observer, suspect).
    pub(crate) suspected: BTreeMap<(Incarnation, Incarnation), Ms>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            rng: StdRng::seed_from_u64(seed),
            network: Network { delay: 20, ..Network::default() },
            queue: BinaryHeap::new(),
            sequence: 0,
            processes: Vec::new(),
            current: BTreeMap::new(),
            trace: Xxh3::new(),
            violations: Vec::new(),
            suspected: BTreeMap::new(),
        }
    }

    /// Starts a process under the name of this number. One that ran under it goes on, unheard, unless it was stopped.
    pub(crate) fn start(&mut self, number: usize) {
        let node = Incarnation { name: name(number), boot: BootId(self.now << 20 | self.processes.len() as u64) };
        let me = Member {
            node: node.clone(),
            revision: 0,
            duty: Duty::Serving,
            address: format!("{}:7000", node.name),
            zone: Some(format!("zone-{}", number % 3).parse().expect("a zone")),
            weight: Weight::ONE,
            versions: Versions { oldest: 1, newest: 2 },
        };
        let pid = self.processes.len();
        let membership = Membership::new(me, Options::default(), self.rng.random());
        let detector = Detector::new(parlance_cluster_node::detector::Options::default());
        let (links, boots) = (BTreeMap::new(), BTreeMap::new());
        self.processes.push(Process {
            node,
            membership,
            detector,
            links,
            running: true,
            paused_until: 0,
            clock: 0,
            boots,
        });
        self.current.insert(number, pid);
        let phase = self.rng.random_range(0..HEARTBEAT);
        self.later(phase % TICK, Action::Tick(pid));
        self.later(phase, Action::Beat(pid));
    }

    /// Stops everything that runs under the name.
    pub(crate) fn stop(&mut self, number: usize) {
        self.current.remove(&number);
        for process in self.processes.iter_mut().filter(|process| process.node.name == name(number)) {
            process.running = false;
        }
    }

    /// Stops the current process of the number for a while, during which messages wait for it.
    pub(crate) fn pause(&mut self, number: usize, long: Ms) {
        let pid = self.current[&number];
        self.processes[pid].paused_until = self.now + long;
    }

    pub(crate) fn jump(&mut self, number: usize, by: i64) {
        let pid = self.current[&number];
        self.processes[pid].clock += by;
    }

    pub(crate) fn leave(&mut self, number: usize) {
        let pid = self.current[&number];
        self.handle(pid, |process, now| process.membership.handle(Input::Leave, now));
        self.stop(number);
    }

    pub(crate) fn update(&mut self, number: usize, duty: Duty, weight: u32) {
        let pid = self.current[&number];
        let weight = Weight::new(weight).expect("a weight");
        self.handle(pid, |process, now| process.membership.handle(Input::Update { duty, weight }, now));
    }

    /// The numbers whose process runs.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.current.keys().copied().collect()
    }

    pub(crate) fn node(&self, number: usize) -> &Incarnation {
        &self.processes[self.current[&number]].node
    }

    /// The last of all pauses.
    pub(crate) fn all_awake(&self) -> Ms {
        let running = self.processes.iter().filter(|process| process.running);
        running.map(|process| process.paused_until).max().unwrap_or(0)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.processes.iter().fold(Counts::default(), |sum, process| {
            let Counts { begun, falsely, pauses } = process.detector.counts();
            Counts { begun: sum.begun + begun, falsely: sum.falsely + falsely, pauses: sum.pauses + pauses }
        })
    }

    /// Everything that was said and when, as a number.
    pub(crate) fn digest(&self) -> u64 {
        self.trace.digest()
    }

    pub(crate) fn run_until(&mut self, end: Ms) {
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, action))) = self.queue.pop() else { break };
            self.now = at;
            self.act(action);
        }
        self.now = end;
    }

    /// Why the views are not yet what is; none if they are.
    pub(crate) fn disagreement(&self) -> Option<String> {
        let current = |pid: &Pid| self.current.values().any(|current| current == pid);
        if let Some(pid) = (0..self.processes.len()).find(|pid| self.processes[*pid].running && !current(pid)) {
            return Some(format!("{} still runs", self.processes[pid].node));
        }
        let truth: BTreeMap<_, _> = self
            .current
            .values()
            .map(|&pid| (&self.processes[pid].node.name, self.processes[pid].membership.me()))
            .collect();
        for &pid in self.current.values() {
            let process = &self.processes[pid];
            let mut there = truth.clone();
            there.remove(&process.node.name);
            for seen in process.membership.members() {
                let fits = match there.remove(&seen.member.node.name) {
                    Some(member) => seen.standing == Standing::Alive && *member == seen.member,
                    None => !seen.standing.is_live(),
                };
                if !fits {
                    return Some(format!("{} sees {seen:?}", process.node));
                }
            }
            if let Some(missing) = there.keys().next() {
                return Some(format!("{} does not see {missing}", process.node));
            }
        }
        None
    }

    fn later(&mut self, after: Ms, action: Action) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + after, self.sequence, action)));
    }

    fn act(&mut self, action: Action) {
        let (Action::Tick(pid) | Action::Beat(pid) | Action::Arrive { to: pid, .. }) = action;
        let process = &self.processes[pid];
        if !process.running {
            return;
        }
        if process.paused_until > self.now {
            return self.later(process.paused_until - self.now, action);
        }
        match action {
            Action::Tick(pid) => {
                self.later(TICK, Action::Tick(pid));
                let at = self.now;
                self.handle(pid, |process, now| {
                    process.drop_silent_links(at, now);
                    let suspicions = process.detector.tick(now);
                    let mut outputs = process.judge(&suspicions, now);
                    outputs.extend(process.membership.handle(Input::Tick, now));
                    outputs
                });
            }
            Action::Beat(pid) => {
                self.later(HEARTBEAT, Action::Beat(pid));
                self.beat(pid);
            }
            Action::Arrive { to, from, datagram } => self.arrive(to, from, datagram.as_deref()),
        }
    }

    /// Heartbeats go to everybody who is known and to the seeds.
    fn beat(&mut self, pid: Pid) {
        let process = &self.processes[pid];
        let known = process.membership.members().filter(|seen| seen.standing != Standing::Left);
        let seeds = self.current.keys().copied().take(SEEDS);
        let mut peers: Vec<_> = known.map(|seen| number(&seen.member.node.name)).chain(seeds).collect();
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|peer| *peer != number(&process.node.name));
        for peer in peers {
            if let Some(&to) = self.current.get(&peer) {
                self.send(pid, to, None);
            }
        }
    }

    fn send(&mut self, from: Pid, to: Pid, datagram: Option<Bytes>) {
        let side = |pid: Pid| self.network.sides.get(&number(&self.processes[pid].node.name)).copied().unwrap_or(0);
        let cut = side(from) != side(to);
        let lost = self.rng.random_range(0..100) < self.network.loss;
        let delay = self.rng.random_range(1..=self.network.delay);
        if !cut && !lost {
            self.later(delay, Action::Arrive { to, from, datagram });
        }
    }

    fn arrive(&mut self, to: Pid, from: Pid, datagram: Option<&[u8]>) {
        let (from, at) = (self.processes[from].node.clone(), self.now);
        self.handle(to, |process, now| {
            let heard = process.links.insert(from.clone(), at);
            let suspicion: Vec<_> = process.detector.heard(&from, now).into_iter().collect();
            let mut outputs = process.judge(&suspicion, now);
            if heard.is_none() {
                outputs.extend(process.membership.handle(Input::LinkUp(&from), now));
            }
            if let Some(bytes) = datagram {
                outputs.extend(process.membership.handle(Input::Datagram { from: &from, bytes }, now));
            }
            outputs
        });
    }

    fn handle(&mut self, pid: Pid, act: impl FnOnce(&mut Process, Duration) -> Vec<Output>) {
        let process = &mut self.processes[pid];
        let now = Duration::from_millis((EPOCH + self.now).saturating_add_signed(process.clock));
        for output in act(process, now) {
            match output {
                Output::Event(event) => self.take(pid, event, now),
                Output::Send { to, bytes } => {
                    if let Some(to) = self.processes.iter().position(|process| process.node == to && process.running) {
                        self.send(pid, to, Some(bytes));
                    }
                }
            }
        }
    }

    fn take(&mut self, pid: Pid, event: Event, now: Duration) {
        let process = &mut self.processes[pid];
        self.trace.update(format!("{} {} {event:?}\n", self.now, process.node).as_bytes());
        let about = match &event {
            Event::Joined(member) | Event::Recovered(member) | Event::Restarted { now: member, .. } => {
                process.detector.watch(&member.node, now);
                &member.node
            }
            Event::Changed(member) => &member.node,
            Event::Left(node) | Event::Down(node) => {
                process.detector.forget(&node.name);
                node
            }
            Event::Suspected(node) => {
                self.suspected.entry((process.node.clone(), node.clone())).or_insert(self.now);
                node
            }
            Event::Superseded { by } => {
                process.running = false;
                if self.current.get(&number(&process.node.name)) == Some(&pid) {
                    self.violations.push(format!("{} was superseded by {by}, which never ran", process.node));
                }
                return;
            }
        };
        let last = process.boots.insert(about.name.clone(), about.boot);
        if last.is_some_and(|last| last > about.boot) {
            self.violations.push(format!("{}: {} came back to {}", self.now, about, process.node));
        }
    }
}

impl Process {
    fn drop_silent_links(&mut self, at: Ms, now: Duration) {
        let silent: Vec<_> =
            self.links.extract_if(.., |_, heard| at - *heard > SILENCE).map(|(peer, _)| peer).collect();
        for peer in silent {
            let outputs = self.membership.handle(Input::LinkDown(&peer), now);
            assert_eq!(outputs, [], "a link that is lost says nothing by itself");
        }
    }

    fn judge(&mut self, suspicions: &[Suspicion], now: Duration) -> Vec<Output> {
        suspicions.iter().flat_map(|suspicion| self.membership.handle(Input::Suspicion(suspicion), now)).collect()
    }
}

fn name(number: usize) -> NodeName {
    format!("node-{number}").parse().expect("a name")
}

fn number(name: &NodeName) -> usize {
    name.as_str().trim_start_matches("node-").parse().expect("a number")
}
