//! The simulated log as a plain machine: calls and time in, answers out.
//!
//! ```text
//!               way there          way back
//!   append ───────────────▶ lands ──────────▶ answer        nothing goes wrong
//!          ─────────────────────────────────▶ unknown       Lost
//!          ───────────────▶ lands  ·········▶ unknown       AnswerLost
//!          ─────────────────────────────────▶ unknown ───▶ lands       LandedLate
//!          ───────────────▶ lands ──────────▶ answer  ───▶ lands       Duplicated
//! ```

use std::{collections::BTreeMap, ops::Range, time::Duration};

use bytes::Bytes;
use parlance_cluster_protocol::{Offset, ShardId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Fault, FaultCounts, Faults};
use crate::{AppendOutcome, Bounds, LogError, MAX_ENTRY_BYTES, StoredEntry};

/// When an append without an answer is given up: its outcome is unknown.
pub(super) const TIME_OUT: Duration = Duration::from_millis(100);
/// How long a delayed append takes. The longest one is still answered in time.
const DELAY_MS: Range<u64> = 10..80;
/// How long after its time-out, or after its first landing, an append lands.
const LATE_MS: Range<u64> = 0..400;
/// How long a zombie stands still.
const PAUSE_MS: Range<u64> = 120..600;
/// How many entries a stale read misses at most.
const STALE_ENTRIES: u64 = 8;

/// Names a process that uses the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(usize);

/// Names an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppendId(u64);

/// What a process is told of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who is told.
    pub client: ClientId,
    /// The append.
    pub append: AppendId,
    /// One per entry, in order.
    pub outcomes: Vec<AppendOutcome>,
}

#[derive(Debug, Default)]
struct Shard {
    start: u64,
    /// Those from `start` on.
    entries: Vec<Bytes>,
}

#[derive(Debug, Default)]
struct Client {
    crashed: bool,
    paused_until: Duration,
    /// When the latest of its undisturbed appends lands and is answered: they keep their order.
    last_landing: Duration,
    last_answer: Duration,
}

#[derive(Debug)]
struct Event {
    client: ClientId,
    kind: EventKind,
}

#[derive(Debug)]
enum EventKind {
    /// Entries reach the log. `first` is the number of the first one within its append.
    Land {
        append: AppendId,
        shard: ShardId,
        first: usize,
        entries: Vec<Bytes>,
    },
    Answer {
        append: AppendId,
        lost: bool,
    },
}

/// A log of some shards, its clock, and what is under way to it and from it.
#[derive(Debug)]
pub struct SimCore {
    rng: StdRng,
    faults: Faults,
    counts: FaultCounts,
    now: Duration,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    /// What will happen, by time and then by the order of asking. Bound: the callers bound their appends in flight.
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    next_append: u64,
    /// What is known of the appends that were not answered.
    unanswered: BTreeMap<AppendId, Vec<AppendOutcome>>,
}

