//! The order in which requests leave the queue.

use std::sync::Arc;

use super::*;
use crate::{
    EngineOptions, GenerateEvent, Priority, admission::Admission, fake::request, load::Load, metrics::ReplicaMetrics,
};

const LANES: usize = 16;
const CONTEXT: usize = 100;

struct Harness {
    queue: FairQueue,
    load: Arc<Load>,
    admission: Arc<Admission>,
    now: Instant,
}

impl Harness {
    fn new() -> Self {
        let load = Load::new(Arc::new(ReplicaMetrics::new("test")));
        let options = EngineOptions { queue: 100_000, target_first_token: Duration::MAX, ..EngineOptions::default() };
        let admission = Admission::new(load.clone(), LANES, &options);
        Self { queue: FairQueue::new(LANES, CONTEXT), load, admission, now: Instant::now() }
    }

    fn push(&mut self, tenant: &str, affinity: u64) {
        self.push_with(tenant, affinity, Priority::Default);
    }

    fn push_with(&mut self, tenant: &str, affinity: u64, priority: Priority) {
        let request = GenerateRequest { tenant: tenant.into(), affinity, priority, ..request(vec![1], 1) };
        let place = self.admission.admit(&request).expect("no bound");
        let sink = Box::new(|_: GenerateEvent| true);
        self.queue.push(Job {
            request,
            sink: Unserved::new(sink),
            cancel: CancelHandle::default(),
            submitted: self.now,
            _place: place,
        });
    }

    fn pop(&mut self) -> Option<Job> {
        self.queue.pop_if(LANES, |_| true)
    }

    fn serve(&mut self, tokens: impl Fn(&str) -> usize) -> Option<String> {
        let tenant = self.pop()?.request.tenant;
        self.queue.charge(&tenant, tokens(&tenant), 0);
        self.queue.ended(&tenant);
        Some(tenant)
    }
}

#[test]
fn one_tenant_is_served_in_order() {
    let mut harness = Harness::new();
    (0..5).for_each(|n| harness.push("a", n));
    assert_eq!(harness.queue.take(|job| job.request.affinity == 2).len(), 1);
    let order: Vec<_> = std::iter::from_fn(|| harness.pop()).map(|job| job.request.affinity).collect();
    assert_eq!(order, [0, 1, 3, 4]);
    assert_eq!(harness.load.now().waiting, 0);
}

#[test]
fn priority_orders_a_tenants_own_requests_and_nobody_elses() {
    let mut harness = Harness::new();
    let priorities =
        [Priority::Low, Priority::Default, Priority::High, Priority::Low, Priority::Default, Priority::High];
    (0..).zip(priorities).for_each(|(n, priority)| harness.push_with("a", n, priority));
    (10..16).for_each(|n| harness.push_with("b", n, Priority::Low));
    let mut order = Vec::new();
    while let Some(job) = harness.pop() {
        harness.queue.charge(&job.request.tenant, 10, 0);
        order.push(job.request.affinity);
    }
    let of = |tenant: fn(&u64) -> bool| order.iter().copied().filter(tenant).collect::<Vec<_>>();
    assert_eq!((of(|n| *n < 10), of(|n| *n >= 10)), (vec![2, 5, 1, 4, 0, 3], (10..16).collect()));
    let turns: Vec<_> = order.chunks(2).map(|pair| pair.iter().filter(|n| **n >= 10).count()).collect();
    assert_eq!(turns, [1; 6], "the tenants take turns, whatever the priorities: {order:?}");
}

#[test]
fn a_flood_leaves_the_light_tenant_its_share() {
    let mut harness = Harness::new();
    (0..100).for_each(|n| harness.push("flood", n));
    // The flood has been served for a while when the light tenant arrives: neither debt nor credit.
    (0..10).for_each(|_| drop(harness.serve(|_| 120)));
    (0..10).for_each(|n| harness.push("light", n));
    let served: Vec<_> = (0..10).filter_map(|_| harness.serve(|_| 120)).collect();
    assert_eq!(served.iter().filter(|tenant| *tenant == "light").count(), 5);
}

