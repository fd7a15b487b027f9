//! The crate's metrics: names, descriptions and recording, here and nowhere else.

use std::sync::Once;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

const HITS: &str = "parlance_cache_hits_total";
const MISSES: &str = "parlance_cache_misses_total";
const EVICTIONS: &str = "parlance_cache_evictions_total";
const BYTES: &str = "parlance_cache_bytes";
const LIMITED: &str = "parlance_limiter_refused_total";
#[cfg(feature = "redis")]
const REDIS_UP: &str = "parlance_redis_up";
#[cfg(feature = "redis")]
const REDIS_FAILURES: &str = "parlance_redis_failures_total";
#[cfg(feature = "redis")]
const REDIS_SKIPPED: &str = "parlance_redis_skipped_total";
const BUCKETS_FORGOTTEN: &str = "parlance_limiter_buckets_forgotten_total";

/// Describes the metrics to the recorder that is installed when the first cache or limiter is made.
pub(crate) fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        describe_counter!(HITS, Unit::Count, "Cache reads that found a value");
        describe_counter!(MISSES, Unit::Count, "Cache reads that found none that was recent enough");
        describe_counter!(EVICTIONS, Unit::Count, "Cached values dropped to make room");
        describe_gauge!(BYTES, Unit::Bytes, "Memory held by cached values and their keys");
        describe_counter!(LIMITED, Unit::Count, "Takes that the rate limiter refused");
        #[cfg(feature = "redis")]
        {
            describe_gauge!(REDIS_UP, Unit::Count, "Whether Redis answers: 1 or 0");
            describe_counter!(REDIS_FAILURES, Unit::Count, "Commands that Redis refused or did not answer in time");
            describe_counter!(
                REDIS_SKIPPED,
                Unit::Count,
                "Commands that were not sent because Redis did not answer just before"
            );
        }
        describe_counter!(BUCKETS_FORGOTTEN, Unit::Count, "Token buckets forgotten before they were full again");
    });
}

/// A cache was read.
pub(crate) fn cache_read(hit: bool) {
    counter!(if hit { HITS } else { MISSES }).increment(1);
}

/// A value was dropped to make room.
pub(crate) fn evicted() {
    counter!(EVICTIONS).increment(1);
}

/// How much the cache holds.
pub(crate) fn cache_size(bytes: u64) {
    gauge!(BYTES).set(bytes as f64);
}

/// A take was refused.
pub(crate) fn refused() {
    counter!(LIMITED).increment(1);
}

/// Token buckets were forgotten before they were full again.
pub(crate) fn buckets_forgotten(count: u64) {
    counter!(BUCKETS_FORGOTTEN).increment(count);
}

/// Whether Redis answers.
#[cfg(feature = "redis")]
pub(crate) fn redis_up(up: bool) {
    gauge!(REDIS_UP).set(if up { 1.0 } else { 0.0 });
}

/// Redis refused a command or did not answer it in time.
#[cfg(feature = "redis")]
pub(crate) fn redis_failed() {
    counter!(REDIS_FAILURES).increment(1);
}

/// A command was not sent.
#[cfg(feature = "redis")]
pub(crate) fn redis_skipped() {
    counter!(REDIS_SKIPPED).increment(1);
}
