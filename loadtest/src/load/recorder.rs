//! Takes down what clients do and see.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::history::{self, Event, EventKind};

/// A history while it is made.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    events: Vec<Event>,
    /// Messages that were acknowledged and not answered yet.
    open: HashSet<String>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// An empty history; its clock starts now.
    pub fn new() -> Self {
        Self { start: Instant::now(), noted: Mutex::default() }
    }

    /// The history's clock, in microseconds.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How long the history's clock has run.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event of this moment.
    pub fn note(&self, client: u32, session: &str, message: &str, kind: EventKind) {
        let mut noted = self.noted();
        match &kind {
            EventKind::Acknowledged { .. } => drop(noted.open.insert(message.to_owned())),
            EventKind::Replied { .. } | EventKind::Failed { .. } => drop(noted.open.remove(message)),
            _ => {}
        }
        // Under the lock, so that events are in the order of their times.
        let at_us = self.now_us();
        noted.events.push(Event { at_us, client, session: session.to_owned(), message: message.to_owned(), kind });
    }

    /// How many turns are between their acknowledgement and their reply, as the clients see it.
    pub fn open_turns(&self) -> usize {
        self.noted().open.len()
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.noted().events.clone()
    }

    /// Writes all events so far into a file, a line each.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let mut sink = BufWriter::new(File::create(file)?);
        for event in self.events() {
            history::write(&mut sink, &event)?;
        }
        sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_open_between_acknowledgement_and_reply() {
        let recorder = Recorder::new();
        let turn = || "t".to_owned();
        let steps = [
            (EventKind::Invoked, 0),
            (EventKind::Acknowledged { turn: turn() }, 1),
            (EventKind::Unknown { reason: "reset".into() }, 1),
            (EventKind::Replied { turn: turn(), text: String::new() }, 0),
        ];
        for (kind, open) in steps {
            recorder.note(1, "s", "m", kind);
            assert_eq!(recorder.open_turns(), open);
        }
        let times: Vec<u64> = recorder.events().iter().map(|event| event.at_us).collect();
        assert!(times.is_sorted(), "{times:?}");
    }
}
