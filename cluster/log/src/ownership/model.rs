//! An exhaustive check of small clusters: every order in which appends land, get answered, time out, land late or twice,
//! in which reads are stale and processes claim, record, release, fall silent and wake up again.
//!
//! What is explored is [`Ownership`] and [`Validator`] themselves. A process that is never scheduled again has crashed; one that is
//! scheduled late is a zombie; a restart under the same name is a second process of that name. An append that is never
//! scheduled to land was lost.
//!
//! `PARLANCE_MODEL=large` explores the larger clusters, which takes many minutes and gigabytes.

mod tests;

use std::sync::Arc;

use bytes::Bytes;
use parlance_cluster_protocol::{Entry, Nonce, Offset, ShardId, SlotId, TimestampMs};
use stateright::{Model, Property};

use super::{AppendTag, Limits, LogPoint, Output, Ownership, Rules, SlotTable, StepDown, Ticket, Validator, Verdict};
use crate::{AppendOutcome, StoredEntry};

const SLOT: SlotId = SlotId(0);

/// A small cluster and how often each thing may happen to it.
#[derive(Debug, Clone)]
struct Cluster {
    /// The first owns the shard at the beginning.
    actors: Vec<Actor>,
    /// Appends that time out, landed or not.
    time_outs: u8,
    /// Appends that land twice.
    duplicates: u8,
    /// Entries that one process may have in flight.
    window: usize,
    rules: Rules,
}

/// A process of this node's name, and how often it does things.
#[derive(Debug, Clone, Copy)]
struct Actor {
    name: &'static str,
    /// Not counting the one that the first owner owns by.
    claims: u8,
    proposals: u8,
    releases: u8,
}

/// One process. Fields behind `machine` are the world's memory of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    machine: Ownership,
    /// The read that it waits for.
    reading: Option<Offset>,
    claims: u8,
    releases: u8,
    /// What it was told of each of its proposals.
    fates: Vec<Fate>,
    /// How many valid records it has applied.
    applied: usize,
    /// Nonces of claims that it knows to be dead.
    dead: Vec<Nonce>,
    /// Nonces of claims whose fate it does not know.
    open: Vec<Nonce>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Pending,
    Committed(Offset),
    Failed,
    Unresolved,
}

/// An entry on its way to the log, or its acknowledgement on the way back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    process: usize,
    tag: AppendTag,
    entry: Bytes,
    landed: Option<Offset>,
    timed_out: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    log: Vec<Bytes>,
    /// What any reader of the whole log knows.
    reader: Validator,
    /// The valid records, as the proposals that they came from.
    valid: Vec<(Offset, Bytes)>,
    /// Shared between worlds until one of them changes it.
    processes: Vec<Arc<Process>>,
    /// Invariant: ordered, so that the order of sending makes no difference.
    flights: Vec<Flight>,
    time_outs: u8,
    duplicates: u8,
    broken: Option<Broken>,
}

/// A property that one step broke, as opposed to those that are seen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Broken {
    SettledTwice,
    AppliedOtherwise,
    DeadClaimRose,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// The process claims, having read what lies before this offset.
    Claim(usize, usize),
    Propose(usize),
    Release(usize),
    CatchUp(usize),
    /// The process gets what the log held before this offset.
    Read(usize, usize),
    Land(usize),
    /// Lands, and goes on its way a second time.
    LandTwice(usize),
    Acknowledge(usize),
    TimeOut(usize),
}

impl Cluster {
    fn process(&self, name: &str) -> Arc<Process> {
        let limits = Limits { window: self.window, queue: 4 };
        let slots = SlotTable::new(ShardId(0), 1);
        Arc::new(Process {
            machine: Ownership::with_rules(name, slots, LogPoint::START, limits, self.rules),
            reading: None,
            claims: 0,
            releases: 0,
            fates: Vec::new(),
            applied: 0,
            dead: Vec::new(),
            open: Vec::new(),
        })
    }

