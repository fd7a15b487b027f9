//! The shard and its events: their publisher, and what the log keeps for it.

use parlance_cluster_log::ownership::LogPoint;

use super::{ShardState, publisher};
use crate::metrics;

impl ShardState {
    /// Publishes what happens from here on, and what happened since the last owner's cursor.
    pub(super) fn start_publishing(&mut self) {
        if let (Some(options), None) = (&self.services.events, &self.publishing) {
            let committed = self.ownership.point().next;
            let publishing =
                publisher::start(self.services.clone(), options.clone(), self.shard, self.myself.clone(), committed);
            self.publishing = Some(publishing);
        }
    }

    /// More may be committed.
    pub(super) fn tell_publisher(&mut self) {
        let committed = self.ownership.point().next;
        if let Some(publishing) = &mut self.publishing {
            publishing.on_committed(committed);
        }
    }

    pub(super) fn on_events_published(&mut self, point: LogPoint, events: usize) {
        metrics::events_published(events);
        if let Some(publishing) = &mut self.publishing {
            publishing.on_published(point);
        }
    }
}
