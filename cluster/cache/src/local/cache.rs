use std::{
    future::ready,
    time::{Duration, Instant as StdInstant},
};

use futures_util::{FutureExt, future::BoxFuture};
use moka::{Expiry, notification::RemovalCause, ops::compute::Op, sync::Cache as Moka};
use parlance_cluster_protocol::Position;
use tokio::time::Instant;

use crate::{Cache, Cached, keys::scoped, metrics};

/// What an entry costs beside its key and value: the entry itself and its places in the cache's queues.
const ENTRY_BYTES: usize = 256;

/// Longer than anything is cached; keeps the arithmetic of far expiries in range.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// The cache of one process, bounded in bytes.
///
/// Past the bound the entries that are read least go first; one that is new and was never asked for may be dropped at
/// once.
pub struct LocalCache {
    entries: Moka<Box<[u8]>, Entry>,
}

#[derive(Clone)]
struct Entry {
    cached: Cached,
    /// By tokio's clock, which tests can hold. The cache itself drops expired entries by the system's.
    expires_at: Instant,
    ttl: Duration,
}

impl LocalCache {
    /// A cache of at most about `max_bytes`, keys and overhead counted in.
    pub fn new(max_bytes: u64) -> Self {
        metrics::describe();
        #[expect(clippy::borrowed_box, reason = "a weigher is given its map's key by reference")]
        let weigh = |key: &Box<[u8]>, entry: &Entry| {
            u32::try_from(ENTRY_BYTES + key.len() + entry.cached.value.len()).unwrap_or(u32::MAX)
        };
        let entries = Moka::builder()
            .max_capacity(max_bytes)
            .weigher(weigh)
            .expire_after(PerEntry)
            .eviction_listener(|_, _, cause| {
                if cause == RemovalCause::Size {
                    metrics::evicted();
                }
            })
            .build();
        Self { entries }
    }

    /// How much the cache holds, by its own account, pending removals done.
    pub fn bytes(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }

    fn find(&self, key: &[u8], at_least: Position) -> Option<Cached> {
        let entry = self.entries.get(key)?;
        (entry.expires_at > Instant::now() && entry.cached.position >= at_least).then_some(entry.cached)
    }

    fn keep(&self, key: Box<[u8]>, cached: Cached, ttl: Duration) {
        let ttl = ttl.min(MAX_TTL);
        let now = Instant::now();
        let new = Entry { cached, expires_at: now + ttl, ttl };
        self.entries.entry(key).and_compute_with(|old| match old.map(|old| old.into_value()) {
            Some(old) if old.expires_at > now && old.cached.position > new.cached.position => Op::Nop,
            _ => Op::Put(new),
        });
        metrics::cache_size(self.entries.weighted_size());
    }
}

/// Lets each entry expire by its own time.
struct PerEntry;

impl Expiry<Box<[u8]>, Entry> for PerEntry {
    fn expire_after_create(&self, _: &Box<[u8]>, entry: &Entry, _: StdInstant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &Box<[u8]>,
        entry: &Entry,
        _: StdInstant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

impl Cache for LocalCache {
    fn get<'a>(&'a self, tenant: &'a str, key: &'a [u8], at_least: Position) -> BoxFuture<'a, Option<Cached>> {
        let found = self.find(&scoped(tenant, key), at_least);
        metrics::cache_read(found.is_some());
        ready(found).boxed()
    }

    fn put<'a>(&'a self, tenant: &'a str, key: &'a [u8], entry: Cached, ttl: Duration) -> BoxFuture<'a, ()> {
        self.keep(scoped(tenant, key), entry, ttl);
        ready(()).boxed()
    }

    fn remove<'a>(&'a self, tenant: &'a str, key: &'a [u8]) -> BoxFuture<'a, ()> {
        self.entries.invalidate(&*scoped(tenant, key));
        ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_holds_is_bounded() {
        let max_bytes = 1 << 20;
        let cache = LocalCache::new(max_bytes);
        for n in 0..5_000u32 {
            let entry = Cached { value: vec![0; 1_000].into(), position: Position(1) };
            cache.put("t", &n.to_be_bytes(), entry, Duration::from_secs(60)).await;
        }
        let bytes = cache.bytes();
        assert!((max_bytes / 2..=max_bytes).contains(&bytes), "{bytes} bytes");
    }

    #[tokio::test]
    async fn a_value_above_the_bound_is_not_kept() {
        let cache = LocalCache::new(10_000);
        let entry = Cached { value: vec![0; 20_000].into(), position: Position(1) };
        cache.put("t", b"k", entry, Duration::from_secs(60)).await;
        assert_eq!(cache.bytes(), 0);
        assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    }
}