    /// The actions of one process.
    fn choices(&self, world: &World, index: usize, actions: &mut Vec<Action>) {
        let (process, actor) = (&world.processes[index], &self.actors[index]);
        let doubts = process.machine.epoch().is_none() || process.machine.is_resolving();
        let known = process.machine.point().next.0 as usize;
        if doubts && process.claims < actor.claims && process.reading.is_none() {
            actions.extend((known..=world.log.len()).map(|end| Action::Claim(index, end)));
        }
        if process.machine.is_open() && process.fates.len() < usize::from(actor.proposals) {
            actions.push(Action::Propose(index));
        }
        if process.machine.is_open() && process.releases < actor.releases {
            actions.push(Action::Release(index));
        }
        match process.reading {
            // For a mere follower it makes no difference whether it reads before it claims or then.
            None if known < world.log.len() && !process.machine.is_idle() => actions.push(Action::CatchUp(index)),
            None => {}
            Some(from) => {
                let start = from.0 as usize;
                // An empty read before entries that are known to exist leads to the same read again.
                let shortest = start + usize::from(process.machine.is_behind_a_gap() && start < world.log.len());
                actions.extend((shortest..=world.log.len()).map(|end| Action::Read(index, end)));
            }
        }
    }

    /// What may happen to one flight.
    fn chances(&self, world: &World, index: usize, actions: &mut Vec<Action>) {
        let flight = &world.flights[index];
        if flight.landed.is_none() {
            actions.push(Action::Land(index));
            if world.duplicates < self.duplicates {
                actions.push(Action::LandTwice(index));
            }
        } else if !flight.timed_out {
            actions.push(Action::Acknowledge(index));
        }
        if !flight.timed_out && world.time_outs < self.time_outs && world.matters(flight, AppendOutcome::Unknown) {
            actions.push(Action::TimeOut(index));
        }
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let slots = SlotTable::new(ShardId(0), 1);
        let mut world = World {
            log: Vec::new(),
            reader: Validator::with_rules(slots, LogPoint::START, self.rules),
            valid: Vec::new(),
            processes: self.actors.iter().map(|actor| self.process(actor.name)).collect(),
            flights: Vec::new(),
            time_outs: 0,
            duplicates: 0,
            broken: None,
        };
        world.claim(0, 0);
        world.land(0, false);
        world.acknowledge(0);
        world.process(0).claims = 0;
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        (0..world.processes.len()).for_each(|index| self.choices(world, index, actions));
        (0..world.flights.len()).for_each(|index| self.chances(world, index, actions));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Claim(process, end) => world.claim(process, end),
            Action::Propose(process) => world.propose(process),
            Action::Release(process) => world.release(process),
            Action::CatchUp(process) => world.drive(process, |machine, out| machine.catch_up(out)),
            Action::Read(process, end) => world.read(process, end),
            Action::Land(flight) => world.land(flight, false),
            Action::LandTwice(flight) => world.land(flight, true),
            Action::Acknowledge(flight) => world.acknowledge(flight),
            Action::TimeOut(flight) => world.time_out(flight),
        }
        world.flights.sort();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what was called committed is valid", |_, world: &World| world.committed_is_valid()),
            Property::always("what was called failed is not valid", |_, world: &World| world.failed_is_not_valid()),
            Property::always("valid records are in order, none twice", |_, world: &World| world.valid_is_in_order()),
            Property::always("an epoch has one owner", |_, world: &World| world.epochs_have_one_owner()),
            Property::always("a proposal is settled once", |_, world: &World| {
                world.broken != Some(Broken::SettledTwice)
            }),
            Property::always("all apply the same", |_, world: &World| world.broken != Some(Broken::AppliedOtherwise)),
            Property::always("a dead claim stays dead", |_, world: &World| world.broken != Some(Broken::DeadClaimRose)),
            Property::sometimes("a proposal is committed", |_, world: &World| {
                world.any_fate(|fate| matches!(fate, Fate::Committed(_)))
            }),
            Property::sometimes("a proposal fails", |_, world: &World| world.any_fate(|fate| fate == Fate::Failed)),
            Property::sometimes("an owner resolves a doubt", |cluster: &Self, world: &World| {
                cluster.actors[0].claims == 0
                    || world.processes[0].claims > 0 && world.processes[0].machine.epoch().is_some()
            }),
            Property::sometimes("an owner is deposed", |_, world: &World| {
                world.processes[0].machine.epoch().is_none() && world.processes[0].releases == 0
            }),
            Property::sometimes("another process owns", |_, world: &World| {
                world.processes[1..].iter().any(|process| process.machine.epoch().is_some())
            }),
        ]
    }
}

