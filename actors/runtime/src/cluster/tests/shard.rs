//! A shard's term as its actor serves it, without sessions: what is proposed is a number.

use std::{collections::BTreeMap, time::Duration};

use parlance_cluster_log::{
    AppendOutcome,
    ownership::{AppendTag, Limits, LogPoint, Output, Ownership, SlotTable, StepDown, Ticket},
    sim::{AppendId, ClientId, SimCore},
};
use parlance_cluster_protocol::{Nonce, Offset, ShardId, SlotId, TimestampMs};
use rand::{RngExt as _, rngs::StdRng};

use super::super::steward::{Reign, ShardNews};
use crate::cluster::DISPUTE;

const READ_BYTES: usize = 4_096;
/// An owner looks so often whether it was deposed.
const OWNER_LOOKS_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Following,
    Serving,
    Releasing,
    Over,
}

/// What a step of a shard leads to.
#[derive(Debug)]
pub(super) enum Effect {
    News(ShardNews),
    Committed(u64),
    Failed(u64),
    /// Nobody will ever know.
    Unresolved,
    Fenced,
    Owns(&'static str),
}

pub(super) struct SimShard {
    shard: ShardId,
    client: ClientId,
    me: String,
    machine: Ownership,
    phase: Phase,
    cause: &'static str,
    owner: bool,
    is_warm: bool,
    is_released_to_us: bool,
    reign: Option<Reign>,
    claims: Vec<TimestampMs>,
    pub(super) appends: BTreeMap<AppendId, AppendTag>,
    tickets: BTreeMap<Ticket, u64>,
    claim_at: Option<Duration>,
    read_at: Option<(Offset, Duration)>,
    looked: Duration,
}

/// What a shard works with in one step.
pub(super) struct Tools<'a> {
    pub(super) core: &'a mut SimCore,
    pub(super) rng: &'a mut StdRng,
    pub(super) now: Duration,
    pub(super) effects: Vec<Effect>,
}

fn at(now: Duration) -> TimestampMs {
    TimestampMs(now.as_millis() as u64)
}

/// The first slot of the shard.
fn slot(shard: ShardId, shards: u16) -> SlotId {
    let slots = u32::from(shard.0) * u32::from(parlance_cluster_protocol::SLOTS);
    SlotId(slots.div_ceil(u32::from(shards)) as u16)
}

