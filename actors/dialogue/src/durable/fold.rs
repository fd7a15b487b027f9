//! One record folded in. Checks come first, so that an error leaves the state unchanged.

use std::sync::Arc;

use parlance_cluster_protocol::{
    Item, KeyBound, Position, Progress, SessionEvent, SessionOpened, SessionRecord, SessionUpdated, TurnId,
};

use super::{Binding, Durable, Folded};
use crate::{DialogueError, HistoryItem, ItemKind, ViewChange, window::Window};

/// The record that is being folded in, and where its view changes go.
pub(super) struct Step<'a> {
    pub(super) position: Position,
    pub(super) record: &'a SessionRecord,
    pub(super) changes: &'a mut Vec<ViewChange>,
}

impl Step<'_> {
    pub(super) fn inconsistent(&self, turn: TurnId, reason: &'static str) -> DialogueError {
        DialogueError::Inconsistent { position: self.position, turn, reason }
    }

    pub(super) fn out_of_place(&self, reason: &'static str) -> DialogueError {
        DialogueError::OutOfPlace { position: self.position, reason }
    }
}

impl Durable {
    /// `None`: the record was folded in before.
    pub(crate) fn fold(
        &mut self,
        position: Position,
        record: &SessionRecord,
        changes: &mut Vec<ViewChange>,
    ) -> Result<Option<Folded>, DialogueError> {
        if record.session != self.session {
            let (expected, found) = (Box::new(self.session.clone()), Box::new(record.session.clone()));
            return Err(DialogueError::WrongSession { expected, found });
        }
        if self.position.is_some_and(|last| position <= last) {
            return Ok(None);
        }
        let folded = self.fold_event(&mut Step { position, record, changes })?;
        match folded.adopted {
            // It tells nothing new about the session, and brings its times along.
            Some(_) => self.position = Some(position),
            None => self.note(position, record),
        }
        Ok(Some(folded))
    }

    fn fold_event(&mut self, step: &mut Step<'_>) -> Result<Folded, DialogueError> {
        match &step.record.event {
            SessionEvent::Opened(opened) => self.fold_opened(step, opened),
            SessionEvent::Updated(updated) => self.fold_updated(updated),
            SessionEvent::ItemsAdded(added) => self.add_items(step, &added.items),
            SessionEvent::KeyBound(bound) => self.fold_key_bound(bound),
            SessionEvent::TurnAccepted(accepted) => self.fold_accepted(step, accepted)?,
            SessionEvent::AttemptStarted(started) => self.head_mut(step, started.turn)?.attempt = started.attempt,
            SessionEvent::Progress(progress) => self.fold_progress(step, progress)?,
            SessionEvent::Replied(replied) => return self.fold_replied(step, replied),
            SessionEvent::TurnFailed(failed) => return self.fold_failed(step, failed),
            SessionEvent::Deleted => self.fold_deleted(step),
            SessionEvent::Adopted(part) => {
                let adopted = Some(self.fold_adopted(step, part)?);
                return Ok(Folded { adopted, ..Folded::default() });
            }
        }
        Ok(Folded::default())
    }

    fn note(&mut self, position: Position, record: &SessionRecord) {
        self.position = Some(position);
        self.at = self.at.max(record.at);
        self.key_id = record.key_id;
        if self.created_at.is_none() {
            self.created_at = Some(record.at);
            self.user = record.user;
        }
    }

    fn fold_opened(&mut self, step: &mut Step<'_>, opened: &SessionOpened) {
        self.metadata = opened.metadata.clone();
        self.set_system_prompt(opened.system_prompt.as_deref());
        self.add_items(step, &opened.items);
    }

    fn fold_updated(&mut self, updated: &SessionUpdated) {
        if let Some(metadata) = &updated.metadata {
            self.metadata = metadata.clone();
        }
        if updated.system_prompt.is_some() {
            self.set_system_prompt(updated.system_prompt.as_deref());
        }
    }

    /// An empty prompt is none: the model's default is used again.
    fn set_system_prompt(&mut self, prompt: Option<&str>) {
        self.system_prompt = prompt.filter(|text| !text.is_empty()).map(Arc::from);
    }

    fn add_items(&mut self, step: &mut Step<'_>, items: &[Item]) {
        for item in items {
            self.put_item(step, Arc::new(item.clone()), ItemKind::Added, None, None);
        }
        if !items.is_empty() {
            self.last = None;
        }
        self.trim();
    }

    fn fold_key_bound(&mut self, bound: &KeyBound) {
        self.binding = Some(Binding {
            body_hash: bound.body_hash,
            target: bound.target.clone(),
            turn: bound.turn,
            expires_at: bound.expires_at,
        });
    }

    fn fold_progress(&mut self, step: &Step<'_>, progress: &Progress) -> Result<(), DialogueError> {
        let turn = self.head_mut(step, progress.turn)?;
        let from = progress.from as usize;
        if from > turn.tokens.len() {
            return Err(step.inconsistent(progress.turn, "its tokens leave a gap"));
        }
        turn.tokens.truncate(from);
        turn.tokens.extend_from_slice(&progress.tokens);
        turn.model = Some(progress.model.clone());
        Ok(())
    }

    /// Open turns stay open: each still gets its final record, behind this one.
    fn fold_deleted(&mut self, step: &mut Step<'_>) {
        self.deleted = true;
        self.metadata.clear();
        self.system_prompt = None;
        self.last = None;
        self.window = Window::new(self.window.next(), Default::default());
        step.changes.push(ViewChange::Erase);
    }

    /// Appends a row to the transcript. The caller trims the window when its last row is there.
    pub(super) fn put_item(
        &mut self,
        step: &mut Step<'_>,
        item: Arc<Item>,
        kind: ItemKind,
        turn: Option<TurnId>,
        exchange: Option<TurnId>,
    ) -> u64 {
        let (created_at, user, key_id) = (step.record.at, step.record.user, step.record.key_id);
        let item = HistoryItem { item, kind, turn, exchange, created_at, user, key_id };
        let index = self.window.push(item.prompt_bytes());
        step.changes.push(ViewChange::PutItem { index, item: Arc::new(item) });
        index
    }

    /// Keeps the window within its bounds, and the current exchange in it.
    pub(super) fn trim(&mut self) {
        let head = self.open.front().and_then(|turn| turn.head.as_ref()).map(|head| head.first_item);
        let keep_from = head.or(self.last.as_ref().map(|last| last.first_item)).unwrap_or(u64::MAX);
        self.window.trim(&self.limits, keep_from);
    }
}
