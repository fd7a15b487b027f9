//! The cache and the limiter of one process against the conformance suite.

use std::num::NonZeroUsize;

use parlance_cluster_cache::{LocalCache, LocalLimiter, conformance};

#[tokio::test(start_paused = true)]
async fn the_cache_conforms() {
    conformance::cache(&LocalCache::new(1 << 20)).await;
}

#[tokio::test(start_paused = true)]
async fn the_limiter_conforms() {
    conformance::limiter(&LocalLimiter::new(NonZeroUsize::MIN.saturating_add(99))).await;
}
