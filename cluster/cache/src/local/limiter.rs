use std::{
    collections::HashMap,
    future::ready,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use crate::{Decision, Limit, Limiter, keys::scoped, metrics};

/// When the limiter is full, this part of the buckets is dropped at once, so that a flood of new keys costs each of
/// them little.
const DROPPED_PART: usize = 8;

/// The token buckets of one process: exact, and bounded in number.
///
/// When a new bucket would be one too many, those that are full again are forgotten, which changes nothing; where that
/// is not enough, those that miss the least time to being full.
pub struct LocalLimiter {
    buckets: Mutex<HashMap<Box<[u8]>, Bucket>>,
    max_buckets: NonZeroUsize,
}

impl LocalLimiter {
    /// A limiter with at most `max_buckets` buckets, of some 150 bytes and their key each.
    pub fn new(max_buckets: NonZeroUsize) -> Self {
        metrics::describe();
        Self { buckets: Mutex::default(), max_buckets }
    }

    fn decide(&self, key: Box<[u8]>, cost: u32, limit: Limit, now: Instant) -> Decision {
        if cost > limit.burst.get() {
            return Decision::Never;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.max_buckets.get() && !buckets.contains_key(&key) {
            make_room(&mut buckets, self.max_buckets.get(), now);
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(limit, now)).take(cost, limit, now)
    }
}

impl Limiter for LocalLimiter {
    fn take<'a>(&'a self, tenant: &'a str, key: &'a [u8], cost: u32, limit: Limit) -> BoxFuture<'a, Decision> {
        let decision = self.decide(scoped(tenant, key), cost, limit, Instant::now());
        if decision != Decision::Allowed {
            metrics::refused();
        }
        ready(decision).boxed()
    }
}

/// Drops full buckets, and the fullest others up to a fixed part of all.
fn make_room(buckets: &mut HashMap<Box<[u8]>, Bucket>, max_buckets: usize, now: Instant) {
    buckets.retain(|_, bucket| bucket.full_in(now) > Duration::ZERO);
    let keep = max_buckets - max_buckets.div_ceil(DROPPED_PART);
    if buckets.len() <= keep {
        return;
    }
    let excess = buckets.len() - keep;
    let mut by_fullness: Vec<_> = buckets.iter().map(|(key, bucket)| (bucket.full_in(now), key.clone())).collect();
    by_fullness.select_nth_unstable(excess - 1);
    for (_, key) in by_fullness.drain(..excess) {
        buckets.remove(&key);
    }
    metrics::buckets_forgotten(excess as u64);
}

/// A token bucket in whole numbers, so that nothing is ever rounded away.
///
/// A token is as many parts as its period has nanoseconds; then each nanosecond brings exactly `limit.tokens` parts.
struct Bucket {
    limit: Limit,
    /// Invariant: at most the burst.
    parts: u128,
    /// When `parts` was right. Never runs backwards.
    at: Instant,
}

impl Bucket {
    fn full(limit: Limit, now: Instant) -> Self {
        Self { limit, parts: capacity(limit), at: now }
    }

