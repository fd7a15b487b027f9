//! What may be forgotten: the cache and the rate limiter.
//!
//! [`Cache`] and [`Limiter`] are the ports; [`LocalCache`] and [`LocalLimiter`] keep both in this process. Flushing
//! either costs speed or exactness and nothing else: neither can fail a request. What the ports promise is written
//! down as tests in the `conformance` module, which every adapter runs.

#[doc(hidden)]
pub mod conformance;
mod local;
mod metrics;
mod port;

pub use local::{LocalCache, LocalLimiter};
pub use port::{Cache, Cached, Decision, Limit, Limiter};
