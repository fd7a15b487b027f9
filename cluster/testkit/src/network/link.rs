//! One direction between two endpoints.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

/// How long TCP waits before it sends a lost packet again, at first; twice as long every further time.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// A packet is lost so many times in a row at most.
const MOST_LOSSES: u32 = 5;

/// What makes bytes late. They stay in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Weather {
    /// How late every piece is, by lot.
    pub delay: RangeInclusive<Duration>,
    /// The share of pieces that are lost, 0 to 1. Who speaks TCP never sees a loss but the wait until the piece is sent again: that is what is
    /// done here.
    pub loss: f64,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay: Duration::ZERO..=Duration::ZERO, loss: 0.0 }
    }
}

/// What has happened to what one endpoint sent to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes that came to a cut and waited there. What is sent behind them stays with the sender and is not counted.
    pub held_bytes: u64,
    /// Connections that were not made while there was a cut.
    pub held_connections: u64,
    /// Pieces that were late.
    pub delayed: u64,
    /// Connections that were reset.
    pub resets: u64,
}

impl Counts {
    /// What has happened since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            held_bytes: self.held_bytes - before.held_bytes,
            held_connections: self.held_connections - before.held_connections,
            delayed: self.delayed - before.delayed,
            resets: self.resets - before.resets,
        }
    }

    /// Both directions together.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            held_bytes: self.held_bytes + other.held_bytes,
            held_connections: self.held_connections + other.held_connections,
            delayed: self.delayed + other.delayed,
            resets: self.resets + other.resets,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Link {
    cut: watch::Sender<bool>,
    weather: watch::Sender<Weather>,
    /// How often its connections were reset.
    resets: watch::Sender<u64>,
    pub(super) bytes: AtomicU64,
    held_bytes: AtomicU64,
    held_connections: AtomicU64,
    delayed: AtomicU64,
    reset_connections: AtomicU64,
}

impl Link {
    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    pub(super) fn heal(&self) {
        self.cut(false);
        self.set_weather(Weather::default());
    }

    pub(super) fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    pub(super) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }

    /// Waits while the link is cut.
    pub(super) async fn opened(&self) {
        // The sender is this link's own and outlives the wait.
        let _ = self.cut.subscribe().wait_for(|cut| !cut).await;
    }

    /// Waits while the link is cut, with so many bytes at hand.
    pub(super) async fn pass(&self, bytes: usize) {
        if self.is_cut() {
            self.held_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.opened().await;
        }
    }

    pub(super) fn hold_connection(&self) {
        self.held_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Hears of the next reset.
    pub(super) fn resets(&self) -> watch::Receiver<u64> {
        self.resets.subscribe()
    }

    pub(super) fn count_reset(&self) {
        self.reset_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// When a piece of now arrives, never before the one ahead of it.
    pub(super) fn due(&self, rng: &mut StdRng, ahead: Instant) -> Instant {
        let (delay, loss) = {
            let weather = self.weather.borrow();
            (weather.delay.clone(), weather.loss)
        };
        let mut wait = if delay.end().is_zero() { Duration::ZERO } else { rng.random_range(delay) };
        let mut again = RETRANSMISSION;
        let mut losses = 0;
        while loss > 0.0 && losses < MOST_LOSSES && rng.random_bool(loss.min(1.0)) {
            wait += again;
            again *= 2;
            losses += 1;
        }
        if !wait.is_zero() {
            self.delayed.fetch_add(1, Ordering::Relaxed);
        }
        ahead.max(Instant::now() + wait)
    }

    pub(super) fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            bytes: get(&self.bytes),
            held_bytes: get(&self.held_bytes),
            held_connections: get(&self.held_connections),
            delayed: get(&self.delayed),
            resets: get(&self.reset_connections),
        }
    }
}
