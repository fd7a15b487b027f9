//! What counts in a shard's log, for every reader.

use parlance_cluster_protocol::{Claim, Data, Entry, Epoch, Offset, Release, Seq, ShardId, SlotId, shard_of_slot};

use super::rules::{Rule, Rules};

/// Which slots a shard owns at its position in the log. Fixed for now; slot moves will change it by entries of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotTable {
    shard: ShardId,
    shards: u16,
}

impl SlotTable {
    /// The slots of `shard` in a log of `shards` shards.
    pub fn new(shard: ShardId, shards: u16) -> Self {
        debug_assert!(shard.0 < shards);
        Self { shard, shards }
    }

    /// Whether the shard owns `slot`.
    pub fn owns(&self, slot: SlotId) -> bool {
        shard_of_slot(slot, self.shards) == self.shard
    }
}

/// What a reader knows about the log before `next`; all that a checkpoint must keep of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// The first offset that was not judged.
    pub next: Offset,
    /// The latest valid claim; `None` before the first.
    pub epoch: Option<Epoch>,
    /// The `seq` of the epoch's next record; `None` where nothing of the epoch can count any more.
    pub seq: Option<Seq>,
}

impl LogPoint {
    /// The beginning of a log.
    pub const START: Self = Self { next: Offset(0), epoch: None, seq: None };
}

/// What an entry is, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A valid claim, which begins this epoch.
    Claim(Epoch),
    /// A valid record.
    Data,
    /// A valid release: nothing of its epoch counts behind it.
    Release,
    /// Counts for nobody: a late write, a repetition, a record behind a hole, or a claim that came second.
    Inert,
}

/// Decides what counts, entry by entry in the order of the log. Every reader uses this and nothing else, so a zombie's late
/// write is inert for everybody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Validator {
    slots: SlotTable,
    /// Invariant: `seq` is `None` where `epoch` is.
    point: LogPoint,
    rules: Rules,
}

impl Validator {
    /// A reader that has judged everything before `point`: [`LogPoint::START`], or a checkpoint.
    pub fn new(slots: SlotTable, point: LogPoint) -> Self {
        Self::with_rules(slots, point, Rules::default())
    }

    /// As [`new`](Self::new), with other rules than all of them.
    pub fn with_rules(slots: SlotTable, point: LogPoint, rules: Rules) -> Self {
        debug_assert!(point.epoch.is_some() || point.seq.is_none());
        Self { slots, point, rules }
    }

    /// What is known so far.
    pub fn point(&self) -> LogPoint {
        self.point
    }

    /// Whether the shard owns `slot` at this position.
    pub fn owns(&self, slot: SlotId) -> bool {
        self.slots.owns(slot)
    }

    /// Judges the entry at `offset`, which follows everything judged so far.
    pub fn judge(&mut self, offset: Offset, entry: &Entry) -> Verdict {
        debug_assert!(offset >= self.point.next, "entry {offset} was judged before");
        self.point.next = offset.next();
        match entry {
            Entry::Claim(claim) => self.judge_claim(offset, claim),
            Entry::Data(data) => self.judge_data(data),
            Entry::Release(release) => self.judge_release(release),
        }
    }

    fn judge_claim(&mut self, offset: Offset, claim: &Claim) -> Verdict {
        if claim.prev_epoch != self.point.epoch && self.rules.hold(Rule::ClaimChain) {
            return Verdict::Inert;
        }
        let epoch = Epoch { offset, nonce: claim.nonce };
        self.point.epoch = Some(epoch);
        self.point.seq = Some(Seq(0));
        Verdict::Claim(epoch)
    }

    fn judge_data(&mut self, data: &Data) -> Verdict {
        if !self.is_next(data.epoch, data.seq) || !self.slots.owns(data.slot) {
            return Verdict::Inert;
        }
        self.point.seq = Some(data.seq.next());
        Verdict::Data
    }

    fn judge_release(&mut self, release: &Release) -> Verdict {
        if !self.is_next(release.epoch, release.seq) {
            return Verdict::Inert;
        }
        self.point.seq = None;
        Verdict::Release
    }

    fn is_next(&self, epoch: Epoch, seq: Seq) -> bool {
        let current = self.point.epoch == Some(epoch) || !self.rules.hold(Rule::CurrentEpoch);
        current && self.point.seq.is_some_and(|next| next == seq || !self.rules.hold(Rule::NextSeq))
    }
}
