//! Several owners-to-be on one failing log, driven by a seed through simulated minutes, with every promise checked on the way.
//!
//! `PARLANCE_SIM_SEEDS` sets how many seeds are run.

mod tests;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use parlance_cluster_protocol::{Entry, Nonce, Offset, ShardId, SlotId, TimestampMs};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Answer, AppendId, ClientId, Fault, FaultCounts, Faults, SimCore};
use crate::{
    StoredEntry,
    ownership::{
        AppendTag, Limits, LogPoint, Output, Ownership, Rules, SlotTable, StepDown, Ticket, Validator, Verdict,
    },
};

const SHARD: ShardId = ShardId(0);
const SLOT: SlotId = SlotId(11);
/// The names of the nodes; a restarted process bears the name of the one before it.
const NODES: [&str; 3] = ["a", "b", "c"];
/// How many processes there may be, those included that were taken for dead.
const MOST_PROCESSES: usize = 6;
const STEP: Duration = Duration::from_millis(5);
/// How long faults go on: four simulated seconds.
const STORMY_STEPS: u32 = 800;
/// How long it may take afterwards until one process owns the shard and everything is settled.
const CALM_STEPS: u32 = 2_000;
const READ_BYTES: usize = 400;

/// What a run was like.
#[derive(Debug, Default)]
struct Summary {
    faults: FaultCounts,
    committed: u64,
    failed: u64,
    reigns: u64,
    step_downs: u64,
    resolved: u64,
    released: u64,
    resumed: u64,
}

/// What a promise was broken by.
type Broken = String;

/// A process and what the world remembers of it.
struct Process {
    node: &'static str,
    client: ClientId,
    machine: Ownership,
    appends: BTreeMap<AppendId, AppendTag>,
    /// A read that was asked for: from where, when it is answered, and with what, if that was read at once.
    reading: Option<(Offset, Duration, Option<Vec<StoredEntry>>)>,
    /// When it claims again.
    claim_at: Option<Duration>,
    /// How many valid records it knows to be applied, by itself or by the checkpoint that it started from.
    applied: usize,
    /// The proposals of its tickets, and whether they were settled.
    tickets: Vec<(Proposal, bool)>,
}

type Proposal = u64;

struct World {
    rng: StdRng,
    core: SimCore,
    now: Duration,
    rules: Rules,
    calm: bool,
    /// Several of one node, where one was taken for dead and replaced, and goes on.
    processes: Vec<Process>,
    /// What any reader of the whole log knows, up to `judged`.
    reader: Validator,
    /// The valid records, in order.
    valid: Vec<(Offset, Proposal)>,
    /// What each proposal was called, where it was settled.
    committed: BTreeMap<Proposal, Offset>,
    failed: BTreeMap<Proposal, ()>,
    /// Which node's which process began each epoch.
    owners: BTreeMap<(Offset, Nonce), ClientId>,
    proposals: u64,
    summary: Summary,
}

