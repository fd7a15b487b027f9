//! The machine of one shard in one process: its state and its inputs. What a verdict leads to is in `settle`.

use std::collections::VecDeque;

use bytes::Bytes;
use parlance_cluster_protocol::{Claim, Data, Entry, Epoch, Nonce, Offset, Release, Seq, SlotId, TimestampMs};

use super::{
    AppendTag, Limits, LogPoint, MAX_PAYLOAD_BYTES, Output, ProposeError, Rules, SlotTable, StepDown, Tag, Ticket,
    Validator, rules::Rule,
};
use crate::{AppendOutcome, StoredEntry};

/// How many claims of ours are remembered while none is known to be valid. An older one that turns out valid is taken for
/// another process's, which costs the reign and nothing else.
const OPEN_CLAIMS: usize = 16;

/// What this process is to the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// Reads along.
    Following,
    /// Wants to own: reads to the end, claims, waits for the verdict.
    Claiming,
    /// Owns and appends.
    Owning(Epoch),
    /// Owns as far as it knows, but the outcome of an append is unknown: appends nothing, claims over itself.
    Resolving(Epoch),
    /// Never does anything again.
    Stopped,
}

/// What is recorded, apart from its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Record {
    Data { ticket: Ticket, slot: SlotId, payload: Bytes },
    Release { to: String },
}