impl World {
    fn process(&mut self, index: usize) -> &mut Process {
        Arc::make_mut(&mut self.processes[index])
    }

    fn claim(&mut self, index: usize, end: usize) {
        let process = self.process(index);
        process.claims += 1;
        let nonce = Nonce((index as u128 + 1) << 8 | u128::from(process.claims + 10 * u8::from(self.log.is_empty())));
        self.drive(index, |machine, out| machine.claim(nonce, TimestampMs(0), out));
        // Reading and claiming in one step: until the claim goes out, a process without an epoch cares for nothing else.
        while let Some(from) = self.processes[index].reading {
            let start = from.0 as usize;
            self.read(index, end.max(start + usize::from(self.processes[index].machine.is_behind_a_gap())));
        }
    }

    fn propose(&mut self, index: usize) {
        let process = self.process(index);
        let payload = Bytes::copy_from_slice(&[index as u8, process.fates.len() as u8]);
        process.fates.push(Fate::Pending);
        self.drive(index, |machine, out| {
            machine.propose(SLOT, payload).expect("it is open and the queue is long enough");
            machine.flush(out);
        });
    }

    fn release(&mut self, index: usize) {
        self.process(index).releases += 1;
        self.drive(index, |machine, out| machine.release("x", out).expect("it is open"));
    }

    fn read(&mut self, index: usize, end: usize) {
        let from = self.process(index).reading.take().expect("it waits for a read");
        let entries =
            (from.0..end as u64).map(|at| StoredEntry { offset: Offset(at), bytes: self.log[at as usize].clone() });
        let entries = entries.collect();
        self.drive(index, |machine, out| machine.on_read(from, entries, out));
    }

    fn land(&mut self, index: usize, again: bool) {
        let offset = Offset(self.log.len() as u64);
        let flight = &mut self.flights[index];
        let bytes = flight.entry.clone();
        if again {
            self.duplicates += 1;
            let copy = Flight { timed_out: true, ..flight.clone() };
            flight.landed = Some(offset);
            self.flights.push(copy);
        } else {
            flight.landed = Some(offset);
        }
        let flights = std::mem::take(&mut self.flights).into_iter();
        self.flights = flights
            .filter(|flight| {
                flight.landed.is_none_or(|offset| !flight.timed_out && self.matters(flight, AppendOutcome::At(offset)))
            })
            .collect();
        self.log.push(bytes.clone());
        let entry = Entry::decode(bytes).expect("processes write what they can read");
        match (self.reader.judge(offset, &entry), entry) {
            (Verdict::Data, Entry::Data(data)) => self.valid.push((offset, data.payload)),
            (Verdict::Claim(epoch), _) if self.processes.iter().any(|process| process.dead.contains(&epoch.nonce)) => {
                self.broken = Some(Broken::DeadClaimRose);
            }
            _ => {}
        }
    }

    /// Whether its process would take notice of this outcome. If not now, then never: its reign or its claim is over.
    fn matters(&self, flight: &Flight, outcome: AppendOutcome) -> bool {
        let before = &self.processes[flight.process].machine;
        let mut after = before.clone();
        after.on_appended(flight.tag, &[outcome], &mut Vec::new());
        after != *before
    }

    fn acknowledge(&mut self, index: usize) {
        let flight = self.flights.remove(index);
        let outcome = AppendOutcome::At(flight.landed.expect("only what landed is acknowledged"));
        self.drive(flight.process, |machine, out| machine.on_appended(flight.tag, &[outcome], out));
    }

