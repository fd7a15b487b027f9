//! Requests: refused, answered from what is recorded, or proposed as a record.

use parlance_cluster_protocol::{
    BodyHash, History, Item, ItemsAdded, KeyBound, SessionEvent, SessionOpened, SessionUpdated, TimestampMs,
    TurnAccepted, TurnId,
};

use super::{Accepting, Binder, Dialogue, InFlight, Setting};
use crate::{Caller, DedupeOutcome, Effect, Joined, Refusal, RequestId};

impl Dialogue {
    pub(super) fn open(&mut self, caller: Caller, opened: SessionOpened, out: &mut Vec<Effect>) {
        let refusal = if self.durable.exists() {
            Some(Refusal::AlreadyExists)
        } else if !self.pending.is_empty() {
            Some(Refusal::SessionBusy)
        } else {
            self.refuse_change(true)
        };
        self.set(caller, refusal, Setting::Open, SessionEvent::Opened(opened), out);
    }

    pub(super) fn update(&mut self, caller: Caller, updated: SessionUpdated, out: &mut Vec<Effect>) {
        let refusal = self.refuse_change(false);
        self.set(caller, refusal, Setting::Update, SessionEvent::Updated(updated), out);
    }

    pub(super) fn add_items(&mut self, caller: Caller, items: Vec<Item>, out: &mut Vec<Effect>) {
        let busy = self.open_or_proposed() > 0;
        let refusal = self.refuse_change(false).or(busy.then_some(Refusal::SessionBusy));
        self.set(caller, refusal, Setting::AddItems, SessionEvent::ItemsAdded(ItemsAdded { items }), out);
    }

    pub(super) fn delete(&mut self, caller: Caller, out: &mut Vec<Effect>) {
        let refusal = self.refuse_change(false);
        self.set(caller, refusal, Setting::Delete, SessionEvent::Deleted, out);
    }

    fn set(
        &mut self,
        caller: Caller,
        refusal: Option<Refusal>,
        kind: Setting,
        event: SessionEvent,
        out: &mut Vec<Effect>,
    ) {
        let request = caller.request;
        match refusal {
            Some(refusal) => out.push(Effect::Refused { request, refusal }),
            None => self.propose(caller.user, event, InFlight::Setting { request, kind }, out),
        }
    }

    /// What keeps any change from being proposed. A session counts as existing once a record that makes it so is proposed:
    /// records commit in order.
    fn refuse_change(&self, create: bool) -> Option<Refusal> {
        if !self.live {
            Some(Refusal::NotReady)
        } else if self.is_being_adopted() {
            Some(Refusal::SessionBusy)
        } else if self.durable.is_deleted() {
            Some(Refusal::Deleted)
        } else if self.has_pending(|what| matches!(what, InFlight::Setting { kind: Setting::Delete, .. })) {
            Some(Refusal::SessionBusy)
        } else if !create && !self.durable.exists() && self.pending.is_empty() {
            Some(Refusal::NotFound)
        } else {
            (self.waiting() >= self.limits.waiting).then_some(Refusal::SessionBusy)
        }
    }

    pub(super) fn bind_key(&mut self, caller: Caller, bound: KeyBound, out: &mut Vec<Effect>) {
        let binder = Binder { request: caller.request, body_hash: bound.body_hash, turn: bound.turn };
        if !self.live || self.is_being_adopted() || self.waiting() >= self.limits.waiting {
            let refusal = if self.live { Refusal::SessionBusy } else { Refusal::NotReady };
            out.push(Effect::Refused { request: caller.request, refusal });
        } else if self.durable.binding().is_some_and(|binding| binding.expires_at > self.clock) {
            self.tell_binding(&binder, out);
        } else if let Some(binders) = self.pending_binders() {
            binders.push(binder);
        } else {
            self.propose(caller.user, SessionEvent::KeyBound(bound), InFlight::Bind(vec![binder]), out);
        }
    }

    fn pending_binders(&mut self) -> Option<&mut Vec<Binder>> {
        self.pending.iter_mut().find_map(|pending| match &mut pending.what {
            InFlight::Bind(binders) => Some(binders),
            _ => None,
        })
    }

    /// Answers from the recorded binding.
    pub(super) fn tell_binding(&self, binder: &Binder, out: &mut Vec<Effect>) {
        let Some(binding) = self.durable.binding() else { return };
        let request = binder.request;
        out.push(if binding.body_hash == binder.body_hash {
            let (target, turn) = (binding.target.clone(), binding.turn);
            Effect::Bound { request, target, turn, first: turn == binder.turn }
        } else {
            Effect::Refused { request, refusal: Refusal::IdempotencyConflict }
        });
    }

    pub(super) fn submit(
        &mut self,
        caller: Caller,
        mut turn: TurnAccepted,
        create: bool,
        behind: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        let request = caller.request;
        if let Some(refusal) = self.refuse_change(create) {
            out.push(Effect::Refused { request, refusal });
        } else if let Some(answer) = self.repeated(request, &turn) {
            out.extend(answer);
        } else if behind.is_some_and(|turns| turns != self.durable.turns + self.accepting().count() as u64) {
            out.push(Effect::Refused { request, refusal: Refusal::MovedOn });
        } else if let Some(refusal) = self.refuse_turn(&turn) {
            out.push(Effect::Refused { request, refusal });
        } else {
            turn.deadline = turn.deadline.max(self.last_deadline());
            let accepting = Accepting {
                request,
                turn: turn.turn,
                event_id: turn.event_id.clone(),
                body_hash: turn.body_hash,
                deadline: turn.deadline,
                joiners: Vec::new(),
            };
            self.propose(caller.user, SessionEvent::TurnAccepted(turn), InFlight::Accept(Box::new(accepting)), out);
        }
    }

