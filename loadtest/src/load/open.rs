//! An open loop: so many messages a second, whatever becomes of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Ask, Load, client::Attempt, session_name};
use crate::history::EventKind;

/// A refusal may ask a client to wait so long at most.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Between two looks at a turn whose stream broke.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// How much is said, and in how many sessions.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenLoop {
    /// Messages a second.
    pub rate: f64,
    /// Sessions that they are spread over, by lot.
    pub sessions: u32,
    /// Messages under way at once. What would come beyond is dropped and counted: then the load was not what it says.
    pub most_under_way: usize,
    /// The share of messages that are sent without an idempotency key, 0 to 1. Nobody may repeat those where it is not known whether they
    /// were accepted, so each such time is a message that has not succeeded.
    pub keyless: f64,
    /// Draws sessions and kinds of messages.
    pub seed: u64,
}

/// What an open loop did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Arrivals {
    /// Messages that were sent.
    pub sent: usize,
    /// Messages that were not, for too many were under way.
    pub dropped: usize,
    /// How late the latest was sent, in microseconds: what the loop itself held up.
    pub latest_us: u64,
}

impl Load {
    /// Sends messages at a steady rate until [`Load::stop`], then waits for the last answers. Every other answer is streamed. A message with a
    /// key is repeated, at the next node, until it is answered or given up; one without is asked after by its turn's id if its answer broke
    /// off, and else left as unknown.
    pub async fn open_loop(self: Arc<Self>, open: OpenLoop) -> Arrivals {
        let mut rng = StdRng::seed_from_u64(open.seed);
        let mut arrivals = Arrivals::default();
        let under_way = Arc::new(AtomicUsize::new(0));
        let mut turns = JoinSet::new();
        let begun = Instant::now();
        for number in 0_u32.. {
            let due = begun + Duration::from_secs_f64(f64::from(number) / open.rate);
            tokio::time::sleep_until(due.into()).await;
            if self.is_stopping() {
                break;
            }
            while turns.try_join_next().is_some() {}
            let ask = ask(number, &open, &mut rng);
            if under_way.load(Ordering::Relaxed) >= open.most_under_way {
                arrivals.dropped += 1;
                continue;
            }
            arrivals.sent += 1;
            arrivals.latest_us = arrivals.latest_us.max(due.elapsed().as_micros() as u64);
            let (load, counted) = (self.clone(), under_way.clone());
            under_way.fetch_add(1, Ordering::Relaxed);
            turns.spawn(async move {
                load.turn(&ask).await;
                counted.fetch_sub(1, Ordering::Relaxed);
            });
        }
        turns.join_all().await;
        arrivals
    }

    /// Sends a message until it is answered, its fate is unknown, or time is up.
    async fn turn(&self, ask: &Ask) {
        let until = Instant::now() + self.patience.give_up;
        // Each session has a node that it asks first.
        let mut node = ask.client as usize;
        loop {
            let attempt = self.client.attempt(ask, node).await;
            node += 1;
            match (&attempt.seen, &attempt.turn) {
                (EventKind::Refused { .. }, _) => {}
                (EventKind::Unknown { .. }, _) if ask.keyed => {}
                (EventKind::Unknown { .. }, Some(turn)) => return self.follow(ask, turn, node, until).await,
                _ => return,
            }
            if Instant::now() > until {
                return;
            }
            tokio::time::sleep(self.pause_after(&attempt)).await;
        }
    }

    fn pause_after(&self, attempt: &Attempt) -> Duration {
        let asked = attempt.retry_after.unwrap_or_default().min(MOST_RETRY_AFTER);
        asked.max(self.patience.pause)
    }

    /// Asks after a turn that was acknowledged, at one node after the other.
    async fn follow(&self, ask: &Ask, turn: &str, mut node: usize, until: Instant) {
        while Instant::now() < until {
            if let Some(outcome) = self.client.outcome(turn, node).await {
                return self.client.note(ask, outcome);
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
            node += 1;
        }
        self.client.note(ask, EventKind::Unknown { reason: "asked after in vain".to_owned() });
    }
}

/// The message of this number. Its text is its key too.
fn ask(number: u32, open: &OpenLoop, rng: &mut StdRng) -> Ask {
    let session = rng.random_range(0..open.sessions);
    Ask {
        client: session,
        session: session_name(session),
        message: format!("turn {number} in session {session}"),
        keyed: !rng.random_bool(open.keyless),
        streamed: rng.random(),
    }
}
