//! What acknowledgements and verdicts lead to.

use parlance_cluster_protocol::{Claim, Data, Entry, Epoch, Nonce, Offset, Release, Seq};

use super::{
    Output, Rules, StepDown, Verdict,
    machine::{InFlight, Landing, Ownership, Record, Role},
    rules::Rule,
};

impl Ownership {
    /// Notes what became of the record `seq` of the current epoch.
    pub(super) fn note_record(&mut self, seq: Seq, landing: Landing, out: &mut Vec<Output>) {
        // Not there: a read has settled it.
        let Ok(index) = self.in_flight.binary_search_by_key(&seq, |own| own.seq) else { return };
        let own = &mut self.in_flight[index];
        if matches!(own.landing, Landing::At(_)) {
            return;
        }
        own.landing = landing;
        if landing == Landing::Unknown {
            self.doubt(out);
        }
    }

    /// Notes what became of a claim.
    pub(super) fn note_claim(&mut self, nonce: Nonce, landing: Landing, out: &mut Vec<Output>) {
        let Some(open) = self.open_claims.iter_mut().find(|open| open.claim.nonce == nonce) else { return };
        if matches!(open.landing, Landing::At(_)) || open.landing == landing {
            return;
        }
        open.landing = landing;
        if landing == Landing::Unknown {
            self.claim_attempts = self.claim_attempts.saturating_add(1);
            out.push(Output::ClaimWanted { attempt: self.claim_attempts });
        }
    }

    /// Rule 5: stops appending and asks to claim over ourselves.
    fn doubt(&mut self, out: &mut Vec<Output>) {
        let Role::Owning(epoch) = self.role else { return };
        if !self.rules.hold(Rule::Barrier) {
            self.wants_end = true;
            return;
        }
        self.role = Role::Resolving(epoch);
        self.claim_attempts = 0;
        out.push(Output::ClaimWanted { attempt: 0 });
    }

    /// Judges own entries that are acknowledged exactly at the next offset: no read is needed, nothing can lie between.
    pub(super) fn settle_acknowledged(&mut self, out: &mut Vec<Output>) {
        loop {
            let next = self.validator.point().next;
            if let Some((index, offset)) = self.acknowledged_record(next) {
                self.commit_acknowledged(index, offset, out);
            } else if let Some(open) = self.open_claims.iter().find(|open| open.landing == Landing::At(next)) {
                let claim = open.claim.clone();
                self.take(next, Entry::Claim(claim), out);
            } else {
                break;
            }
        }
        let next = self.validator.point().next;
        // The first in flight lies where it was judged inert, behind a hole that was filled later. It may only count if it
        // lands a second time, so its outcome is as good as unknown.
        if self.in_flight.front().is_some_and(|own| matches!(own.landing, Landing::At(offset) if offset < next)) {
            self.doubt(out);
        }
    }

    /// Rule 4: only the first in flight may commit by its acknowledgement, and only at the next offset.
    fn acknowledged_record(&self, next: Offset) -> Option<(usize, Offset)> {
        let candidates = if self.rules.hold(Rule::AckOrder) { 1 } else { self.in_flight.len() };
        self.in_flight.iter().take(candidates).enumerate().find_map(|(index, own)| match own.landing {
            Landing::At(offset) if offset == next => Some((index, offset)),
            Landing::At(offset) if offset > next && !self.rules.hold(Rule::AckGap) => Some((index, offset)),
            _ => None,
        })
    }

    fn commit_acknowledged(&mut self, index: usize, offset: Offset, out: &mut Vec<Output>) {
        let (Some(epoch), Some(own)) = (self.epoch(), self.in_flight.remove(index)) else { return };
        let verdict = self.validator.judge(offset, &own.record.entry(epoch, own.seq));
        debug_assert!(verdict != Verdict::Inert || self.rules != Rules::ALL, "our entry at {offset} does not count");
        self.committed(own.record, offset, out);
    }

    /// Judges the entry at `offset`, the next that exists, and does what the verdict demands.
    pub(super) fn take(&mut self, offset: Offset, entry: Entry, out: &mut Vec<Output>) {
        match (self.validator.judge(offset, &entry), entry) {
            (Verdict::Claim(epoch), Entry::Claim(claim)) => self.on_claim(epoch, claim, out),
            (Verdict::Data, Entry::Data(data)) => self.on_data(offset, data, out),
            (Verdict::Release, Entry::Release(release)) => self.on_release(offset, release, out),
            _ => out.push(Output::Fenced { offset }),
        }
    }

