//! The cache and the limiter of one process.

mod cache;
mod limiter;

pub use cache::LocalCache;
pub use limiter::LocalLimiter;
