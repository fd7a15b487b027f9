//! Whether what the node depends on serves: asked again and again, for the operator, the metrics, and those who do without meanwhile.
//!
//! The adapters say in the log when a component goes and comes back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parlance_cluster_protocol::Dependency;

use crate::{metrics, node::Services};

/// How often a component is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A port's question.
type Ask = for<'a> fn(&'a Services) -> BoxFuture<'a, Option<Dependency>>;

/// What was seen last of the components behind the ports.
#[derive(Debug, Default)]
pub(crate) struct Dependencies {
    /// Those that there are, in the order in which they were first seen.
    seen: Mutex<Vec<Dependency>>,
    records_down: AtomicBool,
}

impl Dependencies {
    /// All that there are, as they were seen last.
    pub(crate) fn list(&self) -> Vec<Dependency> {
        let mut list = self.seen().clone();
        list.sort_unstable_by_key(|dependency| dependency.name);
        list
    }

    /// Whether the record store does not serve.
    pub(crate) fn are_records_down(&self) -> bool {
        self.records_down.load(Ordering::Relaxed)
    }

    fn saw(&self, dependency: Dependency) {
        metrics::dependency(dependency.name, dependency.is_up());
        let mut seen = self.seen();
        match seen.iter_mut().find(|known| known.name == dependency.name) {
            Some(known) => *known = dependency,
            None => seen.push(dependency),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Dependency>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks every component, each by itself, until the node is gone. A port without one is asked once.
pub(crate) fn watch(services: &Arc<Services>) {
    let records: Ask = |services| {
        Box::pin(async move {
            let dependency = services.records.dependency().await;
            let is_down = dependency.as_ref().is_some_and(|dependency| !dependency.is_up());
            services.dependencies.records_down.store(is_down, Ordering::Relaxed);
            dependency
        })
    };
    let asks: [Ask; 3] = [|services| services.log.dependency(), records, |services| services.limiter.dependency()];
    for ask in asks {
        let services = Arc::downgrade(services);
        tokio::spawn(async move {
            while let Some(services) = services.upgrade() {
                let Some(dependency) = ask(&services).await else { return };
                services.dependencies.saw(dependency);
                drop(services);
                tokio::time::sleep(ASK_EVERY).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_listed_once_as_it_was_seen_last() {
        let (dependencies, gone) = (Dependencies::default(), Some("gone".to_owned()));
        dependencies.saw(Dependency { name: "scylla", trouble: None });
        dependencies.saw(Dependency { name: "kafka", trouble: None });
        dependencies.saw(Dependency { name: "scylla", trouble: gone.clone() });
        let (kafka, scylla) =
            (Dependency { name: "kafka", trouble: None }, Dependency { name: "scylla", trouble: gone });
        assert_eq!(dependencies.list(), [kafka, scylla]);
    }
}
