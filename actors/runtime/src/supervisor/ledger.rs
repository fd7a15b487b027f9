use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How often a child may be restarted, and how long each restart waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The most restarts within `within`; the next failure is final.
    pub max_restarts: usize,
    /// The window that restarts are counted in.
    pub within: Duration,
    /// The wait before the first restart of a window; each further one doubles it.
    pub first_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            within: Duration::from_secs(60),
            first_delay: Duration::from_millis(50),
            max_delay: Duration::from_secs(5),
        }
    }
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    RestartAfter(Duration),
    GiveUp,
}

/// The failures of one child. Bound: `max_restarts` instants.
#[derive(Debug, Clone, Default)]
pub(crate) struct RestartLedger(VecDeque<Instant>);

impl RestartLedger {
    /// Enters a failure and decides.
    pub(crate) fn on_failure(&mut self, policy: &RestartPolicy, now: Instant) -> Verdict {
        while self.0.front().is_some_and(|earlier| now.duration_since(*earlier) >= policy.within) {
            self.0.pop_front();
        }
        if self.0.len() >= policy.max_restarts {
            return Verdict::GiveUp;
        }
        let doublings = u32::try_from(self.0.len()).unwrap_or(u32::MAX).min(16);
        self.0.push_back(now);
        Verdict::RestartAfter(policy.first_delay.saturating_mul(1 << doublings).min(policy.max_delay))
    }

    /// How many restarts the window holds.
    pub(crate) fn restarts(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        max_restarts: 3,
        within: Duration::from_secs(10),
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_millis(300),
    };

    #[test]
    fn restarts_wait_longer_each_time_and_end() {
        let mut ledger = RestartLedger::default();
        let now = Instant::now();
        let verdicts: Vec<_> = (0..4).map(|_| ledger.on_failure(&POLICY, now)).collect();
        let waits = [100, 200, 300].map(|ms| Verdict::RestartAfter(Duration::from_millis(ms)));
        assert_eq!(verdicts[..3], waits);
        assert_eq!(verdicts[3], Verdict::GiveUp);
    }

    #[test]
    fn a_failure_long_ago_does_not_count() {
        let mut ledger = RestartLedger::default();
        let now = Instant::now();
        for second in 0..30 {
            let verdict = ledger.on_failure(&POLICY, now + Duration::from_secs(4 * second));
            assert_ne!(verdict, Verdict::GiveUp, "failure {second}");
        }
    }
}