/// What is known of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Landing {
    Pending,
    At(Offset),
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct InFlight {
    pub(super) seq: Seq,
    pub(super) record: Record,
    pub(super) landing: Landing,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct OpenClaim {
    pub(super) claim: Claim,
    pub(super) landing: Landing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reading {
    from: Offset,
    /// Whether it was asked for after the latest wish to know the end.
    shows_end: bool,
}

/// One process's view of one shard: follower, candidate or owner. See the [module](super) for the rules and the driving.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    node: String,
    limits: Limits,
    pub(super) rules: Rules,
    pub(super) validator: Validator,
    pub(super) role: Role,
    /// Handed out for appending under the current epoch of ours.
    ///
    /// Invariant: in `seq` order without holes, and the first one's `seq` is the one that the validator expects; empty unless
    /// owning or resolving.
    pub(super) in_flight: VecDeque<InFlight>,
    /// Accepted, not yet handed out. A release can only be the last of `in_flight` and `queue`.
    ///
    /// Invariant: empty unless owning or resolving.
    pub(super) queue: VecDeque<Record>,
    /// Claims of ours that name the latest valid claim, so that one of them may be or become valid.
    pub(super) open_claims: VecDeque<OpenClaim>,
    /// A claim that goes out once the end of the log was read.
    pub(super) wanted_claim: Option<(Nonce, TimestampMs)>,
    /// How many claims of the current dispute were asked for again.
    pub(super) claim_attempts: u32,
    /// The read that was asked for and not yet answered.
    reading: Option<Reading>,
    /// Reads in a row that did not show what is known to be there.
    stale_reads: u32,
    /// Whether the end of the log is to be read.
    pub(super) wants_end: bool,
    next_ticket: u64,
}

impl Ownership {
    /// A follower that knows the log up to `point`. `node` is the name it claims under, for people.
    pub fn new(node: impl Into<String>, slots: SlotTable, point: LogPoint, limits: Limits) -> Self {
        Self::with_rules(node, slots, point, limits, Rules::default())
    }

    /// As [`new`](Self::new), with other rules than all of them.
    pub fn with_rules(
        node: impl Into<String>,
        slots: SlotTable,
        point: LogPoint,
        limits: Limits,
        rules: Rules,
    ) -> Self {
        Self {
            node: node.into(),
            limits,
            rules,
            validator: Validator::with_rules(slots, point, rules),
            role: Role::Following,
            in_flight: VecDeque::new(),
            queue: VecDeque::new(),
            open_claims: VecDeque::new(),
            wanted_claim: None,
            claim_attempts: 0,
            reading: None,
            stale_reads: 0,
            wants_end: false,
            next_ticket: 0,
        }
    }

    /// What is known of the log, for a checkpoint: everything before it was applied.
    pub fn point(&self) -> LogPoint {
        self.validator.point()
    }

    /// The epoch under which this process owns the shard, as far as it knows.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.role {
            Role::Owning(epoch) | Role::Resolving(epoch) => Some(epoch),
            Role::Following | Role::Claiming | Role::Stopped => None,
        }
    }

    /// Whether proposals are taken at the moment, room in the queue aside.
    pub fn is_open(&self) -> bool {
        self.epoch().is_some() && !self.is_releasing()
    }

    /// How many proposals were taken and not yet settled.
    pub fn unsettled(&self) -> usize {
        self.in_flight.len() + self.queue.len()
    }

    /// Claims the shard: reads to the end, then appends a claim with `nonce`, written `at`. Every call needs a fresh random
    /// nonce. Does nothing for an owner that is in no doubt.
    pub fn claim(&mut self, nonce: Nonce, at: TimestampMs, out: &mut Vec<Output>) {
        match self.role {
            Role::Owning(_) | Role::Stopped => return,
            Role::Following => self.role = Role::Claiming,
            Role::Claiming | Role::Resolving(_) => {}
        }
        self.wanted_claim = Some((nonce, at));
        self.catch_up(out);
    }

    /// Reads to the end of the log as it is now, then says [`Output::CaughtUp`]: for followers, for current reads, and for
    /// an idle owner to notice that it was deposed.
    pub fn catch_up(&mut self, out: &mut Vec<Output>) {
        self.wants_end = true;
        self.go_on(out);
    }

    /// Takes a record for appending; it goes out with the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// Why it was not taken; then nothing has changed.
    pub fn propose(&mut self, slot: SlotId, payload: Bytes) -> Result<Ticket, ProposeError> {
        if !self.is_open() {
            return Err(ProposeError::NotOwner);
        }
        if !self.validator.owns(slot) {
            return Err(ProposeError::ForeignSlot(slot));
        }
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(ProposeError::TooLarge { bytes: payload.len() });
        }
        if self.queue.len() >= self.limits.queue {
            return Err(ProposeError::Full);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push_back(Record::Data { ticket, slot, payload });
        Ok(ticket)
    }

    /// Hands the shard over to node `to`, behind everything that was proposed. Ends in [`StepDown::Released`], or in another
    /// step-down or a [`Output::BecameOwner`] that say that it did not happen.
    ///
    /// # Errors
    ///
    /// [`ProposeError::NotOwner`], also when it was released before.
    pub fn release(&mut self, to: impl Into<String>, out: &mut Vec<Output>) -> Result<(), ProposeError> {
        if !self.is_open() {
            return Err(ProposeError::NotOwner);
        }
        self.queue.push_back(Record::Release { to: to.into() });
        self.go_on(out);
        Ok(())
    }

    /// Hands out what was proposed, as far as the window allows, as one append.
    pub fn flush(&mut self, out: &mut Vec<Output>) {
        self.go_on(out);
    }

    /// Takes the outcomes of an append, one per entry in order.
    pub fn on_appended(&mut self, tag: AppendTag, outcomes: &[AppendOutcome], out: &mut Vec<Output>) {
        match tag.0 {
            Tag::Records { epoch, first } if self.epoch() == Some(epoch) => {
                let mut seq = first;
                for outcome in outcomes {
                    self.note_record(seq, (*outcome).into(), out);
                    seq = seq.next();
                }
            }
            // Of an earlier reign: a valid claim has settled it.
            Tag::Records { .. } => {}
            Tag::Claim { nonce } => {
                if let Some(outcome) = outcomes.first() {
                    self.note_claim(nonce, (*outcome).into(), out);
                }
            }
        }
        self.go_on(out);
    }

    /// Takes what the log holds from `from` on; nothing, where that is its end.
    pub fn on_read(&mut self, from: Offset, entries: Vec<StoredEntry>, out: &mut Vec<Output>) {
        let shows_end = self.reading.take_if(|reading| reading.from == from).is_some_and(|reading| reading.shows_end);
        debug_assert!(from <= self.validator.point().next, "a read from {from} leaves out entries");
        if from > self.validator.point().next {
            return self.go_on(out);
        }
        let is_end = entries.is_empty();
        self.stale_reads = if is_end && self.is_behind_a_gap() { self.stale_reads.saturating_add(1) } else { 0 };
        for StoredEntry { offset, bytes } in entries {
            if offset < self.validator.point().next || self.role == Role::Stopped {
                continue;
            }
            match Entry::decode(bytes) {
                Ok(entry) => self.take(offset, entry, out),
                Err(source) => self.stop(StepDown::Unreadable { offset, source }, out),
            }
        }
        if is_end && shows_end {
            self.reached_end(out);
        }
        self.go_on(out);
    }

    /// Gives up for good. What is in flight stays unresolved.
    pub fn stop(&mut self, reason: StepDown, out: &mut Vec<Output>) {
        if self.role == Role::Stopped {
            return;
        }
        self.role = Role::Stopped;
        out.extend(
            self.in_flight.drain(..).filter_map(|own| own.record.ticket()).map(|ticket| Output::Unresolved { ticket }),
        );
        self.fail_queue(out);
        self.open_claims.clear();
        self.wanted_claim = None;
        self.wants_end = false;
        out.push(Output::SteppedDown { reason });
    }

    /// Whether an unknown outcome is being settled.
    pub fn is_resolving(&self) -> bool {
        matches!(self.role, Role::Resolving(_))
    }

    /// Whether this process neither owns the shard nor has claimed it with a claim that may become valid.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.epoch().is_none() && self.open_claims.is_empty() && self.wanted_claim.is_none()
    }

    fn is_releasing(&self) -> bool {
        let last = self.queue.back().or(self.in_flight.back().map(|own| &own.record));
        matches!(last, Some(Record::Release { .. }))
    }

    fn reached_end(&mut self, out: &mut Vec<Output>) {
        self.wants_end = false;
        out.push(Output::CaughtUp { next: self.validator.point().next });
        if !self.rules.hold(Rule::Barrier) {
            self.fail_what_was_not_found(out);
        }
        if let Some((nonce, at)) = self.wanted_claim.take() {
            self.append_claim(nonce, at, out);
        }
    }

    fn append_claim(&mut self, nonce: Nonce, at: TimestampMs, out: &mut Vec<Output>) {
        let claim = Claim { node: self.node.clone(), nonce, prev_epoch: self.validator.point().epoch, at };
        if self.open_claims.len() == OPEN_CLAIMS {
            self.open_claims.pop_front();
        }
        let entries = vec![Entry::Claim(claim.clone()).encode()];
        self.open_claims.push_back(OpenClaim { claim, landing: Landing::Pending });
        out.push(Output::Append { tag: AppendTag(Tag::Claim { nonce }), entries });
    }

    /// What follows from any change: settles what is known, then asks for what is not.
    fn go_on(&mut self, out: &mut Vec<Output>) {
        if self.role == Role::Stopped {
            return;
        }
        self.settle_acknowledged(out);
        self.append_queue(out);
        self.ask_to_read(out);
    }

    fn append_queue(&mut self, out: &mut Vec<Output>) {
        let (Role::Owning(epoch), Some(expected)) = (self.role, self.validator.point().seq) else { return };
        let room = self.limits.window.saturating_sub(self.in_flight.len()).min(self.queue.len());
        if room == 0 {
            return;
        }
        let first = Seq(expected.0 + self.in_flight.len() as u64);
        let mut seq = first;
        let mut entries = Vec::with_capacity(room);
        for record in self.queue.drain(..room) {
            entries.push(record.entry(epoch, seq).encode());
            self.in_flight.push_back(InFlight { seq, record, landing: Landing::Pending });
            seq = seq.next();
        }
        out.push(Output::Append { tag: AppendTag(Tag::Records { epoch, first }), entries });
    }

    fn ask_to_read(&mut self, out: &mut Vec<Output>) {
        if self.reading.is_some() || !(self.wants_end || self.is_behind_a_gap()) {
            return;
        }
        let from = self.validator.point().next;
        self.reading = Some(Reading { from, shows_end: self.wants_end });
        out.push(Output::Read { from, attempt: self.stale_reads });
    }

    /// Whether something of ours is known to lie behind entries that were not judged.
    pub(super) fn is_behind_a_gap(&self) -> bool {
        let next = self.validator.point().next;
        let first = self.in_flight.front().map(|own| own.landing);
        let claims = self.open_claims.iter().map(|open| open.landing);
        claims.chain(first).any(|landing| matches!(landing, Landing::At(offset) if offset > next))
    }
}

impl Record {
    pub(super) fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Data { ticket, .. } => Some(*ticket),
            Self::Release { .. } => None,
        }
    }

    pub(super) fn entry(&self, epoch: Epoch, seq: Seq) -> Entry {
        match self {
            Self::Data { slot, payload, .. } => Entry::Data(Data { epoch, seq, slot: *slot, payload: payload.clone() }),
            Self::Release { to } => Entry::Release(Release { epoch, seq, to: to.clone() }),
        }
    }
}

impl From<AppendOutcome> for Landing {
    fn from(outcome: AppendOutcome) -> Self {
        match outcome {
            AppendOutcome::At(offset) => Self::At(offset),
            AppendOutcome::Unknown => Self::Unknown,
        }
    }
}
