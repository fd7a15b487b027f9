//! The records of turns folded in: accepted, under way, ended.

use std::{mem, sync::Arc};

use parlance_cluster_protocol::{History, Item, Origin, Replied, Role, TimestampMs, TurnAccepted, TurnFailed, TurnId};

use super::{Durable, Folded, HeadStart, LastTurn, OpenTurn, fold::Step};
use crate::{Answer, DEDUPE_TTL_MS, DedupeOutcome, DialogueError, ItemKind, Outcome, ViewChange};

impl Durable {
    pub(super) fn fold_accepted(&mut self, step: &mut Step<'_>, accepted: &TurnAccepted) -> Result<(), DialogueError> {
        self.check_accepted(step, accepted)?;
        let mut request = accepted.clone();
        let input = mem::take(&mut request.input).into_iter().map(Arc::new).collect();
        let open = OpenTurn {
            request,
            input,
            accepted_at: step.record.at,
            user: step.record.user,
            key_id: step.record.key_id,
            attempt: 1,
            tokens: Vec::new(),
            model: None,
            head: None,
        };
        step.changes.push(ViewChange::PutTurn { turn: accepted.turn });
        put_dedupe(step, &open, None);
        self.turns += 1;
        self.open.push_back(open);
        if self.open.len() == 1 {
            self.begin_head(step);
        }
        Ok(())
    }

    fn check_accepted(&self, step: &Step<'_>, accepted: &TurnAccepted) -> Result<(), DialogueError> {
        let turn = accepted.turn;
        if self.deleted {
            return Err(step.inconsistent(turn, "its session is deleted"));
        }
        if self.open.iter().any(|open| open.request.turn == turn) {
            return Err(step.inconsistent(turn, "it is accepted already"));
        }
        match accepted.regenerates {
            Some(old) if !self.open.is_empty() || !self.is_last(old) => {
                Err(step.inconsistent(turn, "what it regenerates is not the last turn"))
            }
            _ => Ok(()),
        }
    }

    /// The first open turn comes up: its messages enter the transcript, and its prompt is fixed.
    fn begin_head(&mut self, step: &mut Step<'_>) {
        let Some(open) = self.open.front_mut() else { return };
        let turn = open.request.turn;
        let replaced = self.last.as_ref().filter(|_| open.request.regenerates.is_some());
        let exchange = replaced.map_or(turn, |last| last.exchange);
        let first_item = replaced.map_or(self.window.next(), |last| last.first_item);
        let own = open.request.instructions.as_deref().map(Arc::from);
        open.head = Some(HeadStart { exchange, first_item, system_prompt: own.or_else(|| self.system_prompt.clone()) });
        if self.deleted {
            return;
        }
        let given = open.request.history == History::Given;
        for item in open.input.clone() {
            self.put_item(step, item, ItemKind::Input { given }, Some(turn), Some(exchange));
        }
        self.trim();
    }

    pub(super) fn head_mut(&mut self, step: &Step<'_>, turn: TurnId) -> Result<&mut OpenTurn, DialogueError> {
        self.open
            .front_mut()
            .filter(|open| open.request.turn == turn)
            .ok_or_else(|| step.inconsistent(turn, "it is not the turn that is being answered"))
    }

    pub(super) fn fold_replied(&mut self, step: &mut Step<'_>, replied: &Replied) -> Result<Folded, DialogueError> {
        let given = self.head_mut(step, replied.turn)?.request.history == History::Given;
        let (finish, usage, model) = (replied.finish, replied.usage, replied.model.clone());
        let item = Item { role: Role::Assistant, text: replied.text.clone() };
        let kind = ItemKind::Reply { finish, usage, model, given };
        Ok(self.end_head(step, item, kind, Outcome::Replied(Arc::new(replied.clone()))))
    }

    pub(super) fn fold_failed(&mut self, step: &mut Step<'_>, failed: &TurnFailed) -> Result<Folded, DialogueError> {
        self.head_mut(step, failed.turn)?;
        let item = Item { role: Role::Assistant, text: failed.message.clone() };
        let kind = ItemKind::Failure { code: failed.code.clone() };
        Ok(self.end_head(step, item, kind, Outcome::Failed(Arc::new(failed.clone()))))
    }

    fn end_head(&mut self, step: &mut Step<'_>, item: Item, kind: ItemKind, outcome: Outcome) -> Folded {
        let Some(open) = self.open.pop_front() else { return Folded::default() };
        let (turn, origin, accepted_at) = (open.request.turn, open.request.origin, open.accepted_at);
        let answer = Arc::new(Answer { turn, origin, accepted_at, ended_at: step.record.at, outcome });
        if !self.deleted {
            put_dedupe(step, &open, Some(&answer));
            self.put_answer(step, &open, item, kind);
        }
        self.begin_head(step);
        Folded { ended: Some(answer), adopted: None }
    }

    fn put_answer(&mut self, step: &mut Step<'_>, open: &OpenTurn, item: Item, kind: ItemKind) {
        let turn = open.request.turn;
        let Some(head) = &open.head else { return };
        let spoken = matches!(kind, ItemKind::Reply { .. }) && !item.text.is_empty();
        let replaced = self.last.take().filter(|_| open.request.regenerates.is_some());
        let (from, exchange) = match &replaced {
            // The new reply takes the old one's place; the mark of an earlier try goes too.
            Some(last) if spoken => (last.answer_item, head.exchange),
            // The old reply stays; the mark of this try takes the place of an earlier one's.
            Some(last) => (last.answer_item + 1, turn),
            None => (self.window.next(), head.exchange),
        };
        if from < self.window.next() {
            self.window.truncate(from);
            step.changes.push(ViewChange::TruncateItems { from });
        }
        let answer_item = self.put_item(step, Arc::new(item), kind, Some(turn), Some(exchange));
        self.last = match replaced {
            Some(last) if !spoken => Some(LastTurn { retried_as: Some(turn), ..last }),
            _ if open.request.history == History::Given => None,
            _ => Some(LastTurn { turn, retried_as: None, exchange, first_item: head.first_item, answer_item }),
        };
        self.trim();
    }
}

/// Writes what the turn's event id leads to, if it has one.
fn put_dedupe(step: &mut Step<'_>, open: &OpenTurn, answer: Option<&Arc<Answer>>) {
    if open.request.event_id.is_empty() {
        return;
    }
    let outcome = DedupeOutcome {
        turn: open.request.turn,
        body_hash: open.request.body_hash,
        expires_at: TimestampMs(open.accepted_at.0.saturating_add(DEDUPE_TTL_MS)),
        ended: answer.is_some(),
        answer: answer.filter(|_| open.request.origin != Origin::Channel).cloned(),
        user: open.user,
        key_id: step.record.key_id,
    };
    let event_id = open.request.event_id.as_str().into();
    step.changes.push(ViewChange::PutDedupe { event_id, outcome: Arc::new(outcome) });
}
