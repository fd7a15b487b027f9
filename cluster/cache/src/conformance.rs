//! What every cache and limiter must do, as tests that panic. Each adapter runs [`cache`] and [`limiter`] on itself.
//!
//! Time passes by tokio's clock: an adapter in this process runs on a paused one, others wait in earnest.

use std::{num::NonZeroU32, time::Duration};

use parlance_cluster_protocol::Position;
use tokio::time::sleep;

use crate::{Cache, Cached, Decision, Limit, Limiter};

const LONG: Duration = Duration::from_secs(600);
const TTL: Duration = Duration::from_millis(200);

fn at(position: u64, value: &'static str) -> Cached {
    Cached { value: value.into(), position: Position(position) }
}

/// Runs every case on an empty cache that is large enough to hold some dozen small values.
///
/// # Panics
///
/// If the cache fails a case.
pub async fn cache(cache: &dyn Cache) {
    values_are_scoped_by_tenant_and_key(cache).await;
    values_are_forgotten_on_time(cache).await;
    positions_bound_what_is_read_and_kept(cache).await;
    odd_keys_and_values_are_kept(cache).await;
}

async fn values_are_scoped_by_tenant_and_key(cache: &dyn Cache) {
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    cache.put("t", b"k", at(1, "tk"), LONG).await;
    cache.put("tk", b"", at(1, "other"), LONG).await;
    assert_eq!(cache.get("t", b"k", Position(0)).await, Some(at(1, "tk")));
    assert_eq!(cache.get("tk", b"", Position(0)).await, Some(at(1, "other")));
    assert_eq!(cache.get("", b"tk", Position(0)).await, None);
    assert_eq!(cache.get("u", b"k", Position(0)).await, None);
    cache.remove("t", b"k").await;
    cache.remove("t", b"never there").await;
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    assert_eq!(cache.get("tk", b"", Position(0)).await, Some(at(1, "other")));
}

async fn values_are_forgotten_on_time(cache: &dyn Cache) {
    cache.put("ttl", b"short", at(9, "short"), TTL).await;
    cache.put("ttl", b"long", at(1, "long"), LONG).await;
    assert_eq!(cache.get("ttl", b"short", Position(0)).await, Some(at(9, "short")));
    sleep(TTL + TTL / 10).await;
    assert_eq!(cache.get("ttl", b"short", Position(0)).await, None);
    assert_eq!(cache.get("ttl", b"long", Position(0)).await, Some(at(1, "long")));
    cache.put("ttl", b"short", at(2, "older than the expired one"), LONG).await;
    assert_eq!(cache.get("ttl", b"short", Position(2)).await, Some(at(2, "older than the expired one")));
    cache.put("ttl", b"at once", at(1, "gone"), Duration::ZERO).await;
    assert_eq!(cache.get("ttl", b"at once", Position(0)).await, None);
    cache.put("ttl", b"for ever", at(1, "kept"), Duration::MAX).await;
    assert_eq!(cache.get("ttl", b"for ever", Position(0)).await, Some(at(1, "kept")));
}

async fn positions_bound_what_is_read_and_kept(cache: &dyn Cache) {
    cache.put("p", b"k", at(5, "five"), LONG).await;
    assert_eq!(cache.get("p", b"k", Position(5)).await, Some(at(5, "five")));
    assert_eq!(cache.get("p", b"k", Position(6)).await, None, "a reader can ask for something newer");
    cache.put("p", b"k", at(4, "late"), LONG).await;
    assert_eq!(cache.get("p", b"k", Position(0)).await, Some(at(5, "five")), "a late writer changes nothing");
    cache.put("p", b"k", at(5, "again"), LONG).await;
    cache.put("p", b"k", at(6, "six"), LONG).await;
    assert_eq!(cache.get("p", b"k", Position(6)).await, Some(at(6, "six")));
}

