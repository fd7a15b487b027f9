//! The world: nodes, log, network, clients, what goes wrong, and what has to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parlance_cluster_log::{
    ownership::{LogPoint, SlotTable, Validator, Verdict},
    sim::{Answer, Faults, SimCore},
};
use parlance_cluster_node::{
    identity::{BootId, Incarnation},
    membership::Duty,
};
use parlance_cluster_protocol::{Entry, Epoch, ShardId};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    member::SimNode,
    network::{Change, Message, Network},
    shard::{Effect, SimShard, Tools},
};

const SHARDS: u16 = 6;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const STEP: Duration = Duration::from_millis(10);
/// How long things go wrong.
const STORM: Duration = Duration::from_secs(25);
/// How long it may take afterwards until every shard has its one owner and everybody says so.
const CALM: Duration = Duration::from_secs(40);
/// Between two faults, at most.
const FAULT_EVERY_MS: u64 = 1_500;

/// What a run was like.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    pub(super) fenced: u64,
    pub(super) failovers: u64,
    pub(super) handovers: u64,
    /// Everything that happened, as one number.
    pub(super) trace: u64,
}

impl Summary {
    pub(super) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.fenced += other.fenced;
        self.failovers += other.failovers;
        self.handovers += other.handovers;
    }
}

struct World {
    rng: StdRng,
    core: SimCore,
    network: Network,
    now: Duration,
    nodes: BTreeMap<&'static str, SimNode>,
    /// When those that are dead start again.
    restarts: BTreeMap<&'static str, Duration>,
    heals_at: Option<Duration>,
    undrains_at: Option<Duration>,
    boots: u64,
    proposals: u64,
    acknowledged: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    /// Who began each reign.
    owners: BTreeMap<(u16, Epoch), Incarnation>,
    summary: Summary,
    tells: bool,
}

