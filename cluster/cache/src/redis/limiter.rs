use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    time::Duration,
};

use fred::{interfaces::ClientLike as _, types::Value};
use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_protocol::Dependency;

use super::{Redis, Script};
use crate::{Decision, Limit, Limiter, LocalLimiter, keys::scoped, metrics};

/// A token bucket on the server's clock, in microseconds. Numbers are doubles there, which are exact for them; a billionth of a token is
/// given away for what rounding may take. Answers for how long to wait. A bucket that is full again is forgotten.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local cost, rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
        local time = redis.call('TIME')
        local now, tokens = time[1] * 1000000 + time[2], burst
        local old = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'rate', 'burst')
        if old[1] and old[2] and old[3] and old[4] then
          local gained = math.max(0, now - tonumber(old[2])) * tonumber(old[3])
          tokens = math.min(tonumber(old[1]) + gained, tonumber(old[4]), burst)
        end
        local wait = 0
        if tokens + 1e-9 >= cost then
          tokens = math.max(0, tokens - cost)
        else
          wait = math.max(1, math.ceil((cost - tokens) / rate))
        end
        redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at', string.format('%.17g', now),
          'rate', ARGV[2], 'burst', ARGV[3])
        redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(1 + (burst - tokens) / rate / 1000, 3e11)))
        return string.format('%.0f', math.min(wait, 9e18))",
    )
});

/// Token buckets that all nodes share. While Redis is gone, each node has buckets of its own: so a limit may be passed as often as there are
/// nodes, and never is by one.
pub struct RedisLimiter {
    redis: Arc<Redis>,
    alone: LocalLimiter,
}

impl RedisLimiter {
    /// A limiter behind that connection, with at most `max_buckets` buckets of its own while Redis is gone.
    pub fn new(redis: Arc<Redis>, max_buckets: NonZeroUsize) -> Self {
        Self { redis, alone: LocalLimiter::new(max_buckets) }
    }

    async fn ask(&self, tenant: &str, key: &[u8], cost: u32, limit: Limit) -> Option<Decision> {
        let period = limit.per.as_nanos().max(1) as f64 / 1e3;
        let rate = f64::from(limit.tokens.get()) / period;
        let arguments = vec![
            Value::Integer(cost.into()),
            Value::from(format!("{rate:e}")),
            Value::Integer(limit.burst.get().into()),
        ];
        let key = self.redis.key(":l:", &scoped(tenant, key));
        let wait: u64 = self.redis.run::<String>(&TAKE, key, arguments).await?.parse().ok()?;
        Some(if wait == 0 { Decision::Allowed } else { Decision::RetryAfter(Duration::from_micros(wait)) })
    }
}

impl Limiter for RedisLimiter {
    fn take<'a>(&'a self, tenant: &'a str, key: &'a [u8], cost: u32, limit: Limit) -> BoxFuture<'a, Decision> {
        async move {
            if cost > limit.burst.get() {
                metrics::refused();
                return Decision::Never;
            }
            match self.ask(tenant, key, cost, limit).await {
                Some(Decision::Allowed) => Decision::Allowed,
                Some(refused) => {
                    metrics::refused();
                    refused
                }
                None => self.alone.take(tenant, key, cost, limit).await,
            }
        }
        .boxed()
    }

    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        async move {
            // Its answer, or that there is none, is remembered.
            let _pong: Option<String> = self.redis.reach.ask(self.redis.client.ping(None)).await;
            Some(Dependency { name: "redis", trouble: self.redis.reach.trouble() })
        }
        .boxed()
    }
}