impl SimShard {
    pub(super) fn follow(shard: ShardId, client: ClientId, me: &str, tools: &mut Tools<'_>) -> Self {
        let slots = SlotTable::new(shard, tools.core.shards());
        let mut new = Self {
            shard,
            client,
            me: me.to_owned(),
            machine: Ownership::new(me, slots, LogPoint::START, Limits::default()),
            phase: Phase::Following,
            cause: "start",
            owner: false,
            is_warm: false,
            is_released_to_us: false,
            reign: None,
            claims: Vec::new(),
            appends: BTreeMap::new(),
            tickets: BTreeMap::new(),
            claim_at: None,
            read_at: None,
            looked: tools.now,
        };
        new.catch_up(tools);
        new
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    pub(super) fn serves(&self) -> bool {
        self.owner && self.phase == Phase::Serving
    }

    pub(super) fn epoch(&self) -> Option<parlance_cluster_protocol::Epoch> {
        self.machine.epoch()
    }

    fn catch_up(&mut self, tools: &mut Tools<'_>) {
        let mut out = Vec::new();
        self.machine.catch_up(&mut out);
        self.perform(out, tools);
    }

    pub(super) fn claim(&mut self, cause: &'static str, tools: &mut Tools<'_>) {
        if self.phase == Phase::Following {
            (self.phase, self.cause) = (Phase::Serving, cause);
            tools.effects.push(Effect::News(ShardNews::Claiming));
            self.claim_again(tools);
        }
    }

    fn claim_again(&mut self, tools: &mut Tools<'_>) {
        let mut out = Vec::new();
        self.machine.claim(Nonce(tools.rng.random()), at(tools.now), &mut out);
        self.perform(out, tools);
    }

    pub(super) fn release(&mut self, to: String, tools: &mut Tools<'_>) {
        if self.serves() {
            self.phase = Phase::Releasing;
            tools.effects.push(Effect::News(ShardNews::Releasing));
            let mut out = Vec::new();
            self.machine.release(to, &mut out).expect("an owner that serves may release");
            self.perform(out, tools);
        }
    }

    /// `false`: not this node's.
    pub(super) fn propose(&mut self, proposal: u64, tools: &mut Tools<'_>) -> bool {
        let payload = proposal.to_be_bytes().to_vec().into();
        let taken = self.serves().then(|| self.machine.propose(slot(self.shard, tools.core.shards()), payload));
        let Some(taken) = taken else { return false };
        let ticket = taken.expect("an owner that serves takes a proposal of its own slot");
        self.tickets.insert(ticket, proposal);
        let mut out = Vec::new();
        self.machine.flush(&mut out);
        self.perform(out, tools);
        true
    }

    pub(super) fn on_appended(&mut self, append: AppendId, outcomes: &[AppendOutcome], tools: &mut Tools<'_>) {
        if let Some(tag) = self.appends.remove(&append) {
            let mut out = Vec::new();
            self.machine.on_appended(tag, outcomes, &mut out);
            self.perform(out, tools);
        }
    }

    /// Time has passed.
    pub(super) fn step(&mut self, tools: &mut Tools<'_>) {
        if self.is_over() {
            return;
        }
        if self.claim_at.take_if(|due| *due <= tools.now).is_some() {
            self.claim_again(tools);
        }
        if let Some((from, _)) = self.read_at.take_if(|(_, due)| *due <= tools.now) {
            self.read(from, tools);
        } else if self.read_at.is_none() && self.has_arrived(tools) {
            self.catch_up(tools);
        }
    }

    fn has_arrived(&mut self, tools: &Tools<'_>) -> bool {
        let pause = if self.phase == Phase::Following { Duration::ZERO } else { OWNER_LOOKS_EVERY };
        let looks = tools.now >= self.looked + pause;
        let end = tools.core.bounds(self.client, self.shard).map(|bounds| bounds.end);
        let arrived = looks && end.is_ok_and(|end| end > self.machine.point().next);
        if arrived {
            self.looked = tools.now;
        }
        arrived
    }

    fn read(&mut self, from: Offset, tools: &mut Tools<'_>) {
        match tools.core.read(self.client, self.shard, from, READ_BYTES) {
            Ok(entries) => {
                let mut out = Vec::new();
                self.machine.on_read(from, entries, &mut out);
                self.perform(out, tools);
            }
            // It stands still; what it asked for comes later.
            Err(_) => self.read_at = Some((from, tools.now + Duration::from_millis(100))),
        }
    }

    fn perform(&mut self, outputs: Vec<Output>, tools: &mut Tools<'_>) {
        for output in outputs {
            match output {
                Output::Append { tag, entries } => {
                    let append = tools.core.append(self.client, self.shard, entries);
                    self.appends.insert(append, tag);
                }
                Output::Read { from, attempt } => {
                    self.read_at = Some((from, tools.now + Duration::from_millis(5 << attempt.min(8))));
                }
                Output::ClaimWanted { attempt } => {
                    self.claim_at = Some(tools.now + Duration::from_millis(5 << attempt.min(8)));
                }
                Output::BecameOwner { epoch } => {
                    if !self.owner {
                        tools.effects.push(Effect::Owns(self.cause));
                    }
                    (self.owner, self.phase) = (true, Phase::Serving);
                    tools.effects.push(Effect::News(ShardNews::Owned { claimed_at: epoch.offset }));
                }
                Output::Apply { .. } => {}
                Output::Committed { ticket, .. } => {
                    tools.effects.extend(self.tickets.remove(&ticket).map(Effect::Committed));
                }
                Output::Failed { ticket } => tools.effects.extend(self.tickets.remove(&ticket).map(Effect::Failed)),
                Output::Unresolved { ticket } => {
                    tools.effects.extend(self.tickets.remove(&ticket).map(|_| Effect::Unresolved));
                }
                Output::SteppedDown { reason: StepDown::Superseded { .. } | StepDown::Released { .. } } => {
                    self.phase = Phase::Over;
                    tools.effects.push(Effect::News(ShardNews::Ended));
                    return;
                }
                Output::SteppedDown { reason } => panic!("{reason}"),
                Output::Fenced { .. } => tools.effects.push(Effect::Fenced),
                Output::ForeignClaim { epoch, node, at } => {
                    self.is_released_to_us = false;
                    self.reign = Some(Reign { by: node, claimed_at: epoch.offset, recent_claims: 0 });
                    self.claims.push(at);
                    if self.is_warm {
                        self.tell_reign(tools);
                    }
                }
                Output::ForeignRelease { to, .. } => {
                    self.is_released_to_us = to == self.me;
                    self.claims.clear();
                    if self.is_warm {
                        self.take_what_was_released(tools);
                    }
                }
                Output::CaughtUp { .. } => {
                    if self.phase == Phase::Following && !std::mem::replace(&mut self.is_warm, true) {
                        self.tell_reign(tools);
                        self.take_what_was_released(tools);
                    }
                }
            }
        }
    }

    fn take_what_was_released(&mut self, tools: &mut Tools<'_>) {
        if std::mem::take(&mut self.is_released_to_us) {
            self.claim("handover", tools);
        }
    }

    fn tell_reign(&self, tools: &mut Tools<'_>) {
        let since = at(tools.now.saturating_sub(DISPUTE));
        let recent_claims = self.claims.iter().filter(|claimed| **claimed >= since).count();
        let reign = self.reign.clone().map(|reign| Reign { recent_claims, ..reign });
        tools.effects.push(Effect::News(ShardNews::Warm { reign }));
    }
}