/// Runs one seed to the end.
///
/// # Errors
///
/// The promise that was broken.
pub(super) fn run(seed: u64) -> Result<Summary, String> {
    let mut world = World::new(seed);
    let mut next_fault = Duration::from_secs(3);
    while world.now < STORM {
        if world.now >= next_fault {
            next_fault = world.now + Duration::from_millis(world.rng.random_range(100..FAULT_EVERY_MS));
            world.go_wrong();
        }
        world.ask();
        world.step()?;
    }
    world.calm_down();
    let until = world.now + CALM;
    while world.now < until {
        world.step()?;
        if world.is_settled() {
            world.check_the_log()?;
            return Ok(world.summary);
        }
    }
    Err(format!("it does not come to rest: {:?}", world.owners_seen()))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            core: SimCore::new(seed, SHARDS, Faults::each(3)),
            network: Network::default(),
            now: Duration::ZERO,
            nodes: BTreeMap::new(),
            restarts: BTreeMap::new(),
            heals_at: None,
            undrains_at: None,
            boots: 0,
            proposals: 0,
            acknowledged: BTreeSet::new(),
            failed: BTreeSet::new(),
            owners: BTreeMap::new(),
            summary: Summary::default(),
            tells: std::env::var_os("PARLANCE_SIM_SEED").is_some(),
        };
        NAMES.into_iter().for_each(|name| world.start(name));
        world
    }

    /// Enters something into the trace.
    #[expect(clippy::print_stdout, reason = "a seed that failed is told to whoever looks for the reason")]
    fn note(&mut self, what: impl FnOnce() -> String) {
        let what = format!("{:?} {}", self.now, what());
        if self.tells {
            println!("{what}");
        }
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.summary.trace = what.bytes().fold(self.summary.trace, mix);
    }

    fn start(&mut self, name: &'static str) {
        self.boots += 1;
        let me = Incarnation { name: name.parse().expect("a name"), boot: BootId(self.boots) };
        self.note(|| format!("{me} starts"));
        let client = self.core.connect();
        self.nodes.insert(name, SimNode::start(me, client, SHARDS, self.now, self.boots));
    }

    fn kill(&mut self, name: &'static str, for_so_long: Duration) {
        if let Some(node) = self.nodes.remove(name) {
            self.note(|| format!("{} dies", node.me));
            self.core.crash(node.client);
            self.restarts.insert(name, self.now + for_so_long);
        }
    }

    /// Something goes wrong, by lot.
    fn go_wrong(&mut self) {
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        let moment = Duration::from_millis(self.rng.random_range(200..4_000));
        match self.rng.random_range(0..10) {
            0..3 => self.kill(name, moment),
            3..5 => {
                let now = self.now;
                if let Some(node) = self.nodes.get_mut(name) {
                    node.paused_until = now + moment;
                    self.core.pause(node.client, moment);
                    self.note(|| format!("{name} stands still for {moment:?}"));
                }
            }
            5..7 => self.cut_off(name, moment, true),
            7 => self.cut_off(name, moment, false),
            8 => {
                let other = NAMES[self.rng.random_range(0..NAMES.len())];
                self.note(|| format!("nothing comes from {name} to {other} for {moment:?}"));
                self.network.cut(name, other);
                self.heals_at = Some(self.now + moment);
            }
            _ => {
                if let Some(node) = self.nodes.get_mut(name).filter(|node| node.runs(self.now)) {
                    node.set_duty(Duty::Draining, self.now);
                    self.undrains_at = Some(self.now + moment * 2);
                    self.note(|| format!("{name} drains"));
                }
            }
        }
    }

    /// Cuts a node, or it and another one, off from the rest.
    fn cut_off(&mut self, name: &'static str, moment: Duration, alone: bool) {
        let with = if alone { name } else { NAMES[self.rng.random_range(0..NAMES.len())] };
        self.note(|| format!("{name} and {with} are cut off for {moment:?}"));
        for inside in [name, with] {
            for outside in NAMES.into_iter().filter(|outside| ![name, with].contains(outside)) {
                self.network.cut(inside, outside);
                self.network.cut(outside, inside);
            }
        }
        self.heals_at = Some(self.now + moment);
    }

    fn calm_down(&mut self) {
        self.core.set_faults(Faults::NONE);
        self.network.heal();
        (self.heals_at, self.undrains_at) = (None, Some(self.now));
        self.restarts.values_mut().for_each(|restart| *restart = self.now);
        self.note(|| "calm".into());
    }

    /// Some client asks some node to record something.
    fn ask(&mut self) {
        if self.rng.random_range(0..10) >= 4 {
            return;
        }
        let (name, shard) = (NAMES[self.rng.random_range(0..NAMES.len())], self.rng.random_range(0..SHARDS));
        self.proposals += 1;
        let proposal = self.proposals;
        let Some(node) = self.nodes.get(name).filter(|node| node.runs(self.now)) else { return };
        let (me, Some(owner)) = (node.me.clone(), node.owner(shard)) else { return };
        if owner == me {
            self.propose(&owner, shard, proposal);
        } else {
            self.network.send(self.now, &mut self.rng, &me, &owner, Message::Ask { shard, proposal });
        }
    }

    fn propose(&mut self, owner: &Incarnation, shard: u16, proposal: u64) {
        self.with_node(owner, |node, tools| {
            if let Some(sim) = node.shards.get_mut(&shard) {
                sim.propose(proposal, tools);
            }
            tools.effects.drain(..).map(|effect| (shard, effect)).collect()
        });
    }

    /// Lets a node do something, and enters what that leads to.
    fn with_node(&mut self, node: &Incarnation, act: impl FnOnce(&mut SimNode, &mut Tools<'_>) -> Vec<(u16, Effect)>) {
        let Some(found) = self.nodes.get_mut(node.name.as_str()).filter(|found| found.me == *node) else { return };
        let mut tools = Tools { core: &mut self.core, rng: &mut self.rng, now: self.now, effects: Vec::new() };
        let told = act(found, &mut tools);
        found.take_news(&told);
        let outbox = std::mem::take(&mut found.outbox);
        for (shard, effect) in told {
            self.enter(node, shard, effect);
        }
        self.post(node, outbox);
    }

    fn post(&mut self, from: &Incarnation, outbox: Vec<(Option<Incarnation>, Message)>) {
        let everybody: Vec<Incarnation> = self.nodes.values().map(|node| node.me.clone()).collect();
        for (to, message) in outbox {
            let others = everybody.iter().filter(|node| *node != from);
            for to in others.filter(|node| to.as_ref().is_none_or(|to| to == *node)) {
                self.network.send(self.now, &mut self.rng, from, to, message.clone());
            }
        }
    }

    fn enter(&mut self, node: &Incarnation, shard: u16, effect: Effect) {
        self.note(|| format!("{node} {shard} {effect:?}"));
        match effect {
            Effect::Committed(proposal) => {
                self.acknowledged.insert(proposal);
                self.summary.acknowledged += 1;
            }
            Effect::Failed(proposal) => {
                self.failed.insert(proposal);
                self.summary.failed += 1;
            }
            Effect::Fenced => self.summary.fenced += 1,
            Effect::Owns("handover") => self.summary.handovers += 1,
            Effect::Owns(_) => self.summary.failovers += 1,
            Effect::News(_) | Effect::Unresolved => {}
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += STEP;
        self.come_back();
        for Answer { client, append, outcomes } in self.core.advance(self.now) {
            let owner = self.nodes.values().find(|node| node.client == client).map(|node| node.me.clone());
            let Some(owner) = owner else { continue };
            self.with_node(&owner, |node, tools| {
                let mut told = Vec::new();
                for (shard, sim) in &mut node.shards {
                    sim.on_appended(append, &outcomes, tools);
                    told.extend(tools.effects.drain(..).map(|effect| (*shard, effect)));
                }
                told
            });
        }
        self.change_links();
        self.deliver();
        let running: Vec<Incarnation> =
            self.nodes.values().filter(|node| node.runs(self.now)).map(|node| node.me.clone()).collect();
        for node in &running {
            self.with_node(node, |node, tools| {
                let mut told = Vec::new();
                node.step(tools, &mut told);
                told
            });
        }
        self.check_owners()
    }

    fn come_back(&mut self) {
        if self.heals_at.take_if(|at| *at <= self.now).is_some() {
            self.note(|| "the network is whole".into());
            self.network.heal();
        }
        if self.undrains_at.take_if(|at| *at <= self.now).is_some() {
            for node in self.nodes.values_mut().filter(|node| node.duty() == Duty::Draining) {
                node.set_duty(Duty::Serving, self.now);
            }
        }
        let superseded: Vec<&'static str> =
            self.nodes.iter().filter(|(_, node)| node.is_superseded).map(|(name, _)| *name).collect();
        superseded.into_iter().for_each(|name| self.kill(name, Duration::ZERO));
        let due: Vec<&'static str> =
            self.restarts.iter().filter(|(_, at)| **at <= self.now).map(|(name, _)| *name).collect();
        for name in due {
            self.restarts.remove(name);
            self.start(name);
        }
    }

    fn change_links(&mut self) {
        let live: Vec<Incarnation> = self.nodes.values().map(|node| node.me.clone()).collect();
        let (nodes, now) = (&self.nodes, self.now);
        let runs = |node: &Incarnation| nodes.get(node.name.as_str()).is_some_and(|node| node.runs(now));
        for change in self.network.look(now, &live, runs) {
            let (a, b, up) = match change {
                Change::Up(a, b) => (a, b, true),
                Change::Down(a, b) => (a, b, false),
            };
            self.note(|| format!("link {a} {b} {up}"));
            for (one, other) in [(&a, &b), (&b, &a)] {
                self.with_node(one, |node, tools| {
                    node.on_link(other, up, tools.now);
                    Vec::new()
                });
            }
        }
    }

    fn deliver(&mut self) {
        let mut held = Vec::new();
        while let Some((from, to, message)) = self.network.arrived(self.now) {
            let Some(node) = self.nodes.get(to.name.as_str()).filter(|node| node.me == to) else { continue };
            if !node.runs(self.now) {
                // A link that outlives the pause has it still; one that does not has lost it.
                held.push((from, to, message));
                continue;
            }
            if let Message::Ask { shard, proposal } = message {
                self.propose(&to, shard, proposal);
            }
            self.with_node(&to, |node, tools| {
                node.on_message(&from, message, tools.now);
                Vec::new()
            });
        }
        for (from, to, message) in held {
            self.network.send(self.now + STEP, &mut self.rng, &from, &to, message);
        }
    }

    /// A reign has one owner, whatever happens.
    fn check_owners(&mut self) -> Result<(), String> {
        for node in self.nodes.values() {
            for (shard, sim) in &node.shards {
                let Some(epoch) = sim.epoch() else { continue };
                let owner = self.owners.entry((*shard, epoch)).or_insert_with(|| node.me.clone());
                if *owner != node.me {
                    return Err(format!("{owner} and {} own shard {shard} in one reign", node.me));
                }
            }
        }
        Ok(())
    }

    /// Whom each node takes for the owner of each shard.
    fn owners_seen(&self) -> BTreeMap<&'static str, Vec<Option<String>>> {
        let seen = |node: &SimNode| {
            (0..SHARDS).map(|shard| node.owner(shard).map(|owner| owner.to_string())).collect::<Vec<_>>()
        };
        self.nodes.iter().map(|(name, node)| (*name, seen(node))).collect()
    }

    fn is_settled(&self) -> bool {
        if self.nodes.len() < NAMES.len() || self.nodes.values().any(|node| !node.runs(self.now)) {
            return false;
        }
        let serving = |node: &SimNode| node.shards.values().filter(|shard| SimShard::serves(shard)).count();
        let least = usize::from(SHARDS) / NAMES.len();
        let balanced = self.nodes.values().all(|node| (least..=least + 1).contains(&serving(node)));
        let idle = self.nodes.values().all(|node| node.shards.values().all(|shard| shard.appends.is_empty()));
        let all = self.nodes.values().map(serving).sum::<usize>() == usize::from(SHARDS);
        let mut seen = self.owners_seen().into_values();
        let first = seen.next().unwrap_or_default();
        balanced && idle && all && first.iter().all(Option::is_some) && seen.all(|other| other == first)
    }

    /// What was acknowledged is in the log, once and in force; what was called failed is not.
    fn check_the_log(&mut self) -> Result<(), String> {
        let mut valid = BTreeSet::new();
        for shard in 0..SHARDS {
            let shard = ShardId(shard);
            let mut reader = Validator::new(SlotTable::new(shard, SHARDS), LogPoint::START);
            for stored in self.core.entries(shard, parlance_cluster_protocol::Offset(0)) {
                let entry = Entry::decode(stored.bytes).map_err(|error| error.to_string())?;
                let verdict = reader.judge(stored.offset, &entry);
                if let (Verdict::Data, Entry::Data(data)) = (verdict, entry) {
                    let proposal = <[u8; 8]>::try_from(&*data.payload).map_err(|_| "a payload is no number")?;
                    if !valid.insert(u64::from_be_bytes(proposal)) {
                        return Err(format!("{proposal:?} counts twice"));
                    }
                }
            }
        }
        let lost = self.acknowledged.difference(&valid).count();
        let phantoms = self.failed.intersection(&valid).count();
        match (lost, phantoms) {
            (0, 0) => Ok(()),
            _ => Err(format!("{lost} were acknowledged and are lost, {phantoms} were called failed and count")),
        }
    }
}
