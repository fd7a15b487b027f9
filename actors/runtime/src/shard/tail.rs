use std::{collections::HashMap, mem, sync::Arc};

use parlance_actors_dialogue::ViewChange;
use parlance_cluster_protocol::{Position, SessionKey, SessionRecord};
use parlance_cluster_records::Change;

use super::projection::change;

/// A committed record and its place.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    pub(crate) position: Position,
    pub(crate) record: Arc<SessionRecord>,
}

/// Records by session, each session's in order.
pub(crate) type RecordsBySession = HashMap<Arc<SessionKey>, Vec<Committed>>;

/// What one projection writes.
#[derive(Debug, Default)]
pub(crate) struct Projection {
    pub(crate) records: RecordsBySession,
    /// Changes that do not follow from the records.
    pub(crate) views: Vec<Change>,
}

/// A projection of these records and nothing else.
pub(crate) fn projection_of(records: RecordsBySession) -> Arc<Projection> {
    Arc::new(Projection { records, views: Vec::new() })
}

/// The committed records of a shard that the record store may not have yet: what a session needs on top of its rows.
///
/// Bound: [`Limits::projection_lag`](crate::Limits::projection_lag) records; past it the shard refuses new turns.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// Committed since the last projection began.
    fresh: RecordsBySession,
    /// Being written to the store.
    projecting: Arc<Projection>,
    /// View changes for the next projection.
    views: Vec<Change>,
    fresh_count: usize,
    projecting_count: usize,
}

impl Tail {
    pub(crate) fn push(&mut self, session: &Arc<SessionKey>, committed: Committed) {
        self.fresh.entry(session.clone()).or_default().push(committed);
        self.fresh_count += 1;
    }

    pub(crate) fn add_views(&mut self, session: &SessionKey, position: Position, views: Vec<ViewChange>) {
        self.views.extend(views.into_iter().map(|view| change(session, position, view)));
    }

    /// The store has everything before `next`, which somebody else has written. Not while a projection of our own runs.
    pub(crate) fn forget_before(&mut self, next: Position) {
        debug_assert!(!self.is_projecting(), "only followers hear of what others project");
        self.fresh.retain(|_, records| {
            records.retain(|committed| committed.position >= next);
            !records.is_empty()
        });
        self.fresh_count = self.fresh.values().map(Vec::len).sum();
    }

    /// How many records the store may not have yet.
    pub(crate) fn lag(&self) -> usize {
        self.fresh_count + self.projecting_count
    }

    /// Whether records wait for a projection.
    pub(crate) fn has_fresh(&self) -> bool {
        self.fresh_count > 0
    }

    pub(crate) fn is_projecting(&self) -> bool {
        self.projecting_count > 0
    }

    /// Whether the store may lack records of this session.
    pub(crate) fn holds(&self, session: &SessionKey) -> bool {
        self.fresh.contains_key(session) || self.projecting.records.contains_key(session)
    }

    /// What the store may lack of one session, in order.
    pub(crate) fn of(&self, session: &SessionKey) -> Vec<Committed> {
        [self.projecting.records.get(session), self.fresh.get(session)]
            .into_iter()
            .flatten()
            .flatten()
            .cloned()
            .collect()
    }

    /// Begins a projection of everything that waits.
    pub(crate) fn start_projection(&mut self) {
        debug_assert!(!self.is_projecting(), "one projection at a time");
        self.projecting =
            Arc::new(Projection { records: mem::take(&mut self.fresh), views: mem::take(&mut self.views) });
        self.projecting_count = mem::take(&mut self.fresh_count);
    }

    /// What is being projected.
    pub(crate) fn projecting(&self) -> Arc<Projection> {
        self.projecting.clone()
    }

    /// The store has them all.
    pub(crate) fn finish_projection(&mut self) {
        self.projecting = Arc::default();
        self.projecting_count = 0;
    }
}