#[test]
fn tokens_count_and_not_requests() {
    let mut harness = Harness::new();
    (0..40).for_each(|n| harness.push(if n % 2 == 0 { "long" } else { "short" }, n));
    let mut tokens = HashMap::<String, usize>::new();
    let cost = |tenant: &str| if tenant == "long" { 1000 } else { 100 };
    for _ in 0..22 {
        let tenant = harness.serve(cost).expect("both wait");
        *tokens.entry(tenant.clone()).or_default() += cost(&tenant);
    }
    assert!(tokens["long"].abs_diff(tokens["short"]) <= 1000, "{tokens:?}");
}

#[test]
fn a_tenant_with_its_share_leaves_lanes_to_others() {
    let mut harness = Harness::new();
    (0..40).for_each(|n| harness.push("flood", n));
    harness.push("light", 0);
    harness.queue.take(|job| job.request.tenant == "light");
    // The other tenant has nothing here, but was seen a moment ago.
    assert_eq!(harness.queue.take_stock(harness.now + Duration::from_secs(59)), 2);
    let taken = (0..LANES).rev().map_while(|left| harness.queue.pop_if(left + 1, |_| true)).count();
    assert_eq!(taken, 12);
    harness.push("light", 1);
    let light = harness.queue.pop_if(4, |_| true).expect("a lane is kept");
    assert_eq!(light.request.tenant, "light");
    assert!(harness.queue.pop_if(3, |_| true).is_none());
    let ranks = ["light", "flood"].map(|tenant| harness.queue.rank(tenant));
    assert!(ranks[0] < ranks[1] && ranks[0].is_owed() && !ranks[1].is_owed(), "its prompt goes first: {ranks:?}");
    // Once nobody else is expected back, the flood may have everything.
    harness.queue.ended("light");
    assert_eq!(harness.queue.take_stock(harness.now + Duration::from_secs(61)), 1);
    assert!(harness.queue.pop_if(1, |_| true).is_some());
}

#[test]
fn lanes_are_never_kept_for_nobody_but_the_absent() {
    for lanes in 1..20 {
        let mut harness = Harness { queue: FairQueue::new(lanes, CONTEXT), ..Harness::new() };
        harness.push("absent", 0);
        harness.queue.take(|_| true);
        harness.push("served", 1);
        harness.queue.charge("served", 10 * CONTEXT, 0);
        assert_eq!(harness.queue.take_stock(harness.now), 2);
        assert!(harness.queue.pop_if(lanes, |_| true).is_some(), "all of {lanes} lanes are idle, and somebody waits");
    }
}

#[test]
fn nobody_is_owed_lanes_who_was_served_much_more() {
    let mut harness = Harness::new();
    (0..40).for_each(|n| harness.push("writes", n));
    (0..40).for_each(|n| harness.push("reads", n));
    harness.queue.take_stock(harness.now);
    // Small prompts, and so all lanes but the kept ones.
    let taken = (0..LANES).rev().map_while(|left| {
        let tenant = harness.queue.pop_if(left + 1, |_| true)?.request.tenant;
        harness.queue.charge(&tenant, if tenant == "reads" { 90 } else { 1 }, 0);
        Some(tenant)
    });
    assert_eq!(taken.filter(|tenant| tenant == "reads").count(), 2);
    harness.queue.take_stock(harness.now);
    let ranks = |harness: &Harness| ["reads", "writes"].map(|tenant| harness.queue.rank(tenant));
    assert!(!ranks(&harness)[0].is_owed(), "180 tokens are more than 14 and a context");
    assert!(ranks(&harness)[1] < ranks(&harness)[0]);
    assert_eq!(
        harness.queue.pop_if(1, |_| true).map(|job| job.request.tenant).as_deref(),
        Some("writes"),
        "nothing is kept from it"
    );
}

#[test]
fn forgotten_tenants_bound_the_memory() {
    let mut harness = Harness::new();
    for n in 0..10_000 {
        harness.push(&n.to_string(), n);
        drop(harness.serve(|_| 1));
    }
    assert!(harness.queue.tenants.len() <= REMEMBERED_TENANTS);
}
