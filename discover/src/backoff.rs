//! How long to wait before something that failed is tried again.

use std::time::Duration;

const MIN_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// Waits that double with each failure, up to half a minute, and of which no two are alike: many
/// that lost the same server do not come back to it at the same time.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It failed once more: how long to wait.
    pub fn failed(&mut self) -> Duration {
        let doubled = MIN_DELAY.saturating_mul(1 << self.failures.min(10)).min(MAX_DELAY);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked.
    pub fn worked(&mut self) {
        self.failures = 0;
    }

    /// How many times in a row it has failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew_once_it_worked() {
        let mut backoff = Backoff::default();
        for expected in [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let wait = backoff.failed().as_millis();
            assert!((expected / 2..=expected).contains(&wait), "{wait} is not about {expected}");
        }
        backoff.worked();
        assert!(backoff.failed() <= MIN_DELAY);
    }
}
