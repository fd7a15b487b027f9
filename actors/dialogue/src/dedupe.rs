use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parlance_cluster_protocol::TimestampMs;

use crate::{DedupeOutcome, DialogueError, Limits};

/// The remembered event ids and what they led to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dedupe {
    outcomes: HashMap<Arc<str>, Arc<DedupeOutcome>>,
    /// In order of expiry, which is the order of acceptance. May hold an id twice when it came again after its time.
    expiries: VecDeque<(TimestampMs, Arc<str>)>,
    bytes: usize,
}

impl Dedupe {
    pub(crate) fn restore(rows: Vec<(String, Bytes)>) -> Result<Self, DialogueError> {
        let mut dedupe = Self::default();
        for (event_id, row) in rows {
            dedupe.put(event_id.into(), Arc::new(DedupeOutcome::decode(row)?));
        }
        dedupe.expiries.make_contiguous().sort();
        Ok(dedupe)
    }

    pub(crate) fn put(&mut self, event_id: Arc<str>, outcome: Arc<DedupeOutcome>) {
        let expires_at = outcome.expires_at;
        self.bytes += outcome.text_bytes();
        let old = self.outcomes.insert(event_id.clone(), outcome);
        self.bytes -= old.as_ref().map_or(0, |old| old.text_bytes());
        if old.is_none_or(|old| old.expires_at != expires_at) {
            self.expiries.push_back((expires_at, event_id));
        }
    }

    /// What a live event id led to.
    pub(crate) fn get(&self, event_id: &str, now: TimestampMs) -> Option<&Arc<DedupeOutcome>> {
        self.outcomes.get(event_id).filter(|outcome| outcome.expires_at > now)
    }

    /// Forgets the ids whose time is up by the recorded time `at`.
    pub(crate) fn expire(&mut self, at: TimestampMs, mut forgotten: impl FnMut(Arc<str>)) {
        while self.expiries.front().is_some_and(|(expires_at, _)| *expires_at <= at) {
            let Some((expires_at, event_id)) = self.expiries.pop_front() else { break };
            let due = self.outcomes.get(&event_id).is_some_and(|outcome| outcome.expires_at == expires_at);
            if let Some(outcome) = due.then(|| self.outcomes.remove(&event_id)).flatten() {
                self.bytes -= outcome.text_bytes();
                forgotten(event_id);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether another id would be one too many, ids whose time is up not counted.
    pub(crate) fn is_full(&self, limits: &Limits, now: TimestampMs) -> bool {
        if self.outcomes.len() < limits.dedupe && self.bytes < limits.dedupe_bytes {
            return false;
        }
        let live = self.outcomes.values().filter(|outcome| outcome.expires_at > now);
        let (count, bytes) = live.fold((0, 0), |(count, bytes), outcome| (count + 1, bytes + outcome.text_bytes()));
        count >= limits.dedupe || bytes >= limits.dedupe_bytes
    }
}
