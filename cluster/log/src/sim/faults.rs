//! What can go wrong, how often it should, and how often it did.

use std::time::Duration;

/// Something that goes wrong with an append, a read or a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An append, or the rest of it, never lands; its outcome stays unknown.
    Lost,
    /// An append takes so long that later ones of the same process overtake it.
    Delayed,
    /// An append lands twice.
    Duplicated,
    /// An append, or the rest of it, times out and lands afterwards.
    LandedLate,
    /// An append lands in time and its acknowledgement is lost.
    AnswerLost,
    /// A process stands still; what it had sent lands when it goes on, when others may have taken over.
    Zombie,
    /// A read does not see what landed last.
    StaleRead,
    /// A process dies; half of what it had sent lands all the same.
    Crash,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::Delayed,
        Self::Duplicated,
        Self::LandedLate,
        Self::AnswerLost,
        Self::Zombie,
        Self::StaleRead,
        Self::Crash,
    ];

    /// Those that befall an append, at most one at a time.
    pub(super) const OF_APPENDS: [Self; 6] =
        [Self::Lost, Self::Delayed, Self::Duplicated, Self::LandedLate, Self::AnswerLost, Self::Zombie];
}

/// How often each fault befalls an append or a read. Crashes are not drawn, they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    per_mille: [u16; Fault::ALL.len()],
    /// The longest way from a process to the log or back, where nothing goes wrong.
    pub(super) latency: Duration,
}

impl Faults {
    /// Nothing goes wrong and nothing takes time.
    pub const NONE: Self = Self { per_mille: [0; Fault::ALL.len()], latency: Duration::ZERO };

    /// Every fault befalls this many of 1,000 appends or reads; a way takes up to 5 ms.
    pub const fn each(per_mille: u16) -> Self {
        Self { per_mille: [per_mille; Fault::ALL.len()], latency: Duration::from_millis(5) }
    }

    /// The same, with another rate for one fault.
    #[must_use]
    pub const fn with(mut self, fault: Fault, per_mille: u16) -> Self {
        self.per_mille[fault as usize] = per_mille;
        self
    }

    /// How many of 1,000 it befalls.
    pub(super) fn rate(&self, fault: Fault) -> u16 {
        self.per_mille[fault as usize]
    }
}

/// How often each fault happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl FaultCounts {
    /// How often this one happened.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub(super) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }
}
