use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::Bytes;
use parlance_cluster_protocol::{History as HistoryMode, Item, Role, TurnId};

use crate::{
    DialogueError, HistoryItem, ItemKind,
    durable::{HeadStart, OpenTurn},
};

/// The texts of the window, in memory.
///
/// While records are replayed over rows that are newer than the state, a row may be missing; the replay brings it back.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct History {
    from: u64,
    items: VecDeque<Option<Arc<HistoryItem>>>,
}

impl History {
    /// Reads the rows of the window; others are left out.
    pub(crate) fn restore(window: Range<u64>, rows: Vec<(u64, Bytes)>) -> Result<Self, DialogueError> {
        let mut history = Self::blank(window.clone());
        for (index, row) in rows {
            if window.contains(&index) {
                history.fill(index, Arc::new(HistoryItem::decode(&row)?));
            }
        }
        Ok(history)
    }

    /// A history none of whose items is there yet.
    pub(crate) fn blank(window: Range<u64>) -> Self {
        Self { from: window.start, items: VecDeque::from(vec![None; (window.end - window.start) as usize]) }
    }

    /// An empty history whose next item is `next`.
    pub(crate) fn starting_at(next: u64) -> Self {
        Self { from: next, items: VecDeque::new() }
    }

    pub(crate) fn put(&mut self, index: u64, item: Arc<HistoryItem>) {
        debug_assert_eq!(index, self.from + self.items.len() as u64, "items are appended");
        self.items.push_back(kept(item));
    }

    /// Puts an item into its place, if the window has one for it.
    pub(crate) fn fill(&mut self, index: u64, item: Arc<HistoryItem>) {
        let slot = index.checked_sub(self.from).and_then(|at| self.items.get_mut(at as usize));
        if let Some(slot) = slot {
            *slot = kept(item);
        }
    }

    pub(crate) fn truncate(&mut self, next: u64) {
        self.items.truncate(next.saturating_sub(self.from) as usize);
    }

    /// Forgets what has left the window.
    pub(crate) fn fit(&mut self, window: Range<u64>) {
        while self.from < window.start {
            self.items.pop_front();
            self.from += 1;
        }
        debug_assert_eq!(self.from + self.items.len() as u64, window.end, "the history follows the window");
    }

    /// The prompt of the turn that is being answered, oldest message first.
    pub(crate) fn prompt(&self, open: &OpenTurn, head: &HeadStart) -> Vec<Arc<Item>> {
        if open.request.history == HistoryMode::Given {
            let instructions = open.request.instructions.as_deref().map(system_message);
            return instructions.into_iter().chain(open.input.iter().cloned()).collect();
        }
        let system = head.system_prompt.as_deref().map(system_message);
        let mut messages = Vec::with_capacity(self.items.len() + open.input.len() + 1);
        messages.extend(open.input.iter().rev().cloned());
        self.collect_backwards(open.request.turn, head.exchange, &mut messages);
        messages.extend(system);
        messages.reverse();
        messages
    }

    /// Adds earlier exchanges, newest message first. An exchange that ended without text is left out whole; of the exchange
    /// that is being answered again, only its answer is.
    fn collect_backwards(&self, turn: TurnId, exchange: TurnId, messages: &mut Vec<Arc<Item>>) {
        let mut silent = None;
        for row in self.items.iter().rev().flatten() {
            let answered_again = row.exchange == Some(exchange);
            match &row.kind {
                ItemKind::Reply { .. } | ItemKind::Failure { .. } if answered_again => {}
                ItemKind::Failure { .. } => silent = row.exchange,
                ItemKind::Reply { .. } if row.item.text.is_empty() => silent = row.exchange,
                ItemKind::Input { .. } if row.turn == Some(turn) || row.exchange == silent => {}
                _ => messages.push(row.item.clone()),
            }
        }
    }
}

/// Items that are part of no prompt need no memory, except for the marks of exchanges without text.
fn kept(item: Arc<HistoryItem>) -> Option<Arc<HistoryItem>> {
    let given = matches!(item.kind, ItemKind::Input { given: true } | ItemKind::Reply { given: true, .. });
    (!given).then_some(item)
}

fn system_message(text: &str) -> Arc<Item> {
    Arc::new(Item { role: Role::System, text: text.to_owned() })
}