impl SimCore {
    /// An empty log. Its clock stands at 0.
    pub fn new(seed: u64, shards: u16, faults: Faults) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            faults,
            counts: FaultCounts::default(),
            now: Duration::ZERO,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            clients: Vec::new(),
            events: BTreeMap::new(),
            next_event: 0,
            next_append: 0,
            unanswered: BTreeMap::new(),
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shards.len() as u16
    }

    /// What went wrong so far.
    pub fn counts(&self) -> FaultCounts {
        self.counts
    }

    /// Draws faults at other rates from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// A new process.
    pub fn connect(&mut self) -> ClientId {
        self.clients.push(Client::default());
        ClientId(self.clients.len() - 1)
    }

    /// The process stands still for a while: nothing that it sent lands, nothing reaches it.
    pub fn pause(&mut self, client: ClientId, pause: Duration) {
        self.counts.count(Fault::Zombie);
        let client = &mut self.clients[client.0];
        client.paused_until = client.paused_until.max(self.now + pause);
    }

    /// Whether the process stands still.
    pub fn is_paused(&self, client: ClientId) -> bool {
        self.clients[client.0].paused_until > self.now
    }

    /// The process dies. Half of what it had sent lands; nothing is answered.
    pub fn crash(&mut self, client: ClientId) {
        self.counts.count(Fault::Crash);
        self.clients[client.0].crashed = true;
        let rng = &mut self.rng;
        let unanswered = &mut self.unanswered;
        self.events.retain(|_, event| match &event.kind {
            _ if event.client != client => true,
            EventKind::Land { .. } => rng.random_bool(0.5),
            EventKind::Answer { append, .. } => {
                unanswered.remove(append);
                false
            }
        });
    }

    /// Whether the append will be answered.
    pub fn is_unanswered(&self, append: AppendId) -> bool {
        self.unanswered.contains_key(&append)
    }

    /// Whether the process was crashed.
    pub fn is_crashed(&self, client: ClientId) -> bool {
        self.clients[client.0].crashed
    }

    /// Sends entries on their way. The answer comes out of [`advance`](Self::advance), unless the process crashes.
    pub fn append(&mut self, client: ClientId, shard: ShardId, entries: Vec<Bytes>) -> AppendId {
        let append = AppendId(self.next_append);
        self.next_append += 1;
        if self.clients[client.0].crashed {
            return append;
        }
        self.unanswered.insert(append, vec![AppendOutcome::Unknown; entries.len()]);
        if usize::from(shard.0) < self.shards.len() {
            self.draw_fate(client, append, shard, entries);
        } else {
            self.schedule(self.now, client, EventKind::Answer { append, lost: true });
        }
        append
    }

    fn draw_fate(&mut self, client: ClientId, append: AppendId, shard: ShardId, mut entries: Vec<Bytes>) {
        let fault = self.draw_append_fault();
        if let Some(fault) = fault {
            self.counts.count(fault);
        }
        let land = |first, entries| EventKind::Land { append, shard, first, entries };
        let answer = EventKind::Answer { append, lost: false };
        let given_up = self.now + TIME_OUT;
        match fault {
            None => {
                let landing = self.land_in_order(client, land(0, entries));
                self.answer_in_order(client, landing, answer);
            }
            Some(Fault::Duplicated) => {
                let landing = self.land_in_order(client, land(0, entries.clone()));
                self.answer_in_order(client, landing, answer);
                let again = landing + self.draw(LATE_MS);
                self.schedule(again, client, land(0, entries));
            }
            Some(Fault::Delayed) => {
                let landing = self.now + self.draw(DELAY_MS);
                self.schedule(landing, client, land(0, entries));
                let back = landing + self.draw_latency();
                self.schedule(back, client, answer);
            }
            Some(Fault::AnswerLost) => {
                self.land_in_order(client, land(0, entries));
                self.schedule(given_up, client, EventKind::Answer { append, lost: true });
            }
            Some(fault @ (Fault::Lost | Fault::LandedLate)) => {
                let cut = self.rng.random_range(0..=entries.len().saturating_sub(1));
                let rest = entries.split_off(cut);
                self.land_in_order(client, land(0, entries));
                self.schedule(given_up, client, answer);
                if fault == Fault::LandedLate {
                    let late = given_up + self.draw(LATE_MS);
                    self.schedule(late, client, land(cut, rest));
                }
            }
            Some(Fault::Zombie | Fault::StaleRead | Fault::Crash) => {
                let pause = self.draw(PAUSE_MS);
                let sleeper = &mut self.clients[client.0];
                sleeper.paused_until = sleeper.paused_until.max(self.now + pause);
                let landing = self.land_in_order(client, land(0, entries));
                self.answer_in_order(client, landing, answer);
            }
        }
    }

    fn draw_append_fault(&mut self) -> Option<Fault> {
        let mut drawn = self.rng.random_range(0..1000_u16);
        Fault::OF_APPENDS.into_iter().find(|fault| {
            let rate = self.faults.rate(*fault);
            let hit = drawn < rate;
            drawn = drawn.wrapping_sub(rate);
            hit
        })
    }

    fn draw(&mut self, milliseconds: Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(milliseconds))
    }

    fn draw_latency(&mut self) -> Duration {
        let longest = self.faults.latency.as_micros() as u64;
        Duration::from_micros(self.rng.random_range(0..=longest))
    }

    fn land_in_order(&mut self, client: ClientId, event: EventKind) -> Duration {
        let landing = (self.now + self.draw_latency()).max(self.clients[client.0].last_landing);
        self.clients[client.0].last_landing = landing;
        self.schedule(landing, client, event);
        landing
    }

    fn answer_in_order(&mut self, client: ClientId, landing: Duration, event: EventKind) {
        let answer = (landing + self.draw_latency()).max(self.clients[client.0].last_answer);
        self.clients[client.0].last_answer = answer;
        self.schedule(answer, client, event);
    }

    fn schedule(&mut self, at: Duration, client: ClientId, kind: EventKind) {
        self.events.insert((at, self.next_event), Event { client, kind });
        self.next_event += 1;
    }

    /// When something will happen next.
    pub fn next_due(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets everything happen that is due up to `now`, and moves the clock there.
    pub fn advance(&mut self, now: Duration) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(first) = self.events.first_entry() {
            let (at, order) = *first.key();
            if at > now {
                break;
            }
            self.now = self.now.max(at);
            let event = first.remove();
            let paused_until = self.clients[event.client.0].paused_until;
            if paused_until > at {
                self.events.insert((paused_until, order), event);
            } else {
                answers.extend(self.happen(event));
            }
        }
        self.now = self.now.max(now);
        answers
    }

    fn happen(&mut self, Event { client, kind }: Event) -> Option<Answer> {
        match kind {
            EventKind::Land { append, shard, first, entries } => {
                for (index, entry) in (first..).zip(entries) {
                    self.land(append, shard, index, entry);
                }
                None
            }
            EventKind::Answer { append, lost } => {
                let mut outcomes = self.unanswered.remove(&append)?;
                if lost {
                    outcomes.fill(AppendOutcome::Unknown);
                }
                Some(Answer { client, append, outcomes })
            }
        }
    }

    fn land(&mut self, append: AppendId, shard: ShardId, index: usize, entry: Bytes) {
        if entry.len() > MAX_ENTRY_BYTES {
            return;
        }
        let shard = &mut self.shards[usize::from(shard.0)];
        let offset = Offset(shard.start + shard.entries.len() as u64);
        shard.entries.push(entry);
        let outcome = self.unanswered.get_mut(&append).map(|outcomes| &mut outcomes[index]);
        if let Some(outcome @ AppendOutcome::Unknown) = outcome {
            *outcome = AppendOutcome::At(offset);
        }
    }

    /// See [`ShardLog::read`](crate::ShardLog::read).
    ///
    /// # Errors
    ///
    /// [`LogError::OutOfRange`]; [`LogError::Closed`] for a crashed process or a shard that does not exist.
    pub fn read(
        &mut self,
        client: ClientId,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let Bounds { start, end } = self.bounds(client, shard)?;
        if !(start..=end).contains(&from) {
            return Err(LogError::OutOfRange { shard, offset: from });
        }
        let seen = self.draw_end(end).max(from);
        let entries = &self.shards[usize::from(shard.0)].entries;
        let entries = &entries[(from.0 - start.0) as usize..(seen.0 - start.0) as usize];
        let mut bytes = 0;
        let wanted = entries.iter().take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.len().max(1);
            is_first || bytes <= max_bytes
        });
        Ok((from.0..).zip(wanted).map(|(at, entry)| StoredEntry { offset: Offset(at), bytes: entry.clone() }).collect())
    }

    /// The end of the log as a read sees it.
    fn draw_end(&mut self, end: Offset) -> Offset {
        if self.rng.random_range(0..1000_u16) >= self.faults.rate(Fault::StaleRead) {
            return end;
        }
        self.counts.count(Fault::StaleRead);
        Offset(end.0.saturating_sub(self.rng.random_range(1..=STALE_ENTRIES)))
    }

    /// See [`ShardLog::bounds`](crate::ShardLog::bounds).
    ///
    /// # Errors
    ///
    /// [`LogError::Closed`] for a crashed process or a shard that does not exist.
    pub fn bounds(&self, client: ClientId, shard: ShardId) -> Result<Bounds, LogError> {
        let shard =
            self.shards.get(usize::from(shard.0)).filter(|_| !self.is_crashed(client)).ok_or(LogError::Closed)?;
        Ok(Bounds { start: Offset(shard.start), end: Offset(shard.start + shard.entries.len() as u64) })
    }

    /// See [`ShardLog::trim`](crate::ShardLog::trim).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn trim(&mut self, client: ClientId, shard: ShardId, before: Offset) -> Result<(), LogError> {
        let Bounds { start, end } = self.bounds(client, shard)?;
        if before > end {
            return Err(LogError::OutOfRange { shard, offset: before });
        }
        let forgotten = before.0.saturating_sub(start.0);
        let shard = &mut self.shards[usize::from(shard.0)];
        shard.entries.drain(..forgotten as usize);
        shard.start += forgotten;
        Ok(())
    }

    /// Everything that the shard holds from `from` on, whoever asks and without faults: for checks.
    pub fn entries(&self, shard: ShardId, from: Offset) -> Vec<StoredEntry> {
        let Some(shard) = self.shards.get(usize::from(shard.0)) else { return Vec::new() };
        let skipped = from.0.saturating_sub(shard.start) as usize;
        (shard.start..)
            .zip(&shard.entries)
            .skip(skipped)
            .map(|(at, entry)| StoredEntry { offset: Offset(at), bytes: entry.clone() })
            .collect()
    }
}
