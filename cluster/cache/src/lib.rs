//! What may be forgotten: the cache and the rate limiter.
//!
//! [`Cache`] and [`Limiter`] are the ports; [`LocalCache`] and [`LocalLimiter`] keep both in this process, `RedisCache` and
//! `RedisLimiter` (feature `redis`) for all nodes of a cluster in Redis. Flushing either costs speed or exactness and nothing else: neither
//! can fail a request. What the ports promise is written down as tests in the `conformance` module, which every adapter runs.

#[doc(hidden)]
pub mod conformance;
mod keys;
mod local;
mod metrics;
mod port;
#[cfg(feature = "redis")]
mod redis;

pub use local::{LocalCache, LocalLimiter};
pub use port::{Cache, Cached, Decision, Limit, Limiter};
#[cfg(feature = "redis")]
pub use redis::{InvalidUrl, Redis, RedisCache, RedisLimiter, RedisOptions};
