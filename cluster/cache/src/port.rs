use std::{future::ready, num::NonZeroU32, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use parlance_cluster_protocol::{Dependency, Position};

/// A cached value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The value, opaque to the cache.
    pub value: Bytes,
    /// The position that it reflects. All entries under one key belong to one slot, so that their positions compare.
    pub position: Position,
}

/// Remembers values for a while. It may forget any of them at any time, and so never fails: a cache that cannot be
/// reached holds nothing.
pub trait Cache: Send + Sync + 'static {
    /// The value under the tenant's key, if it is remembered, has not expired and reflects at least `at_least`.
    fn get<'a>(&'a self, tenant: &'a str, key: &'a [u8], at_least: Position) -> BoxFuture<'a, Option<Cached>>;

    /// Remembers a value for `ttl`, unless a newer one is remembered under the key.
    fn put<'a>(&'a self, tenant: &'a str, key: &'a [u8], entry: Cached, ttl: Duration) -> BoxFuture<'a, ()>;

    /// Forgets the value under the tenant's key.
    fn remove<'a>(&'a self, tenant: &'a str, key: &'a [u8]) -> BoxFuture<'a, ()>;
}

/// A token bucket: it holds up to `burst` tokens and gains `tokens` of them evenly over each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Tokens gained per period.
    pub tokens: NonZeroU32,
    /// The period. Shorter than a nanosecond counts as one.
    pub per: Duration,
    /// The most tokens that can be saved up, and with how many a bucket starts.
    pub burst: NonZeroU32,
}

/// What the limiter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on; the tokens are taken.
    Allowed,
    /// Not now; nothing was taken. After this long it would be allowed, if nobody else takes tokens meanwhile.
    RetryAfter(Duration),
    /// Never: the cost is above the burst.
    Never,
}

/// Limits rates, one token bucket per tenant and key. It may forget buckets, which then are full, and so never fails.
pub trait Limiter: Send + Sync + 'static {
    /// Takes `cost` tokens from the bucket, all or none. A changed `limit` holds from this call on.
    fn take<'a>(&'a self, tenant: &'a str, key: &'a [u8], cost: u32, limit: Limit) -> BoxFuture<'a, Decision>;

    /// The component that the buckets are kept in, asked now; `None` for a limiter of this process. Ends within the time-out of a command.
    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        ready(None).boxed()
    }
}
