//! Requests that wait for a lane, shared out between tenants by a virtual token counter.
//!
//! Each tenant has a counter of the tokens it was served; the waiting tenant with the smallest is next, and a tenant that was
//! away is lifted to the smallest of those that are not, so that absence saves nothing up (Sheng et al., "Fairness in Serving
//! Large Language Models", OSDI 2024). Within a tenant the order is that of priority, then of arrival.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{CancelHandle, EngineError, EventSink, GenerateEvent, GenerateRequest, admission::Ticket, reply, shares};

/// What a generated token counts, where a computed prompt token counts 1: it takes a whole step of its lane.
const GENERATED_TOKEN_WEIGHT: u64 = 2;

/// Tenants whose counters are remembered. Beyond it, those with nothing waiting or running are forgotten.
const REMEMBERED_TENANTS: usize = 1024;

/// How long a tenant that has nothing in the engine is still expected back, so that lanes are kept for it.
const EXPECTED_BACK: Duration = Duration::from_secs(60);

/// A request as it was submitted.
pub(crate) struct Job {
    pub(crate) request: GenerateRequest,
    pub(crate) sink: Unserved,
    pub(crate) cancel: CancelHandle,
    pub(crate) submitted: Instant,
    pub(crate) _place: Ticket,
}

/// The sink of a request that nothing was done for. Dropped with it, it is told that the engine has stopped: so it is however the
/// engine's thread ends.
pub(crate) struct Unserved(Box<dyn EventSink>);

impl Unserved {
    pub(crate) fn new(sink: Box<dyn EventSink>) -> Self {
        Self(sink)
    }

    /// The sink, for whoever serves the request, or tells its caller otherwise.
    pub(crate) fn take(mut self) -> Box<dyn EventSink> {
        std::mem::replace(&mut self.0, Box::new(|_: GenerateEvent| false))
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        reply::tell(&mut *self.0, GenerateEvent::Failed(EngineError::Stopped));
    }
}

pub(crate) struct FairQueue {
    lanes: usize,
    /// How many tokens a tenant may be ahead of another and still go before it.
    credit: u64,
    stock: Stock,
    tenants: HashMap<String, Tenant>,
    arrivals: u64,
}

#[derive(Default)]
struct Tenant {
    /// By falling priority, then by arrival.
    jobs: VecDeque<(u64, Job)>,
    running: usize,
    counter: u64,
    /// When it had something here last.
    seen: Option<Instant>,
}

/// Who is there in one step.
#[derive(Debug, Clone, Copy, Default)]
struct Stock {
    now: Option<Instant>,
    /// Tenants that have something here or are expected back.
    contenders: usize,
    /// The most lanes of a tenant that is owed some.
    share: usize,
    /// The most tokens.
    most: u64,
}

impl Stock {
    fn expects(&self, tenant: &Tenant) -> bool {
        let lately = |seen: Instant| self.now.is_some_and(|now| now.saturating_duration_since(seen) < EXPECTED_BACK);
        tenant.is_active() || tenant.seen.is_some_and(lately)
    }

    /// Whether the tenant goes before those with their share: it has fewer lanes than that, and not much more tokens than others.
    fn owes(&self, tenant: &Tenant) -> bool {
        self.contenders > 1 && tenant.running < self.share && tenant.counter <= self.most && self.expects(tenant)
    }
}

/// Whose prompt is computed first: those who are owed lanes, then those who were served less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    is_owed_nothing: bool,
    counter: u64,
}

impl Rank {
    /// Whether the tenant has less than its share while others have more.
    pub(crate) fn is_owed(self) -> bool {
        !self.is_owed_nothing
    }
}

impl Tenant {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.jobs.is_empty()
    }
}

impl FairQueue {
    /// For so many lanes of so many tokens.
    pub(crate) fn new(lanes: usize, context_tokens: usize) -> Self {
        let (credit, stock) = (context_tokens as u64, Stock::default());
        Self { lanes, credit, stock, tenants: HashMap::new(), arrivals: 0 }
    }

    pub(crate) fn push(&mut self, job: Job) {
        let least = self.least_counter();
        if self.tenants.len() >= REMEMBERED_TENANTS {
            self.tenants.retain(|_, tenant| tenant.is_active());
        }
        let tenant = self.tenants.entry(job.request.tenant.clone()).or_default();
        if !tenant.is_active() {
            tenant.counter = tenant.counter.max(least.unwrap_or(0));
        }
        tenant.seen = tenant.seen.max(Some(job.submitted));
        let place = tenant.jobs.partition_point(|(_, waiting)| waiting.request.priority >= job.request.priority);
        tenant.jobs.insert(place, (self.arrivals, job));
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

    /// Looks who is there, for the decisions of one step. How many tenants that are.
    pub(crate) fn take_stock(&mut self, now: Instant) -> usize {
        let stock = Stock { now: Some(now), ..Stock::default() };
        let contenders = self.tenants.values().filter(|tenant| stock.expects(tenant)).count();
        let most = self.least_counter().unwrap_or(0) + self.credit;
        self.stock = Stock { contenders, share: shares::share(self.lanes, contenders), most, ..stock };
        contenders
    }

    fn least_counter(&self) -> Option<u64> {
        self.tenants.values().filter(|tenant| tenant.is_active()).map(|tenant| tenant.counter).min()
    }

    /// The next request for one of `idle` lanes, if it fits; its tenant counts as running until [`ended`](Self::ended). Nothing where
    /// those who wait must leave the idle lanes to others.
    pub(crate) fn pop_if(&mut self, idle: usize, fits: impl Fn(&GenerateRequest) -> bool) -> Option<Job> {
        let stock = self.stock;
        let owes_any = self.tenants.values().any(|tenant| stock.owes(tenant));
        let kept = if owes_any { shares::kept(self.lanes) } else { 0 };
        let may_run = |tenant: &Tenant| idle > kept || stock.owes(tenant);
        let waiting = self.tenants.values_mut().filter(|tenant| !tenant.jobs.is_empty() && may_run(tenant));
        let next = waiting.min_by_key(|tenant| (tenant.counter, tenant.jobs.front().map(|(arrival, _)| *arrival)))?;
        let (_, job) = next.jobs.pop_front_if(|(_, job)| fits(&job.request))?;
        next.running += 1;
        Some(job)
    }

    /// Where a tenant stands among those whose prompts wait for their next chunk.
    pub(crate) fn rank(&self, tenant: &str) -> Rank {
        let found = self.tenants.get(tenant);
        Rank {
            is_owed_nothing: !found.is_some_and(|tenant| self.stock.owes(tenant)),
            counter: found.map_or(0, |tenant| tenant.counter),
        }
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
mod tests;