    fn on_data(&mut self, offset: Offset, data: Data, out: &mut Vec<Output>) {
        if self.epoch() != Some(data.epoch) {
            return out.push(Output::Apply { offset, slot: data.slot, payload: data.payload });
        }
        match self.take_own(&Entry::Data(data)) {
            Some(own) => self.committed(own.record, offset, out),
            None => self.stop(StepDown::Forged { offset }, out),
        }
    }

    fn on_release(&mut self, offset: Offset, release: Release, out: &mut Vec<Output>) {
        if self.epoch() != Some(release.epoch) {
            return out.push(Output::ForeignRelease { offset, to: release.to });
        }
        match self.take_own(&Entry::Release(release)) {
            Some(own) => self.committed(own.record, offset, out),
            None => self.stop(StepDown::Forged { offset }, out),
        }
    }

    /// The first in flight, if it is the valid entry that was read.
    fn take_own(&mut self, entry: &Entry) -> Option<InFlight> {
        let epoch = self.epoch()?;
        self.in_flight.pop_front_if(|own| own.record.entry(epoch, own.seq) == *entry)
    }

    fn committed(&mut self, record: Record, offset: Offset, out: &mut Vec<Output>) {
        match record {
            Record::Data { ticket, slot, payload } => {
                out.push(Output::Apply { offset, slot, payload });
                out.push(Output::Committed { ticket, offset });
            }
            Record::Release { to } => {
                debug_assert!(
                    self.unsettled() == 0 || self.rules != Rules::ALL,
                    "a release is the last entry of its epoch"
                );
                self.role = Role::Following;
                out.push(Output::SteppedDown { reason: StepDown::Released { to } });
            }
        }
    }

    fn on_claim(&mut self, epoch: Epoch, claim: Claim, out: &mut Vec<Output>) {
        let ours = self.is_ours(&claim);
        // Whatever else was open names an older epoch: it can never be valid.
        let contended = !self.open_claims.is_empty();
        self.open_claims.clear();
        if ours {
            self.fail_in_flight(out);
            self.role = Role::Owning(epoch);
            self.wanted_claim = None;
            self.claim_attempts = 0;
            return out.push(Output::BecameOwner { epoch });
        }
        out.push(Output::ForeignClaim { epoch, node: claim.node.clone(), at: claim.at });
        match self.role {
            Role::Owning(_) | Role::Resolving(_) => {}
            Role::Claiming if contended => {}
            // A candidate that has not claimed yet replays the claims of the past.
            Role::Following | Role::Claiming | Role::Stopped => return,
        }
        self.fail_in_flight(out);
        self.fail_queue(out);
        self.role = Role::Following;
        self.wanted_claim = None;
        self.claim_attempts = 0;
        out.push(Output::SteppedDown { reason: StepDown::Superseded { epoch, node: claim.node } });
    }

    fn is_ours(&self, claim: &Claim) -> bool {
        if self.rules.hold(Rule::ClaimNonce) {
            return self.open_claims.iter().any(|open| open.claim.nonce == claim.nonce);
        }
        self.open_claims.iter().any(|open| open.claim.node == claim.node)
    }

    /// A later claim is valid: what is still in flight never will be. Neither will be what was proposed behind it, so that the
    /// committed proposals are always the first ones.
    fn fail_in_flight(&mut self, out: &mut Vec<Output>) {
        if self.in_flight.is_empty() {
            return;
        }
        out.extend(
            self.in_flight.drain(..).filter_map(|own| own.record.ticket()).map(|ticket| Output::Failed { ticket }),
        );
        self.fail_queue(out);
    }

    pub(super) fn fail_queue(&mut self, out: &mut Vec<Output>) {
        out.extend(self.queue.drain(..).filter_map(|record| record.ticket()).map(|ticket| Output::Failed { ticket }));
    }

    /// The planted bug of rule 5: takes an absent record for one that never comes.
    pub(super) fn fail_what_was_not_found(&mut self, out: &mut Vec<Output>) {
        if self.in_flight.iter().any(|own| own.landing == Landing::Unknown) {
            self.fail_in_flight(out);
        }
    }
}
