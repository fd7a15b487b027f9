//! Sends requests: not too many at once, again where that may help, and no longer than agreed.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::fault::{Fault, Trouble};
use crate::{RecordsError, metrics};

/// Requests of a node that are under way at once; others wait, within their deadlines. Keeps a replay from flooding the servers.
const MAX_IN_FLIGHT: usize = 256;
/// How long after a failure a request is sent again: at first, then twice as long each time, at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Probes in a row that fail before the servers count as gone: one may fail while a server restarts, and requests that are sent again then go well.
const DOUBTS: u32 = 2;

/// The way to the servers.
///
/// A request that fails in a way that passes is sent again until its deadline. While nothing is answered at all, each is sent once, so that
/// callers learn at once what is known already, and servers that come back are not met by a storm.
#[derive(Debug)]
pub(super) struct Reach {
    /// The nodes to begin with, to name the store by.
    nodes: String,
    deadline: Duration,
    permits: Semaphore,
    up: AtomicBool,
    /// Probes that failed since anything was answered.
    doubts: AtomicU32,
    /// Why the last request failed.
    trouble: Mutex<String>,
}

impl Reach {
    pub(super) fn new(nodes: &[String], deadline: Duration) -> Self {
        let permits = Semaphore::new(MAX_IN_FLIGHT);
        Self {
            nodes: nodes.join(", "),
            deadline,
            permits,
            up: AtomicBool::new(true),
            doubts: AtomicU32::new(0),
            trouble: Mutex::default(),
        }
    }

    /// Whether the last request was answered.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Why the servers do not answer; `None` while they do.
    pub(super) fn trouble(&self) -> Option<String> {
        (!self.is_up()).then(|| self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Learns by a request whether the servers answer, whoever else asks something: once, within `patience`.
    pub(super) async fn probe<T, E>(
        &self,
        patience: Duration,
        meaning: impl Fn(&E) -> Fault,
        request: impl Future<Output = Result<T, E>>,
    ) {
        let trouble = match timeout_at(Instant::now() + patience, request).await {
            Ok(Ok(_)) => return self.answered(),
            Ok(Err(error)) => match meaning(&error) {
                Fault::Passing(trouble) => trouble,
                // They did answer.
                Fault::Lasting(_) => return,
            },
            Err(_) => Trouble::NoAnswer(patience),
        };
        if self.doubts.fetch_add(1, Ordering::Relaxed) + 1 >= DOUBTS {
            self.failed(trouble);
        }
    }

    /// The answer to a request, which must be one that can be sent any number of times.
    pub(super) async fn ask<T, E, F>(
        &self,
        meaning: impl Fn(&E) -> Fault,
        mut request: impl FnMut() -> F,
    ) -> Result<T, RecordsError>
    where
        F: Future<Output = Result<T, E>>,
    {
        let deadline = Instant::now() + self.deadline;
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(self.failed(Trouble::NoAnswer(self.deadline)));
        };
        let (mut pause, mut earlier) = (PAUSES.0, None);
        loop {
            let trouble = match timeout_at(deadline, request()).await {
                Ok(Ok(answer)) => {
                    self.answered();
                    return Ok(answer);
                }
                Ok(Err(error)) => match meaning(&error) {
                    Fault::Passing(trouble) => trouble,
                    Fault::Lasting(error) => {
                        metrics::request_failed();
                        return Err(error);
                    }
                },
                // An attempt that the deadline cuts short says less than the one before it.
                Err(_) => earlier.take().unwrap_or(Trouble::NoAnswer(self.deadline)),
            };
            let again_at = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
            if again_at >= deadline || !self.is_up() {
                return Err(self.failed(trouble));
            }
            earlier = Some(trouble);
            metrics::request_retried();
            sleep(again_at - Instant::now()).await;
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    fn answered(&self) {
        self.doubts.store(0, Ordering::Relaxed);
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!(nodes = self.nodes, "the record store answers again");
        }
        metrics::store_up(true);
    }

    fn failed(&self, trouble: Trouble) -> RecordsError {
        let error = trouble.into_error(&self.nodes);
        metrics::request_failed();
        metrics::store_up(false);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
        if self.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(%error, "the record store does not serve");
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use super::*;

    fn reach() -> Reach {
        Reach::new(&["somewhere".to_owned()], Duration::from_secs(10))
    }

    fn passing(error: &&'static str) -> Fault {
        Fault::Passing(Trouble::NoConnection((*error).to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_passes_costs_a_pause() {
        let (reach, tries) = (reach(), Cell::new(0));
        let answer = reach.ask(passing, || {
            tries.set(tries.get() + 1);
            ready(if tries.get() < 4 { Err("not yet") } else { Ok("answer") })
        });
        assert_eq!(answer.await.ok(), Some("answer"));
        assert_eq!(tries.get(), 4);
        assert!(reach.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn tries_end_at_the_deadline_and_then_there_is_one() {
        let (reach, tries, begun) = (reach(), Cell::new(0), Instant::now());
        let ask = async || {
            let request = || {
                tries.set(tries.get() + 1);
                ready(Err::<(), _>("gone"))
            };
            reach.ask(passing, request).await
        };
        assert!(matches!(ask().await, Err(RecordsError::Unreachable { .. })));
        assert!((10..40).contains(&tries.get()), "{} tries", tries.get());
        assert!(begun.elapsed() <= Duration::from_secs(10) && !reach.is_up());
        tries.set(0);
        assert!(ask().await.is_err());
        assert_eq!(tries.get(), 1, "what is down is asked once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_lasts_is_told_at_once() {
        let (reach, begun) = (reach(), Instant::now());
        let lasting = |_: &()| Fault::Lasting(RecordsError::Refused { reason: "no".into() });
        let answer: Result<(), _> = reach.ask(lasting, || ready(Err(()))).await;
        assert!(matches!(answer, Err(RecordsError::Refused { .. })));
        assert_eq!((begun.elapsed(), reach.is_up()), (Duration::ZERO, true), "the servers did answer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_fault_is_told_where_the_deadline_cuts_an_attempt_short() {
        let (reach, mut tries) = (reach(), 0);
        let request = || {
            tries += 1;
            let is_first = tries == 1;
            async move { if is_first { Err::<(), _>("gone") } else { std::future::pending().await } }
        };
        let told = reach.ask(passing, request).await;
        assert!(matches!(&told, Err(RecordsError::Unreachable { reason, .. }) if reason == "gone"), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_gone_when_two_probes_in_a_row_say_so_and_back_when_one_does() {
        let reach = reach();
        let probe =
            async |answer: Result<(), &'static str>| reach.probe(Duration::from_secs(2), passing, ready(answer)).await;
        probe(Err("gone")).await;
        probe(Ok(())).await;
        probe(Err("gone")).await;
        assert_eq!(reach.trouble(), None, "one failure between answers is no outage");
        reach.probe(Duration::from_secs(2), passing, std::future::pending::<Result<(), _>>()).await;
        let trouble = reach.trouble().expect("nothing was answered twice");
        assert!(trouble.contains("did not answer"), "{trouble}");
        probe(Ok(())).await;
        assert!(reach.is_up() && reach.trouble().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_ends_at_the_deadline() {
        let (reach, begun) = (reach(), Instant::now());
        let answer: Result<(), _> = reach.ask(passing, std::future::pending).await;
        assert!(matches!(answer, Err(RecordsError::TimedOut { .. })));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }
}
