use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::Refusal;

/// Counts what is open on the node and refuses past the bounds, before anything is queued.
#[derive(Debug, Clone)]
pub(crate) struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Mutex<Counts>,
    draining: AtomicBool,
    what: &'static str,
    node_limit: usize,
    tenant_limit: usize,
}

/// Invariant: `open` is the sum of `tenants`, and no tenant is listed with 0.
#[derive(Debug, Default)]
struct Counts {
    open: usize,
    tenants: HashMap<String, usize>,
}

/// One admitted turn or generation; its place is free when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<Shared>,
    tenant: String,
}

impl Admission {
    /// `what` is counted, for error messages.
    pub(crate) fn new(what: &'static str, node_limit: usize, tenant_limit: usize) -> Self {
        Self(Arc::new(Shared {
            counts: Mutex::default(),
            draining: AtomicBool::new(false),
            what,
            node_limit,
            tenant_limit,
        }))
    }

    /// A place for one more of the tenant's turns.
    ///
    /// # Errors
    ///
    /// [`Refusal::Draining`], [`Refusal::QueueFull`] at the tenant's bound, [`Refusal::Overloaded`] at the node's.
    pub(crate) fn admit(&self, tenant: &str) -> Result<Permit, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        let mut counts = self.0.counts();
        if counts.open >= self.0.node_limit {
            return Err(Refusal::Overloaded { what: self.0.what.into(), retry_after: Duration::from_secs(1) });
        }
        let open = counts.tenants.get(tenant).copied().unwrap_or(0);
        if open >= self.0.tenant_limit {
            return Err(Refusal::QueueFull { open });
        }
        counts.open += 1;
        counts.tenants.insert(tenant.to_owned(), open + 1);
        Ok(Permit { shared: self.0.clone(), tenant: tenant.to_owned() })
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.0.counts().open
    }

    /// From now on everything is refused.
    pub(crate) fn start_draining(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        counts.open -= 1;
        if let Some(open) = counts.tenants.get_mut(&self.tenant) {
            *open -= 1;
            if *open == 0 {
                counts.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_per_tenant_and_per_node_and_places_come_back() {
        let admission = Admission::new("open turns", 3, 2);
        let first = admission.admit("a").expect("a place is free");
        let _second = admission.admit("a").expect("a place is free");
        assert!(matches!(admission.admit("a"), Err(Refusal::QueueFull { open: 2 })));
        let _third = admission.admit("b").expect("a place is free");
        assert!(matches!(admission.admit("b"), Err(Refusal::Overloaded { .. })));
        drop(first);
        assert_eq!(admission.open(), 2);
        drop(admission.admit("a").expect("the place came back"));
        admission.start_draining();
        assert!(matches!(admission.admit("a"), Err(Refusal::Draining)));
    }
}
