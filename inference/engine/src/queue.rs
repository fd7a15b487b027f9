//! Requests that wait for a lane, shared out between tenants by a virtual token counter.
//!
//! Each tenant has a counter of the tokens it was served; the waiting tenant with the smallest is next, and a tenant that was
//! away is lifted to the smallest of those that are not, so that absence saves nothing up (Sheng et al., "Fairness in Serving
//! Large Language Models", OSDI 2024). Within a tenant the order is that of arrival.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::{CancelHandle, EventSink, GenerateRequest, load::WaitingGuard};

/// What a generated token counts, where a computed prompt token counts 1: it takes a whole step of its lane.
const GENERATED_TOKEN_WEIGHT: u64 = 2;

/// Tenants whose counters are remembered. Beyond it, those with nothing waiting or running are forgotten.
const REMEMBERED_TENANTS: usize = 1024;

/// A request as it was submitted.
pub(crate) struct Job {
    pub(crate) request: GenerateRequest,
    pub(crate) sink: Box<dyn EventSink>,
    pub(crate) cancel: CancelHandle,
    pub(crate) submitted: Instant,
    pub(crate) _place: WaitingGuard,
}

#[derive(Default)]
pub(crate) struct FairQueue {
    tenants: HashMap<String, Tenant>,
    arrivals: u64,
}

#[derive(Default)]
struct Tenant {
    jobs: VecDeque<(u64, Job)>,
    running: usize,
    counter: u64,
}

impl Tenant {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.jobs.is_empty()
    }
}

impl FairQueue {
    pub(crate) fn push(&mut self, job: Job) {
        let least = self.tenants.values().filter(|tenant| tenant.is_active()).map(|tenant| tenant.counter).min();
        if self.tenants.len() >= REMEMBERED_TENANTS {
            self.tenants.retain(|_, tenant| tenant.is_active());
        }
        let tenant = self.tenants.entry(job.request.tenant.clone()).or_default();
        if !tenant.is_active() {
            tenant.counter = tenant.counter.max(least.unwrap_or(0));
        }
        tenant.jobs.push_back((self.arrivals, job));
        self.arrivals += 1;
    }

    /// The tokens that a tenant was served.
    #[cfg(test)]
    pub(crate) fn counter(&self, tenant: &str) -> u64 {
        self.tenants[tenant].counter
    }

    /// Requests that count as running.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.tenants.values().map(|tenant| tenant.running).sum()
    }

    /// The next request, if it fits; its tenant counts as running until [`ended`](Self::ended).
    pub(crate) fn pop_if(&mut self, fits: impl Fn(&GenerateRequest) -> bool) -> Option<Job> {
        let waiting = self.tenants.values_mut().filter(|tenant| !tenant.jobs.is_empty());
        let next = waiting.min_by_key(|tenant| (tenant.counter, tenant.jobs.front().map(|(arrival, _)| *arrival)))?;
        let (_, job) = next.jobs.pop_front_if(|(_, job)| fits(&job.request))?;
        next.running += 1;
        Some(job)
    }

    pub(crate) fn ended(&mut self, tenant: &str) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.running -= 1;
        }
    }

    pub(crate) fn charge(&mut self, tenant: &str, computed: usize, generated: usize) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.counter += computed as u64 + generated as u64 * GENERATED_TOKEN_WEIGHT;
        }
    }

    /// Takes out the jobs that `unwanted` picks.
    pub(crate) fn take(&mut self, unwanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut taken = Vec::new();
        for tenant in self.tenants.values_mut() {
            for _ in 0..tenant.jobs.len() {
                match tenant.jobs.pop_front() {
                    Some((_, job)) if unwanted(&job) => taken.push(job),
                    Some(kept) => tenant.jobs.push_back(kept),
                    None => break,
                }
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{GenerateEvent, PreparedPrompt, load::Load, metrics::ReplicaMetrics};

    fn job(load: &Arc<Load>, tenant: &str, affinity: u64) -> Job {
        let prompt =
            PreparedPrompt { tokens: vec![], token_count: 0, last_user_text: String::new(), dropped_messages: 0 };
        let request = GenerateRequest { affinity, ..GenerateRequest::greedy(tenant, prompt, 1) };
        Job {
            request,
            sink: Box::new(|_: GenerateEvent| true),
            cancel: CancelHandle::default(),
            submitted: Instant::now(),
            _place: load.wait(usize::MAX).expect("no bound"),
        }
    }

    fn load() -> Arc<Load> {
        Load::new(Arc::new(ReplicaMetrics::new("test")))
    }

    #[test]
    fn one_tenant_is_served_in_order() {
        let (mut queue, load) = (FairQueue::default(), load());
        (0..5).for_each(|n| queue.push(job(&load, "a", n)));
        assert_eq!(queue.take(|job| job.request.affinity == 2).len(), 1);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_if(|_| true)).map(|job| job.request.affinity).collect();
        assert_eq!(order, [0, 1, 3, 4]);
        assert_eq!(load.now().waiting, 0);
    }

    #[test]
    fn a_flood_leaves_the_light_tenant_its_share() {
        let (mut queue, load) = (FairQueue::default(), load());
        (0..100).for_each(|n| queue.push(job(&load, "flood", n)));
        // The flood has been served for a while when the light tenant arrives: neither debt nor credit.
        for _ in 0..10 {
            queue.pop_if(|_| true);
            queue.charge("flood", 100, 10);
            queue.ended("flood");
        }
        (0..10).for_each(|n| queue.push(job(&load, "light", n)));
        let mut served = HashMap::<String, u64>::new();
        for _ in 0..10 {
            let tenant = queue.pop_if(|_| true).expect("both wait").request.tenant;
            queue.charge(&tenant, 100, 10);
            queue.ended(&tenant);
            *served.entry(tenant).or_default() += 1;
        }
        assert_eq!((served["flood"], served["light"]), (5, 5));
    }

    #[test]
    fn tokens_count_and_not_requests() {
        let (mut queue, load) = (FairQueue::default(), load());
        (0..40).for_each(|n| queue.push(job(&load, if n % 2 == 0 { "long" } else { "short" }, n)));
        let mut tokens = HashMap::<String, usize>::new();
        for _ in 0..22 {
            let tenant = queue.pop_if(|_| true).expect("both wait").request.tenant;
            let computed = if tenant == "long" { 1000 } else { 100 };
            queue.charge(&tenant, computed, 0);
            queue.ended(&tenant);
            *tokens.entry(tenant).or_default() += computed;
        }
        assert!(tokens["long"].abs_diff(tokens["short"]) <= 1000, "{tokens:?}");
    }

    #[test]
    fn forgotten_tenants_bound_the_memory() {
        let (mut queue, load) = (FairQueue::default(), load());
        for n in 0..10_000 {
            queue.push(job(&load, &n.to_string(), n));
            let tenant = queue.pop_if(|_| true).expect("just pushed").request.tenant;
            queue.ended(&tenant);
        }
        assert!(queue.tenants.len() <= REMEMBERED_TENANTS);
    }
}