    fn take(&mut self, cost: u32, limit: Limit, now: Instant) -> Decision {
        self.refill(now);
        self.change_limit(limit);
        let cost = u128::from(cost) * parts_per_token(limit);
        match self.parts.checked_sub(cost) {
            Some(rest) => {
                self.parts = rest;
                Decision::Allowed
            }
            None => Decision::RetryAfter(time_to_gain(cost - self.parts, limit)),
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        let gained = elapsed.as_nanos().saturating_mul(u128::from(self.limit.tokens.get()));
        self.parts = self.parts.saturating_add(gained).min(capacity(self.limit));
        self.at = self.at.max(now);
    }

    /// The saved tokens stay, down to a lower burst.
    fn change_limit(&mut self, limit: Limit) {
        if limit != self.limit {
            let parts = self.parts.saturating_mul(parts_per_token(limit)) / parts_per_token(self.limit);
            self.parts = parts.min(capacity(limit));
            self.limit = limit;
        }
    }

    /// How long until the bucket is as good as forgotten.
    fn full_in(&self, now: Instant) -> Duration {
        let missing = capacity(self.limit) - self.parts;
        time_to_gain(missing, self.limit).saturating_sub(now.saturating_duration_since(self.at))
    }
}

fn parts_per_token(limit: Limit) -> u128 {
    limit.per.as_nanos().max(1)
}

fn capacity(limit: Limit) -> u128 {
    u128::from(limit.burst.get()) * parts_per_token(limit)
}

/// The least time in which `parts` are gained.
fn time_to_gain(parts: u128, limit: Limit) -> Duration {
    let nanos = parts.div_ceil(u128::from(limit.tokens.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;

    fn limit(tokens: u32, per: Duration, burst: u32) -> Limit {
        let number = |n| NonZeroU32::new(n).expect("tests limit to at least one");
        Limit { tokens: number(tokens), per, burst: number(burst) }
    }

    fn take(limiter: &LocalLimiter, key: u32, cost: u32, limit: Limit, now: Instant) -> Decision {
        limiter.decide(scoped("t", &key.to_be_bytes()), cost, limit, now)
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let limiter = LocalLimiter::new(NonZeroUsize::new(64).unwrap_or(ONE));
        let (slow, now) = (limit(1, Duration::from_secs(3_600), 10), Instant::now());
        for key in 0..10_000 {
            assert_eq!(take(&limiter, key, 1 + key % 10, slow, now), Decision::Allowed);
            assert!(limiter.buckets.lock().is_ok_and(|buckets| buckets.len() <= 64));
        }
    }

    #[test]
    fn the_emptiest_bucket_outlives_a_flood() {
        let limiter = LocalLimiter::new(NonZeroUsize::new(64).unwrap_or(ONE));
        let (slow, now) = (limit(1, Duration::from_secs(3_600), 10), Instant::now());
        assert_eq!(take(&limiter, 0, 10, slow, now), Decision::Allowed);
        for key in 1..10_000 {
            take(&limiter, key, 1, slow, now);
        }
        assert!(matches!(take(&limiter, 0, 1, slow, now), Decision::RetryAfter(_)));
    }

    #[test]
    fn a_clock_that_stands_or_jumps_is_no_harm() {
        let limiter = LocalLimiter::new(ONE);
        let (rate, now) = (limit(u32::MAX, Duration::MAX, u32::MAX), Instant::now());
        assert_eq!(take(&limiter, 0, u32::MAX, rate, now + Duration::from_secs(1)), Decision::Allowed);
        assert!(matches!(take(&limiter, 0, u32::MAX, rate, now), Decision::RetryAfter(_)));
        let (limiter, tiny) = (LocalLimiter::new(ONE), limit(1, Duration::ZERO, 1));
        for nanosecond in 0..3 {
            assert_eq!(take(&limiter, 0, 1, tiny, now + Duration::from_nanos(nanosecond)), Decision::Allowed);
        }
    }

    proptest! {
        /// Whatever the times: what is allowed in a span is at most the burst and what the span brings, and whoever
        /// waits as told is let through.
        #[test]
        fn allowed_exactly(
            (tokens, per, burst) in (1u32..20, 1u64..2_000_000_000, 1u32..30),
            takes in prop::collection::vec((0u64..3_000_000_000, 1u32..30), 1..60),
        ) {
            let limit = limit(tokens, Duration::from_nanos(per), burst);
            let limiter = LocalLimiter::new(ONE);
            let start = Instant::now();
            let (mut elapsed, mut allowed) = (0u64, 0u64);
            for (pause, cost) in takes {
                elapsed += pause;
                match take(&limiter, 0, cost, limit, start + Duration::from_nanos(elapsed)) {
                    Decision::Never => prop_assert!(cost > burst),
                    Decision::Allowed => allowed += u64::from(cost),
                    Decision::RetryAfter(wait) => {
                        let wait = wait.as_nanos() as u64;
                        let early = start + Duration::from_nanos(elapsed + wait - 1);
                        prop_assert!(matches!(take(&limiter, 0, cost, limit, early), Decision::RetryAfter(_)));
                        elapsed += wait;
                        let now = start + Duration::from_nanos(elapsed);
                        prop_assert_eq!(take(&limiter, 0, cost, limit, now), Decision::Allowed);
                        allowed += u64::from(cost);
                    }
                }
                let gained = u128::from(elapsed) * u128::from(tokens);
                prop_assert!(u128::from(allowed) * u128::from(per) <= u128::from(burst) * u128::from(per) + gained);
            }
        }
    }
}
