//! The rows of one session, as a record store would hold them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parlance_cluster_protocol::{SessionKey, TurnId};

use crate::{Dialogue, Durable, HistoryItem, Limits, ViewChange};

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Store {
    pub(super) state: Option<Bytes>,
    pub(super) items: BTreeMap<u64, Bytes>,
    pub(super) dedupe: BTreeMap<String, Bytes>,
    pub(super) turns: BTreeSet<TurnId>,
}

impl Store {
    pub(super) fn write(&mut self, changes: Vec<ViewChange>, state: Bytes) {
        for change in changes {
            self.change(change);
        }
        self.state = Some(state);
    }

    pub(super) fn change(&mut self, change: ViewChange) {
        match change {
            ViewChange::PutItem { index, item } => {
                self.items.insert(index, item.encode());
            }
            ViewChange::PutTurn { turn } => {
                self.turns.insert(turn);
            }
            ViewChange::PutDedupe { event_id, outcome } => {
                self.dedupe.insert(event_id.to_string(), outcome.encode());
            }
            ViewChange::ForgetDedupe { event_id } => {
                self.dedupe.remove(event_id.as_ref());
            }
            ViewChange::TruncateItems { from } => {
                self.items.split_off(&from);
            }
            ViewChange::Erase => {
                self.items.clear();
                self.dedupe.clear();
                self.turns.clear();
            }
        }
    }

    /// The state of this store, and the other rows of one that may be newer.
    pub(super) fn restore(&self, rows: &Self, session: SessionKey, limits: Limits) -> Dialogue {
        let durable = match &self.state {
            Some(state) => Durable::decode(session, limits, state).expect("the state was written by this build"),
            None => Durable::new(session, limits),
        };
        let wanted = rows.items.range(durable.history_rows()).map(|(index, row)| (*index, row.clone())).collect();
        let dedupe = rows.dedupe.iter().map(|(event_id, row)| (event_id.clone(), row.clone())).collect();
        Dialogue::restore(durable, wanted, dedupe).expect("the rows were written by this build")
    }

    pub(super) fn transcript(&self) -> Vec<HistoryItem> {
        self.items.values().map(|row| HistoryItem::decode(row).expect("the row was written by this build")).collect()
    }
}
