//! One thread per log that watches Kafka: whether it answers, whether every shard can be appended to, and whether the topic is still the same.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{Inner, Shared, describe::describe};
use crate::LogError;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long it waits at the end for others to let the log go: calls that are under way end within their time-outs.
const LAST_HANDLES: (u32, Duration) = (3_000, Duration::from_millis(10));

/// What was seen last.
pub(super) struct Watch(Mutex<Option<Trouble>>);

struct Trouble {
    since: Instant,
    why: LogError,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Refuses once there was trouble for `grace`.
    pub(super) fn admission(&self, grace: Duration) -> Result<(), LogError> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) if trouble.since.elapsed() >= grace => Err(trouble.why.clone()),
            _ => Ok(()),
        }
    }

    /// What keeps Kafka from taking entries, as it was seen last.
    pub(super) fn trouble(&self) -> Option<LogError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|trouble| trouble.why.clone())
    }

    /// Takes what a look that began at `since` has seen.
    fn saw(&self, since: Instant, seen: Result<(), LogError>) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (seen, &mut *trouble) {
            (Ok(()), Some(was)) => {
                info!(seconds = was.since.elapsed().as_secs_f64(), "kafka takes entries again");
                *trouble = None;
            }
            (Err(why), Some(was)) => was.why = why,
            (Err(why), None) => {
                warn!(error = %why, "kafka cannot take entries");
                *trouble = Some(Trouble { since, why });
            }
            (Ok(()), None) => {}
        }
    }
}

/// Begins to watch, until the sender speaks or is gone. Then it lets the log go, on this thread.
pub(super) fn spawn(inner: Arc<Inner>) -> Result<mpsc::Sender<()>, LogError> {
    let (closing, closed) = mpsc::channel();
    let shared = inner.shared.clone();
    let spawned = thread::Builder::new().name("kafka-watch".into()).spawn(move || {
        while let Err(mpsc::RecvTimeoutError::Timeout) = closed.recv_timeout(INTERVAL) {
            let since = Instant::now();
            let seen = look(&inner.shared);
            inner.shared.metrics.reachable(seen.is_ok());
            inner.watch.saw(since, seen);
            inner.reader.tend();
        }
        for _ in 0..LAST_HANDLES.0 {
            if Arc::strong_count(&inner) == 1 && Arc::strong_count(&inner.shared) <= 3 {
                break;
            }
            thread::sleep(LAST_HANDLES.1);
        }
    });
    spawned.map(|_| closing).map_err(|e| shared.unreachable(e))
}

/// What keeps Kafka from taking entries. Another topic under the same name shuts the log.
fn look(shared: &Shared) -> Result<(), LogError> {
    let topic = &shared.config.topic;
    let patience = shared.config.socket_timeout;
    let ask = || describe(shared.admin.inner(), topic, patience);
    let described = ask().or_else(|_| {
        shared.refresh(patience);
        ask()
    });
    let described = described.map_err(|e| shared.unreachable(e))?;
    let described = described.ok_or_else(|| shared.unreachable(format!("topic {topic} is not there")))?;
    if described.id != shared.topic.id {
        let (topic, expected, found) = (topic.clone(), shared.topic.id.clone(), described.id);
        let recreated = LogError::Recreated { topic, expected, found };
        shared.shut(recreated.clone());
        return Err(recreated);
    }
    let needed = shared.topic.min_in_sync;
    let is_short = |in_sync: usize| in_sync < usize::from(needed);
    let short = described.partitions.iter().filter(|partition| !partition.has_leader || is_short(partition.in_sync));
    match short.count() {
        0 => Ok(()),
        partitions => Err(LogError::NotEnoughReplicas { topic: topic.clone(), partitions, needed }),
    }
}
