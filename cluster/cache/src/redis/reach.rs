use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::error::Error;
use tokio::time::{Instant, timeout};

use crate::metrics;

/// How long nothing is sent after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether Redis is worth asking: a breaker that opens on one failure and lets one command through each second.
#[derive(Debug)]
pub(super) struct Reach {
    timeout: Duration,
    began: Instant,
    up: AtomicBool,
    /// Milliseconds since `began` before which nothing is sent while it is not up.
    closed_until: AtomicU64,
    /// Why the last command failed.
    trouble: Mutex<String>,
}

impl Reach {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            began: Instant::now(),
            up: AtomicBool::new(true),
            closed_until: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Why Redis does not answer; `None` while it does.
    pub(super) fn trouble(&self) -> Option<String> {
        (!self.is_up()).then(|| self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The answer to a command; nothing where there is none.
    pub(super) async fn ask<T>(&self, command: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if !self.may_ask() {
            metrics::redis_skipped();
            return None;
        }
        let why = match timeout(self.timeout, command).await {
            Ok(Ok(answer)) => {
                self.answered();
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        self.failed(&why);
        None
    }

    /// Whoever finds the pause over begins the next one, and so is the only one to try.
    fn may_ask(&self) -> bool {
        if self.is_up() {
            return true;
        }
        let now = self.now();
        let until = self.closed_until.load(Ordering::Relaxed);
        let next = now + PAUSE.as_millis() as u64;
        now >= until && self.closed_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn answered(&self) {
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!("redis answers again");
        }
        metrics::redis_up(true);
    }

    fn failed(&self, why: &str) {
        metrics::redis_failed();
        metrics::redis_up(false);
        why.clone_into(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
        self.closed_until.store(self.now() + PAUSE.as_millis() as u64, Ordering::Relaxed);
        if self.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(why, "redis does not answer: nothing is cached there, and each node limits by itself");
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use fred::error::ErrorKind;

    use super::*;

    fn broken() -> Error {
        Error::new(ErrorKind::IO, "cut")
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_followed_by_a_pause_and_then_one_try() {
        let reach = Reach::new(Duration::from_millis(50));
        assert_eq!(reach.ask(ready(Ok(1))).await, Some(1));
        assert_eq!(reach.ask(ready(Err::<u8, _>(broken()))).await, None);
        assert!(!reach.is_up());
        assert_eq!(reach.ask(ready(Ok(2))).await, None, "nothing is sent in the pause");
        tokio::time::advance(PAUSE).await;
        // The first one to come tries, and hangs; those behind it do not wait.
        let begun = Instant::now();
        let (first, second) = tokio::join!(reach.ask(pending::<Result<u8, _>>()), reach.ask(ready(Ok(3))));
        assert_eq!((first, second, begun.elapsed()), (None, None, Duration::from_millis(50)));
        tokio::time::advance(PAUSE).await;
        assert_eq!(reach.ask(ready(Ok(4))).await, Some(4));
        assert_eq!(reach.ask(ready(Ok(5))).await, Some(5));
        assert!(reach.is_up());
    }
}