    /// Whether the turn's event id was seen before, so that submitting it accepts nothing new.
    pub fn knows(&self, turn: &TurnAccepted) -> bool {
        let is_proposed = || self.accepting().any(|accepting| accepting.event_id == turn.event_id);
        !turn.event_id.is_empty() && (self.dedupe.get(&turn.event_id, self.clock).is_some() || is_proposed())
    }

    /// `Some` if the turn's event id was seen before: the answer, or nothing yet where the first one is not recorded yet.
    fn repeated(&mut self, request: RequestId, turn: &TurnAccepted) -> Option<Option<Effect>> {
        if turn.event_id.is_empty() {
            return None;
        }
        let conflict = Effect::Refused { request, refusal: Refusal::IdempotencyConflict };
        if let Some(outcome) = self.dedupe.get(&turn.event_id, self.clock) {
            let same = same_body(outcome.body_hash, turn.body_hash);
            return Some(Some(if same { joined(request, outcome) } else { conflict }));
        }
        let first = self.pending.iter_mut().find_map(|pending| match &mut pending.what {
            InFlight::Accept(accepting) if accepting.event_id == turn.event_id => Some(accepting),
            _ => None,
        })?;
        if !same_body(first.body_hash, turn.body_hash) {
            return Some(Some(conflict));
        }
        first.joiners.push(request);
        Some(None)
    }

    fn refuse_turn(&self, turn: &TurnAccepted) -> Option<Refusal> {
        let open = self.open_or_proposed();
        if self.is_open_or_proposed(turn.turn) {
            Some(Refusal::TurnIdInUse)
        } else if turn.regenerates.is_some() && (open > 0 || !self.pending.is_empty()) {
            Some(Refusal::SessionBusy)
        } else if !self.regenerates_rightly(turn) {
            Some(Refusal::InvalidRegenerate)
        } else if open >= self.limits.queue {
            Some(Refusal::QueueFull)
        } else if !turn.event_id.is_empty() && self.dedupe.is_full(&self.limits, self.clock) {
            Some(Refusal::DedupeFull)
        } else {
            self.is_too_large(turn).then_some(Refusal::InputTooLarge)
        }
    }

    fn regenerates_rightly(&self, turn: &TurnAccepted) -> bool {
        let fitting = turn.input.is_empty() && turn.history == History::Session;
        turn.regenerates.is_none_or(|old| fitting && self.durable.is_last(old))
    }

    /// A turn on the session's history must fit the window, since its messages never leave it while it is answered.
    fn is_too_large(&self, turn: &TurnAccepted) -> bool {
        let bytes: usize = turn.input.iter().map(|item| item.text.len()).sum();
        let beyond = turn.input.len() > self.limits.history_items || bytes as u64 > self.limits.history_bytes;
        turn.history == History::Session && beyond
    }

    pub(super) fn stop(&mut self, turn: Option<TurnId>) {
        if self.durable.is_being_adopted() {
            return;
        }
        let running = self.durable.open.front().map(|open| open.request.turn);
        let Some(turn) = turn.or(running) else { return };
        if self.is_open_or_proposed(turn) && !self.stops.contains(&turn) {
            self.stops.push(turn);
        }
    }

    fn accepting(&self) -> impl DoubleEndedIterator<Item = &Accepting> {
        self.pending.iter().filter_map(|pending| match &pending.what {
            InFlight::Accept(accepting) => Some(accepting.as_ref()),
            _ => None,
        })
    }

    fn open_or_proposed(&self) -> usize {
        self.durable.open.len() + self.accepting().count()
    }

    pub(super) fn is_open_or_proposed(&self, turn: TurnId) -> bool {
        self.durable.open.iter().any(|open| open.request.turn == turn) || self.accepting().any(|a| a.turn == turn)
    }

    /// A turn waits for those before it, so it is given at least their time.
    fn last_deadline(&self) -> TimestampMs {
        let proposed = self.accepting().next_back().map(|accepting| accepting.deadline);
        proposed.or(self.durable.open.back().map(|open| open.request.deadline)).unwrap_or_default()
    }

    pub(super) fn has_pending(&self, is: impl Fn(&InFlight) -> bool) -> bool {
        self.pending.iter().any(|pending| is(&pending.what))
    }

    /// Requests that wait for a record besides the turns, which the queue bounds.
    fn waiting(&self) -> usize {
        let waiting = |what: &InFlight| match what {
            InFlight::Accept(accepting) => accepting.joiners.len(),
            InFlight::Setting { .. } => 1,
            InFlight::Bind(binders) => binders.len(),
            InFlight::Attempt(_) | InFlight::Progress(_) | InFlight::End(_) => 0,
        };
        self.pending.iter().map(|pending| waiting(&pending.what)).sum()
    }
}

fn joined(request: RequestId, outcome: &DedupeOutcome) -> Effect {
    let state = match &outcome.answer {
        Some(answer) => Joined::Answered(answer.clone()),
        None if outcome.ended => Joined::Over,
        None => Joined::Open,
    };
    Effect::Joined { request, turn: outcome.turn, state }
}

/// Without a hash on either side, the event id alone decides.
fn same_body(first: Option<BodyHash>, second: Option<BodyHash>) -> bool {
    first.zip(second).is_none_or(|(first, second)| first == second)
}
