use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parlance_cluster_protocol::TimestampMs;

use crate::{DedupeOutcome, DialogueError, Limits};

/// The remembered event ids and what they led to.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Dedupe {
    outcomes: HashMap<Arc<str>, Arc<DedupeOutcome>>,
    /// Invariant: the expiry of every outcome, and nothing else.
    expiries: BTreeSet<(TimestampMs, Arc<str>)>,
    /// Invariant: the sum of the outcomes' text bytes.
    bytes: usize,
}

impl Dedupe {
    pub(crate) fn restore(rows: Vec<(String, Bytes)>) -> Result<Self, DialogueError> {
        let mut dedupe = Self::default();
        for (event_id, row) in rows {
            dedupe.put(event_id.into(), Arc::new(DedupeOutcome::decode(row)?));
        }
        Ok(dedupe)
    }

    pub(crate) fn put(&mut self, event_id: Arc<str>, outcome: Arc<DedupeOutcome>) {
        self.remove(&event_id);
        self.bytes += outcome.text_bytes();
        self.expiries.insert((outcome.expires_at, event_id.clone()));
        self.outcomes.insert(event_id, outcome);
    }

    fn remove(&mut self, event_id: &Arc<str>) {
        if let Some(old) = self.outcomes.remove(event_id) {
            self.bytes -= old.text_bytes();
            self.expiries.remove(&(old.expires_at, event_id.clone()));
        }
    }

    /// What a live event id led to.
    pub(crate) fn get(&self, event_id: &str, now: TimestampMs) -> Option<&Arc<DedupeOutcome>> {
        self.outcomes.get(event_id).filter(|outcome| outcome.expires_at > now)
    }

    /// Forgets the ids whose time is up by the recorded time `at`.
    pub(crate) fn expire(&mut self, at: TimestampMs, mut forgotten: impl FnMut(Arc<str>)) {
        while let Some((_, event_id)) = self.expiries.first().filter(|(expires_at, _)| *expires_at <= at).cloned() {
            self.remove(&event_id);
            forgotten(event_id);
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
