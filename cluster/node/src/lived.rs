//! Time as this process lived it.

use std::time::Duration;

/// A clock that counts only the time in which this process ran.
///
/// It is told what some steady clock shows, at every tick. A step longer than `longest_step` means that the process was stopped, or the clock
/// was set: nothing that could have been heard meanwhile was heard, so it counts as one longest step and no more. A clock that goes back or
/// stands still adds nothing. What is measured on this clock therefore cannot run out while nobody looks.
#[derive(Debug, Clone)]
pub struct LivedTime {
    longest_step: Duration,
    last: Option<Duration>,
    lived: Duration,
    pauses: u64,
}

impl LivedTime {
    /// A clock at zero that will be told the time more often than once in `longest_step`.
    pub fn new(longest_step: Duration) -> Self {
        Self { longest_step, last: None, lived: Duration::ZERO, pauses: 0 }
    }

    /// Takes in that it is `now`, and says how long the process has lived.
    pub fn advance(&mut self, now: Duration) -> Duration {
        let step = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        self.last = Some(now);
        self.pauses += u64::from(step > self.longest_step);
        self.lived += step.min(self.longest_step);
        self.lived
    }

    /// How long the process had lived when the clock was last told the time.
    pub fn lived(&self) -> Duration {
        self.lived
    }

    /// How many steps were too long.
    pub fn pauses(&self) -> u64 {
        self.pauses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lived_time_counts() {
        let mut clock = LivedTime::new(Duration::from_millis(500));
        let lived = [7_000, 7_100, 7_600, 67_600, 67_700, 3_000, 3_000, 3_200]
            .map(|now| clock.advance(Duration::from_millis(now)));
        assert_eq!(lived.map(|lived| lived.as_millis()), [0, 100, 600, 1_100, 1_200, 1_200, 1_200, 1_400]);
        assert_eq!(clock.pauses(), 1);
    }
}
