//! Proposed records settled: committed, or never to be.

use super::{Accepting, Dialogue, InFlight};
use crate::{Effect, Joined, Refusal, RequestId, Tag};

impl Dialogue {
    fn take_pending(&mut self, tag: Tag) -> Option<InFlight> {
        let at = self.pending.iter().position(|pending| pending.tag == tag)?;
        self.pending.remove(at).map(|pending| pending.what)
    }

    pub(super) fn committed(&mut self, tag: Tag, out: &mut Vec<Effect>) {
        match self.take_pending(tag) {
            Some(InFlight::Accept(accepting)) => tell_accepted(*accepting, out),
            Some(InFlight::Setting { request, .. }) => out.push(Effect::Done { request }),
            Some(InFlight::Bind(binders)) => binders.iter().for_each(|binder| self.tell_binding(binder, out)),
            Some(InFlight::Attempt(turn)) => self.attempt_committed(turn, out),
            Some(InFlight::Progress(turn)) => self.progress_committed(turn),
            Some(InFlight::End(_)) | None => {}
        }
    }

    pub(super) fn never_committed(&mut self, tag: Tag, out: &mut Vec<Effect>) {
        let mut refuse = |request: RequestId| out.push(Effect::Refused { request, refusal: Refusal::NotRecorded });
        match self.take_pending(tag) {
            Some(InFlight::Accept(accepting)) => {
                self.stops.retain(|turn| *turn != accepting.turn);
                refuse(accepting.request);
                accepting.joiners.into_iter().for_each(refuse);
            }
            Some(InFlight::Setting { request, .. }) => refuse(request),
            Some(InFlight::Bind(binders)) => binders.iter().for_each(|binder| refuse(binder.request)),
            Some(InFlight::Attempt(turn)) => self.attempt_lost(turn),
            // Whatever is still true is proposed again.
            Some(InFlight::Progress(_) | InFlight::End(_)) | None => {}
        }
    }
}

fn tell_accepted(accepting: Accepting, out: &mut Vec<Effect>) {
    let turn = accepting.turn;
    out.push(Effect::Accepted { request: accepting.request, turn });
    let joined = |request| Effect::Joined { request, turn, state: Joined::Open };
    out.extend(accepting.joiners.into_iter().map(joined));
}