    fn time_out(&mut self, index: usize) {
        self.time_outs += 1;
        let flight = &mut self.flights[index];
        flight.timed_out = true;
        let (process, tag) = (flight.process, flight.tag);
        if flight.landed.is_some() {
            self.flights.remove(index);
        }
        self.drive(process, |machine, out| machine.on_appended(tag, &[AppendOutcome::Unknown], out));
    }

    /// Gives a machine an input and performs its outputs.
    fn drive(&mut self, index: usize, input: impl FnOnce(&mut Ownership, &mut Vec<Output>)) {
        let mut outputs = Vec::new();
        input(&mut self.process(index).machine, &mut outputs);
        for output in outputs {
            self.perform(index, output);
        }
    }

    fn perform(&mut self, index: usize, output: Output) {
        let process = self.process(index);
        match output {
            Output::Append { tag, entries } => {
                if let Some(nonce) = tag.nonce() {
                    process.open.push(nonce);
                }
                assert_eq!(entries.len(), 1, "one entry per append, so that each meets its own fate");
                let flights = entries.into_iter().map(|entry| Flight {
                    process: index,
                    tag,
                    entry,
                    landed: None,
                    timed_out: false,
                });
                self.flights.extend(flights);
            }
            Output::Read { from, .. } => process.reading = Some(from),
            Output::Apply { offset, payload, .. } => {
                process.applied += 1;
                let applied = process.applied;
                if self.valid.get(applied - 1) != Some(&(offset, payload)) {
                    self.broken = Some(Broken::AppliedOtherwise);
                }
            }
            Output::Committed { ticket, offset } => self.settle(index, ticket, Fate::Committed(offset)),
            Output::Failed { ticket } => self.settle(index, ticket, Fate::Failed),
            Output::Unresolved { ticket } => self.settle(index, ticket, Fate::Unresolved),
            Output::SteppedDown { reason: StepDown::Superseded { .. } } => {
                let open = std::mem::take(&mut process.open);
                process.dead.extend(open);
            }
            Output::BecameOwner { .. } => process.open.clear(),
            _ => {}
        }
    }

    fn settle(&mut self, index: usize, ticket: Ticket, fate: Fate) {
        let before = std::mem::replace(&mut self.process(index).fates[ticket.0 as usize], fate);
        if before != Fate::Pending {
            self.broken = Some(Broken::SettledTwice);
        }
    }

    fn fates(&self) -> impl Iterator<Item = (Bytes, Fate)> {
        self.processes.iter().enumerate().flat_map(|(index, process)| {
            process
                .fates
                .iter()
                .enumerate()
                .map(move |(ticket, fate)| (Bytes::copy_from_slice(&[index as u8, ticket as u8]), *fate))
        })
    }

    fn any_fate(&self, wanted: impl Fn(Fate) -> bool) -> bool {
        self.fates().any(|(_, fate)| wanted(fate))
    }

    fn committed_is_valid(&self) -> bool {
        self.fates().all(|(payload, fate)| match fate {
            Fate::Committed(offset) => self.valid.contains(&(offset, payload)),
            _ => true,
        })
    }

    fn failed_is_not_valid(&self) -> bool {
        self.fates()
            .all(|(payload, fate)| fate != Fate::Failed || self.valid.iter().all(|(_, valid)| *valid != payload))
    }

    fn valid_is_in_order(&self) -> bool {
        (0..self.processes.len()).all(|index| {
            let mut own = self.valid.iter().filter(|(_, payload)| payload[0] == index as u8);
            let mut last = None;
            own.all(|(_, payload)| last.replace(payload[1]) < Some(payload[1]))
        })
    }

    fn epochs_have_one_owner(&self) -> bool {
        let epochs: Vec<_> = self.processes.iter().filter_map(|process| process.machine.epoch()).collect();
        epochs.iter().enumerate().all(|(index, epoch)| !epochs[index + 1..].contains(epoch))
    }
}