async fn odd_keys_and_values_are_kept(cache: &dyn Cache) {
    for key in [&b""[..], &[0], &[0, 0], &[0xff; 40], "ü:*{}\r\n".as_bytes()] {
        cache.put("odd", key, at(u64::MAX, ""), LONG).await;
        assert_eq!(cache.get("odd", key, Position(u64::MAX)).await, Some(at(u64::MAX, "")));
        cache.remove("odd", key).await;
        assert_eq!(cache.get("odd", key, Position(0)).await, None);
    }
}

/// Runs every case on a fresh limiter.
///
/// # Panics
///
/// If the limiter fails a case.
pub async fn limiter(limiter: &dyn Limiter) {
    a_burst_passes_and_then_the_rate_holds(limiter).await;
    a_cost_is_taken_whole_or_not_at_all(limiter).await;
    buckets_are_scoped_by_tenant_and_key(limiter).await;
    a_changed_limit_holds_at_once(limiter).await;
}

fn limit(tokens: u32, per: Duration, burst: u32) -> Limit {
    let number = |n| NonZeroU32::new(n).expect("the cases limit to at least one");
    Limit { tokens: number(tokens), per, burst: number(burst) }
}

fn wait(decision: Decision) -> Duration {
    match decision {
        Decision::RetryAfter(wait) if !wait.is_zero() => wait,
        other => panic!("to be told to wait, not {other:?}"),
    }
}

async fn a_burst_passes_and_then_the_rate_holds(limiter: &dyn Limiter) {
    let limit = limit(2, Duration::from_secs(1), 3);
    for _ in 0..3 {
        assert_eq!(limiter.take("t", b"burst", 1, limit).await, Decision::Allowed);
    }
    for _ in 0..2 {
        let wait = wait(limiter.take("t", b"burst", 1, limit).await);
        assert!(wait <= Duration::from_millis(500), "{wait:?} is longer than a token takes");
        sleep(wait).await;
        assert_eq!(limiter.take("t", b"burst", 1, limit).await, Decision::Allowed, "whoever waits is let through");
    }
    sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        assert_eq!(limiter.take("t", b"burst", 1, limit).await, Decision::Allowed);
    }
    wait(limiter.take("t", b"burst", 1, limit).await);
}

async fn a_cost_is_taken_whole_or_not_at_all(limiter: &dyn Limiter) {
    let limit = limit(1, Duration::from_secs(60), 10);
    assert_eq!(limiter.take("t", b"cost", 11, limit).await, Decision::Never);
    assert_eq!(limiter.take("t", b"cost", 8, limit).await, Decision::Allowed);
    wait(limiter.take("t", b"cost", 3, limit).await);
    assert_eq!(limiter.take("t", b"cost", 2, limit).await, Decision::Allowed, "the refused three took nothing");
    assert_eq!(limiter.take("t", b"cost", 0, limit).await, Decision::Allowed);
    wait(limiter.take("t", b"cost", 1, limit).await);
}

async fn buckets_are_scoped_by_tenant_and_key(limiter: &dyn Limiter) {
    let limit = limit(1, Duration::from_secs(60), 1);
    for (tenant, key) in [("a", &b"bc"[..]), ("ab", b"c"), ("a", b"b"), ("", b"abc"), ("abc", b"")] {
        assert_eq!(limiter.take(tenant, key, 1, limit).await, Decision::Allowed, "{tenant}");
        wait(limiter.take(tenant, key, 1, limit).await);
    }
}

async fn a_changed_limit_holds_at_once(limiter: &dyn Limiter) {
    let minute = Duration::from_secs(60);
    assert_eq!(limiter.take("t", b"changed", 1, limit(1, minute, 10)).await, Decision::Allowed);
    assert_eq!(limiter.take("t", b"changed", 4, limit(1, minute, 2)).await, Decision::Never);
    assert_eq!(limiter.take("t", b"changed", 2, limit(1, minute, 2)).await, Decision::Allowed);
    let slow = wait(limiter.take("t", b"changed", 2, limit(1, minute, 2)).await);
    let fast = wait(limiter.take("t", b"changed", 2, limit(100, minute, 2)).await);
    assert!(fast < slow, "{fast:?} at a hundred times the rate, {slow:?} before");
}
