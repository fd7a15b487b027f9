use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fred::{interfaces::KeysInterface, types::Value};
use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_protocol::Position;

use super::{Redis, Script};
use crate::{Cache, Cached, keys::scoped, metrics};

/// The largest value that is kept, in bytes: a larger one would hold up all who wait behind it.
const MAX_VALUE: usize = 4 << 20;
/// Longer than anything is cached; keeps the expiry in range.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// Bytes of the position that a value begins with.
const POSITION: usize = 8;

/// Keeps a value, unless a newer one is there: positions are 8 bytes, the most significant first.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local old, new = redis.call('GETRANGE', KEYS[1], 0, 7), ARGV[1]
        for at = 1, #old do
          local before, now = old:byte(at), new:byte(at)
          if before > now then return 0 end
          if before < now then break end
        end
        redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
        return 1",
    )
});

/// A cache that all nodes share. Redis bounds it, by its `maxmemory` and an `allkeys-` policy.
#[derive(Debug, Clone)]
pub struct RedisCache(Arc<Redis>);

impl RedisCache {
    /// A cache behind that connection.
    pub fn new(redis: Arc<Redis>) -> Self {
        Self(redis)
    }

    async fn find(&self, key: &[u8], at_least: Position) -> Option<Cached> {
        let mut value: Bytes =
            self.0.reach.ask(self.0.client.get::<Option<Bytes>, _>(self.0.key(":c:", key))).await??;
        if value.len() < POSITION {
            return None;
        }
        let position = Position(value.get_u64());
        (position >= at_least).then_some(Cached { value, position })
    }

    async fn keep(&self, key: &[u8], entry: Cached, ttl: Duration) {
        let Ok(ttl @ 1..) = i64::try_from(ttl.min(MAX_TTL).as_micros().div_ceil(1_000)) else { return };
        if entry.value.len() > MAX_VALUE {
            return;
        }
        let mut value = BytesMut::with_capacity(POSITION + entry.value.len());
        value.put_u64(entry.position.0);
        value.extend_from_slice(&entry.value);
        let arguments = vec![Value::Bytes(value.freeze()), Value::Integer(ttl)];
        // Kept or not: the cache may forget.
        let _kept: Option<i64> = self.0.run(&PUT, self.0.key(":c:", key), arguments).await;
    }
}

impl Cache for RedisCache {
    fn get<'a>(&'a self, tenant: &'a str, key: &'a [u8], at_least: Position) -> BoxFuture<'a, Option<Cached>> {
        async move {
            let found = self.find(&scoped(tenant, key), at_least).await;
            metrics::cache_read(found.is_some());
            found
        }
        .boxed()
    }

    fn put<'a>(&'a self, tenant: &'a str, key: &'a [u8], entry: Cached, ttl: Duration) -> BoxFuture<'a, ()> {
        async move { self.keep(&scoped(tenant, key), entry, ttl).await }.boxed()
    }

    fn remove<'a>(&'a self, tenant: &'a str, key: &'a [u8]) -> BoxFuture<'a, ()> {
        async move {
            // Where Redis is gone, a reader asks for what is recent enough.
            let key = self.0.key(":c:", &scoped(tenant, key));
            let _removed: Option<i64> = self.0.reach.ask(self.0.client.del(key)).await;
        }
        .boxed()
    }
}
