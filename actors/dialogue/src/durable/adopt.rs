//! A session that comes from another log, part by part. Until the last part is there it exists for nobody.

use std::sync::Arc;

use parlance_cluster_protocol::{Adopted, AdoptedTurn, AdoptionChain, AdoptionDigest, Position, TimestampMs};

use super::{Durable, fold::Step};
use crate::{DedupeOutcome, DialogueError, HistoryItem, ViewChange};

/// How far the session has come from another log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Adoption {
    /// Names all that comes.
    pub(crate) digest: AdoptionDigest,
    /// Over the rows that have come.
    pub(crate) chain: AdoptionChain,
    /// How many parts have come.
    pub(crate) parts: u32,
    /// The state row as far as it has come; empty once it is whole.
    pub(crate) partial: Vec<u8>,
    /// Whether the state row is whole, and in force.
    pub(crate) has_state: bool,
    /// When the latest part was recorded: the session's own times are older.
    pub(crate) at: TimestampMs,
    /// Where the last part lies, once it is there.
    pub(crate) complete: Option<Position>,
}

/// What a part did besides changing views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdoptedPart {
    /// It was the first one: what came earlier of an adoption that was given up is forgotten.
    pub(crate) begins: bool,
    /// It made the state whole.
    pub(crate) has_state: bool,
    /// It was the last one.
    pub(crate) completes: bool,
}

impl Durable {
    /// Whether some of the session has come from another log and some is still to come.
    pub fn is_being_adopted(&self) -> bool {
        self.adoption.as_ref().is_some_and(|adoption| adoption.complete.is_none())
    }

    /// What names the session as it came from another log, and whether it has changed since; `None`: it is of this log, or still coming.
    pub fn adopted(&self) -> Option<(AdoptionDigest, bool)> {
        let adoption = self.adoption.as_ref()?;
        adoption.complete.map(|complete| (adoption.digest, self.position > Some(complete)))
    }

    /// The latest time that is recorded.
    pub(crate) fn latest(&self) -> TimestampMs {
        self.at.max(self.adoption.as_ref().map_or(TimestampMs::default(), |adoption| adoption.at))
    }

    /// Whether the part came before.
    pub(crate) fn has_adopted(&self, part: &Adopted) -> bool {
        let came = |adoption: &Adoption| adoption.complete.is_some() || part.part < adoption.parts;
        self.adoption.as_ref().is_some_and(|adoption| adoption.digest == part.digest && came(adoption))
    }

    /// Whether the session has records that no adoption may replace.
    pub(crate) fn is_settled_here(&self) -> bool {
        self.position.is_some() && !self.is_being_adopted()
    }

    pub(super) fn fold_adopted(&mut self, step: &mut Step<'_>, part: &Adopted) -> Result<AdoptedPart, DialogueError> {
        let mut adoption = self.next_adoption(step, part)?;
        let state = adoption.take_state(part).map_err(|reason| step.out_of_place(reason))?;
        let state = state.map(|row| self.read_state(step, &row)).transpose()?;
        let views = views(part)?;
        if !adoption.has_state && !views.is_empty() {
            return Err(step.out_of_place("rows come before the state is whole"));
        }
        adoption.chain.add_rows(part);
        adoption.at = adoption.at.max(step.record.at);
        let next = state.as_ref().unwrap_or(self);
        if part.last {
            adoption.check_end(next, part).map_err(|reason| step.out_of_place(reason))?;
            adoption.complete = Some(step.position);
        }
        let begins = part.part == 0;
        if begins && self.adoption.is_some() {
            step.changes.push(ViewChange::Erase);
        }
        step.changes.extend(views);
        let done = AdoptedPart { begins, has_state: state.is_some(), completes: part.last };
        if let Some(state) = state {
            *self = state;
        } else if begins {
            *self = Self::new(self.session.clone(), self.limits);
        }
        self.adoption = Some(adoption);
        Ok(done)
    }

    /// The adoption that the part belongs to, ready for it.
    fn next_adoption(&self, step: &Step<'_>, part: &Adopted) -> Result<Adoption, DialogueError> {
        if self.is_settled_here() {
            return Err(step.out_of_place("the session has records already"));
        }
        match &self.adoption {
            // Also over one that was given up.
            _ if part.part == 0 => Ok(Adoption { digest: part.digest, ..Adoption::default() }),
            Some(adoption) if adoption.digest == part.digest && adoption.parts == part.part => Ok(adoption.clone()),
            _ => Err(step.out_of_place("it is not the next part of what is being adopted")),
        }
    }

    fn read_state(&self, step: &Step<'_>, row: &[u8]) -> Result<Self, DialogueError> {
        let state = Self::decode(self.session.clone(), self.limits, row)?;
        if state.is_being_adopted() {
            return Err(step.out_of_place("where it comes from it was not whole either"));
        }
        Ok(state)
    }
}

impl Adoption {
    /// The state row, if this part makes it whole.
    fn take_state(&mut self, part: &Adopted) -> Result<Option<Vec<u8>>, &'static str> {
        self.parts = part.part.saturating_add(1);
        if self.has_state {
            let none = part.state.is_empty() && part.state_left == 0;
            return if none { Ok(None) } else { Err("its state is whole already") };
        }
        self.partial.extend_from_slice(&part.state);
        if part.state_left > 0 {
            return Ok(None);
        }
        let row = std::mem::take(&mut self.partial);
        self.chain.add_state(&row);
        self.has_state = true;
        Ok(Some(row))
    }

    fn check_end(&self, state: &Durable, part: &Adopted) -> Result<(), &'static str> {
        let open = state.open.iter().map(|open| &open.request);
        let open = open.map(|request| AdoptedTurn { turn: request.turn, deadline: request.deadline });
        if !self.has_state {
            Err("the state never came")
        } else if self.chain.0 != self.digest {
            Err("what came is not what was announced")
        } else if !open.eq(part.open.iter().copied()) {
            Err("its open turns are not those of the state")
        } else {
            Ok(())
        }
    }
}

fn views(part: &Adopted) -> Result<Vec<ViewChange>, DialogueError> {
    let mut views: Vec<_> = part.turns.iter().map(|turn| ViewChange::PutTurn { turn: *turn }).collect();
    for key in &part.keys {
        let outcome = Arc::new(DedupeOutcome::decode(key.row.clone())?);
        views.push(ViewChange::PutDedupe { event_id: key.event_id.as_str().into(), outcome });
    }
    for item in &part.items {
        views.push(ViewChange::PutItem { index: item.index, item: Arc::new(HistoryItem::decode(&item.row)?) });
    }
    Ok(views)
}
