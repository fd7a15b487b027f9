//! A session that comes from another log.

use parlance_cluster_protocol::{Adopted, Position, SessionEvent, SessionRecord};

use super::{Dialogue, InFlight, NO_KEY, Setting};
use crate::{Caller, Effect, Refusal, ViewChange, durable::AdoptedPart, history::History};

impl Dialogue {
    pub(super) fn adopt(&mut self, caller: Caller, part: Adopted, out: &mut Vec<Effect>) {
        let request = caller.request;
        if self.live && self.durable.has_adopted(&part) {
            return out.push(Effect::Done { request });
        }
        match self.refuse_part(part) {
            Ok(event) => {
                let what = InFlight::Setting { request, kind: Setting::Adopt };
                self.propose(caller.user, event, what, out);
            }
            Err(refusal) => out.push(Effect::Refused { request, refusal }),
        }
    }

    /// The record of a part that can follow. That is tried out, since one that cannot would stop every owner of the shard.
    fn refuse_part(&self, part: Adopted) -> Result<SessionEvent, Refusal> {
        if !self.live {
            return Err(Refusal::NotReady);
        }
        if self.durable.is_settled_here() {
            return Err(Refusal::AlreadyExists);
        }
        if !self.pending.is_empty() {
            return Err(Refusal::SessionBusy);
        }
        let position = self.durable.position().map_or(Position(0), |last| Position(last.0.saturating_add(1)));
        let (session, event) = (self.durable.session().clone(), SessionEvent::Adopted(part));
        let record = SessionRecord { session, user: None, key_id: NO_KEY, at: self.clock, event };
        match self.durable.clone().fold(position, &record, &mut Vec::new()) {
            Ok(_) => Ok(record.event),
            Err(error) => Err(Refusal::from_part(&error)),
        }
    }

    /// Whether the session is on its way from another log, as far as that is recorded or proposed.
    pub(super) fn is_being_adopted(&self) -> bool {
        let proposed = |what: &InFlight| matches!(what, InFlight::Setting { kind: Setting::Adopt, .. });
        self.durable.is_being_adopted() || self.has_pending(proposed)
    }

    /// What is in memory changes as the views do. Items come into a window that is known before them.
    pub(super) fn remember_adopted(&mut self, part: AdoptedPart, changes: &[ViewChange]) {
        if part.begins {
            self.dedupe.clear();
        }
        if part.begins || part.has_state {
            self.history = History::blank(self.durable.history_rows());
        }
        for change in changes {
            match change {
                ViewChange::PutItem { index, item } => self.history.fill(*index, item.clone()),
                ViewChange::PutDedupe { event_id, outcome } => self.dedupe.put(event_id.clone(), outcome.clone()),
                _ => {}
            }
        }
        if part.completes && self.live {
            self.take_up();
        }
    }
}