/// Runs one seed to the end.
fn run(seed: u64, rules: Rules) -> Result<Summary, Broken> {
    let mut world = World::new(seed, rules);
    for _ in 0..STORMY_STEPS {
        world.step()?;
    }
    world.calm_down();
    for _ in 0..CALM_STEPS {
        world.step()?;
        if world.is_settled() {
            world.check_the_end()?;
            return Ok(world.summary);
        }
    }
    Err("the faults ended and nobody owns the shard, or something is not settled".into())
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        let core = SimCore::new(seed, 1, Faults::each(20));
        let mut world = Self {
            rng: StdRng::seed_from_u64(!seed),
            core,
            now: Duration::ZERO,
            rules,
            calm: false,
            processes: Vec::new(),
            reader: Validator::with_rules(SlotTable::new(SHARD, 1), LogPoint::START, rules),
            valid: Vec::new(),
            committed: BTreeMap::new(),
            failed: BTreeMap::new(),
            owners: BTreeMap::new(),
            proposals: 0,
            summary: Summary::default(),
        };
        world.processes = NODES.map(|node| world.start(node, LogPoint::START, 0)).into();
        world
    }

    fn start(&mut self, node: &'static str, point: LogPoint, applied: usize) -> Process {
        let limits = Limits { window: 6, queue: 12 };
        Process {
            node,
            client: self.core.connect(),
            machine: Ownership::with_rules(node, SlotTable::new(SHARD, 1), point, limits, self.rules),
            appends: BTreeMap::new(),
            reading: None,
            claim_at: None,
            applied,
            tickets: Vec::new(),
        }
    }

    /// One of `outcomes` steps.
    fn chance(&mut self, outcomes: u32) -> bool {
        self.rng.random_range(0..outcomes) == 0
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.now += STEP;
        let answers = self.core.advance(self.now);
        self.judge_what_landed()?;
        for answer in answers {
            self.deliver(answer)?;
        }
        for index in 0..self.processes.len() {
            if self.core.is_paused(self.processes[index].client) {
                continue;
            }
            self.answer_read(index)?;
            self.act(index)?;
            self.trouble(index);
        }
        Ok(())
    }

    /// Follows the log as any reader would.
    fn judge_what_landed(&mut self) -> Result<(), Broken> {
        let next = self.reader.point().next;
        for StoredEntry { offset, bytes } in self.core.entries(SHARD, next) {
            let entry = Entry::decode(bytes).map_err(|e| e.to_string())?;
            let verdict = self.reader.judge(offset, &entry);
            let (Verdict::Data, Entry::Data(data)) = (verdict, entry) else { continue };
            let proposal = decode(&data.payload);
            if self.failed.contains_key(&proposal) {
                return Err(format!("proposal {proposal:x} was called failed and counts at {offset}"));
            }
            self.valid.push((offset, proposal));
        }
        Ok(())
    }

    fn deliver(&mut self, Answer { client, append, outcomes }: Answer) -> Result<(), Broken> {
        let Some(index) = self.processes.iter().position(|process| process.client == client) else { return Ok(()) };
        let Some(tag) = self.processes[index].appends.remove(&append) else { return Ok(()) };
        self.drive(index, |machine, out| machine.on_appended(tag, &outcomes, out))
    }

    fn answer_read(&mut self, index: usize) -> Result<(), Broken> {
        let client = self.processes[index].client;
        let Some((from, _, read)) = self.processes[index].reading.take_if(|(_, due, _)| *due <= self.now) else {
            return Ok(());
        };
        let entries = match read {
            Some(entries) => entries,
            None => self.core.read(client, SHARD, from, READ_BYTES).map_err(|e| e.to_string())?,
        };
        self.drive(index, |machine, out| machine.on_read(from, entries, out))
    }

    /// What a process does of its own accord.
    fn act(&mut self, index: usize) -> Result<(), Broken> {
        let now = self.now;
        if self.processes[index].claim_at.take_if(|at| *at <= now).is_some() {
            self.claim(index)?;
        }
        if self.processes[index].machine.epoch().is_none() {
            // In the storm everybody grabs the shard; in the calm only one, and only while nobody has it.
            let grabs = if self.calm { index == 0 && self.chance(100) } else { self.chance(150) };
            if grabs {
                self.claim(index)?;
            } else if self.chance(30) {
                self.drive(index, |machine, out| machine.catch_up(out))?;
            }
            return Ok(());
        }
        for _ in 0..self.rng.random_range(0..=2) {
            self.propose(index);
        }
        if self.calm || self.chance(2) {
            self.drive(index, |machine, out| machine.flush(out))?;
        }
        if self.chance(40) {
            self.drive(index, |machine, out| machine.catch_up(out))?;
        }
        if !self.calm && self.chance(200) {
            let to = NODES[self.rng.random_range(0..NODES.len())];
            // Refused, where it is released already.
            self.drive(index, |machine, out| {
                machine.release(to, out).ok();
            })?;
        }
        Ok(())
    }

    fn claim(&mut self, index: usize) -> Result<(), Broken> {
        let nonce = Nonce(self.rng.random());
        let at = TimestampMs(self.now.as_millis() as u64);
        self.drive(index, |machine, out| machine.claim(nonce, at, out))
    }

    fn propose(&mut self, index: usize) {
        if self.calm && self.rng.random_bool(0.9) {
            return;
        }
        let proposal = self.proposals;
        let process = &mut self.processes[index];
        // Refused, where the queue is full or the shard is being released.
        if let Ok(ticket) = process.machine.propose(SLOT, Bytes::copy_from_slice(&proposal.to_be_bytes())) {
            assert_eq!(ticket.0, process.tickets.len() as u64);
            process.tickets.push((proposal, false));
            self.proposals += 1;
        }
    }

    /// Now and then a process dies and is started again, or stands still, or is taken for dead.
    fn trouble(&mut self, index: usize) {
        if self.calm {
            return;
        }
        if self.chance(600) {
            self.core.crash(self.processes[index].client);
            self.processes[index] = self.restart(index);
        } else if self.chance(1_500) {
            let pause = Duration::from_millis(self.rng.random_range(50..800));
            self.core.pause(self.processes[index].client, pause);
            if self.chance(2) && self.processes.len() < MOST_PROCESSES {
                let namesake = self.restart(index);
                self.processes.push(namesake);
            }
        }
    }

    /// Another process of the same node, from the beginning or from a checkpoint that the one before had stored.
    fn restart(&mut self, index: usize) -> Process {
        let old = &self.processes[index];
        let (node, point, applied) = (old.node, old.machine.point(), old.applied);
        let resumes = self.chance(2);
        self.summary.resumed += u64::from(resumes && point != LogPoint::START);
        if resumes { self.start(node, point, applied) } else { self.start(node, LogPoint::START, 0) }
    }

    fn drive(&mut self, index: usize, input: impl FnOnce(&mut Ownership, &mut Vec<Output>)) -> Result<(), Broken> {
        let mut outputs = Vec::new();
        let was_resolving = self.processes[index].machine.is_resolving();
        input(&mut self.processes[index].machine, &mut outputs);
        for output in outputs {
            self.summary.resolved += u64::from(was_resolving && matches!(output, Output::BecameOwner { .. }));
            self.perform(index, output)?;
        }
        Ok(())
    }

    fn perform(&mut self, index: usize, output: Output) -> Result<(), Broken> {
        let process = &mut self.processes[index];
        match output {
            Output::Append { tag, entries } => {
                let append = self.core.append(process.client, SHARD, entries);
                process.appends.insert(append, tag);
            }
            Output::Read { from, .. } => return self.begin_read(index, from),
            Output::ClaimWanted { attempt } => {
                let longest = 20 << attempt.min(5);
                process.claim_at = Some(self.now + Duration::from_millis(self.rng.random_range(0..longest)));
            }
            Output::BecameOwner { epoch } => {
                self.summary.reigns += 1;
                process.claim_at = None;
                if self.owners.insert((epoch.offset, epoch.nonce), process.client).is_some() {
                    return Err(format!("two processes own epoch {epoch:?}"));
                }
            }
            Output::Apply { offset, payload, .. } => return self.applied(index, offset, &payload),
            Output::Committed { ticket, offset } => return self.settled(index, ticket, Some(offset)),
            Output::Failed { ticket } => return self.settled(index, ticket, None),
            Output::Unresolved { .. } => return Err("a proposal stays unresolved on a log that can be read".into()),
            Output::SteppedDown { reason } => {
                process.claim_at = None;
                self.summary.step_downs += 1;
                self.summary.released += u64::from(matches!(reason, StepDown::Released { .. }));
                if !matches!(reason, StepDown::Released { .. } | StepDown::Superseded { .. }) {
                    return Err(format!("stepped down: {reason}"));
                }
            }
            Output::ForeignClaim { .. } | Output::ForeignRelease { .. } => {}
            Output::Fenced { .. } | Output::CaughtUp { .. } => {}
        }
        Ok(())
    }

    /// A read takes a while; what it gives is from its beginning or from its end.
    fn begin_read(&mut self, index: usize, from: Offset) -> Result<(), Broken> {
        let due = self.now + Duration::from_millis(self.rng.random_range(0..30));
        let client = self.processes[index].client;
        let early = self.rng.random_bool(0.5);
        let read =
            early.then(|| self.core.read(client, SHARD, from, READ_BYTES)).transpose().map_err(|e| e.to_string())?;
        self.processes[index].reading = Some((from, due, read));
        Ok(())
    }

    fn applied(&mut self, index: usize, offset: Offset, payload: &[u8]) -> Result<(), Broken> {
        let process = &mut self.processes[index];
        let expected = self.valid.get(process.applied);
        process.applied += 1;
        if expected == Some(&(offset, decode(payload))) {
            return Ok(());
        }
        Err(format!("applied {:x} at {offset} where {expected:x?} counts", decode(payload)))
    }

    fn settled(&mut self, index: usize, ticket: Ticket, committed: Option<Offset>) -> Result<(), Broken> {
        let process = &mut self.processes[index];
        let (proposal, settled) = &mut process.tickets[ticket.0 as usize];
        if std::mem::replace(settled, true) {
            return Err(format!("proposal {proposal:x} was settled twice"));
        }
        match committed {
            Some(offset) => {
                self.summary.committed += 1;
                self.committed.insert(*proposal, offset);
                // Just applied.
                if self.valid.get(process.applied - 1) != Some(&(offset, *proposal)) {
                    return Err(format!("proposal {proposal:x} was called committed and does not count at {offset}"));
                }
            }
            None => {
                self.summary.failed += 1;
                self.failed.insert(*proposal, ());
            }
        }
        Ok(())
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.summary.faults = self.core.counts();
        self.core.set_faults(Faults::each(0));
    }

    /// Whether one process owns the shard, knows it, and owes nobody an answer.
    fn is_settled(&self) -> bool {
        let owner = &self.processes[0].machine;
        let rivals = &self.processes[1..];
        let owns = owner.epoch().is_some_and(|epoch| self.reader.point().epoch == Some(epoch)) && owner.is_open();
        owns && self.core.next_due().is_none()
            && self.processes.iter().all(|process| process.machine.unsettled() == 0)
            && rivals.iter().all(|process| process.machine.epoch().is_none())
    }

    fn check_the_end(&mut self) -> Result<(), Broken> {
        let valid: BTreeMap<Proposal, Offset> =
            self.valid.iter().map(|(offset, proposal)| (*proposal, *offset)).collect();
        if valid.len() != self.valid.len() {
            return Err("a proposal counts twice".into());
        }
        if let Some((proposal, _)) =
            self.committed.iter().find(|(proposal, offset)| valid.get(proposal) != Some(offset))
        {
            return Err(format!("proposal {proposal:x} was called committed and is lost"));
        }
        if let Some(proposal) = self.failed.keys().find(|proposal| valid.contains_key(proposal)) {
            return Err(format!("proposal {proposal:x} was called failed and counts"));
        }
        for process in &self.processes {
            if process.tickets.iter().any(|(_, settled)| !settled) {
                return Err("a living process never settled a proposal".into());
            }
            let order = process.tickets.iter().filter_map(|(proposal, _)| valid.get(proposal));
            if !order.is_sorted() {
                return Err("the proposals of a process count in another order".into());
            }
        }
        Ok(())
    }
}

fn decode(payload: &[u8]) -> Proposal {
    payload.try_into().map(u64::from_be_bytes).expect("every payload is the number of a proposal")
}
