//! Where the nodes are at the moment.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

/// Names of nodes with their base URLs. A dead node stays, as in a client's list of servers, until it is started elsewhere.
#[derive(Debug, Default)]
pub struct Targets {
    nodes: RwLock<BTreeMap<String, String>>,
}

impl Targets {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// One node at this URL, `http://HOST:PORT`.
    pub fn one(url: impl Into<String>) -> Self {
        let targets = Self::new();
        targets.set("node", url);
        targets
    }

    /// A node is at this URL, `http://HOST:PORT`, from now on.
    pub fn set(&self, node: &str, url: impl Into<String>) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.to_owned(), url.into());
    }

    /// A node is not asked any more.
    pub fn remove(&self, node: &str) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// The URL of the node with this number, counted round and round; none where there are no nodes.
    pub fn url(&self, number: usize) -> Option<String> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let index = number.checked_rem(nodes.len())?;
        nodes.values().nth(index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_round_and_keep_their_places_when_they_move() {
        let targets = Targets::new();
        assert_eq!(targets.url(3), None);
        targets.set("b", "http://2");
        targets.set("a", "http://1");
        assert_eq!([0, 1, 2].map(|n| targets.url(n).expect("a node")), ["http://1", "http://2", "http://1"]);
        targets.set("a", "http://3");
        assert_eq!(targets.url(0).as_deref(), Some("http://3"));
        targets.remove("a");
        assert_eq!(targets.url(1).as_deref(), Some("http://2"));
    }
}
