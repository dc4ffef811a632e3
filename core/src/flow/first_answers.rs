//! How long first answers take, and from when on one is late.

use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// The mean and the mean deviation of the time between the opening of a flow and its first answer,
/// as TCP smooths round-trip times (RFC 6298).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct FirstAnswers {
    /// Zero while there was none.
    mean: Duration,
    deviation: Duration,
    /// How many flows have made room before their answer, since an answer came last.
    evicted: u32,
}

/// No answer is late before this: it is more than the jitter of a busy host.
pub(crate) const MIN_ANSWER_TIMEOUT: Duration = Duration::from_millis(10);

/// Any answer is late after this.
pub(crate) const MAX_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// By how much longer to wait for every time that all flows that may wait have made room since an
/// answer came last. Flows that end too early tell nothing of how long their answers would have
/// taken: if answers become slower than what is waited for, this finds out.
const EXTRA_PER_ROUND: Duration = Duration::from_millis(10);

impl FirstAnswers {
    /// The same, if it can be: what a snapshot says is not believed.
    pub(crate) fn restored(self) -> Self {
        let Self { mean, deviation, evicted } = self;
        let [mean, deviation] = [mean, deviation].map(|part| part.min(MAX_ANSWER_TIMEOUT));
        Self { mean, deviation, evicted }
    }

    /// Takes in the first answer to a flow. One that took longer than the maximum counts as that.
    pub(crate) fn record(&mut self, opened: Instant, now: Instant) {
        let took = (now - opened).clamp(Duration::from_micros(1), MAX_ANSWER_TIMEOUT);
        self.evicted = 0;
        if self.mean.is_zero() {
            (self.mean, self.deviation) = (took, took / 2);
            return;
        }
        let error = self.mean.abs_diff(took);
        self.deviation = self.deviation * 3 / 4 + error / 4;
        self.mean = self.mean * 7 / 8 + took / 8;
    }

    /// Takes in that a flow has made room before it had an answer.
    pub(crate) const fn record_evicted(&mut self) {
        self.evicted = self.evicted.saturating_add(1);
    }

    /// How long to wait for a first answer before it is late, where this many flows may wait. While
    /// there was none, little says that there will be one.
    pub(crate) fn timeout(self, waiting_room: u32) -> Duration {
        let known = if self.mean.is_zero() {
            Duration::ZERO
        } else {
            (self.mean + self.deviation * 4).max(MIN_ANSWER_TIMEOUT)
        };
        let extra = EXTRA_PER_ROUND.saturating_mul(self.evicted) / waiting_room.max(1);
        (known + extra).min(MAX_ANSWER_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: impl IntoIterator<Item = u64>) -> Duration {
        let mut answers = FirstAnswers::default();
        for millis in samples {
            answers.record(Instant::ORIGIN, Instant::from_millis(millis));
        }
        answers.timeout(100)
    }

    #[test]
    fn without_any_answer_none_is_waited_for() {
        assert_eq!(after([]), Duration::ZERO);
    }

    #[test]
    fn steady_answers_are_waited_for_little_longer_than_they_take() {
        let timeout = after([200; 50]);
        assert!((200..=210).contains(&timeout.as_millis()), "{timeout:?}");
    }

    #[test]
    fn answers_that_vary_are_waited_for_longer_than_most_take() {
        let timeout = after((0..200).map(|n| if n % 4 == 0 { 150 } else { 10 }));
        assert!(timeout.as_millis() >= 150, "{timeout:?}");
    }

    #[test]
    fn whoever_evicts_too_early_finds_out() {
        let mut answers = FirstAnswers::default();
        for _ in 0..2_100 {
            answers.record_evicted();
        }
        assert!(answers.timeout(100) > Duration::from_millis(200));
        answers.record(Instant::ORIGIN, Instant::from_millis(200));
        assert_eq!(answers.timeout(100), Duration::from_millis(600));
    }

    #[test]
    fn no_answer_is_waited_for_longer_than_a_second() {
        assert_eq!(after([86_400_000; 3]), MAX_ANSWER_TIMEOUT);
        assert_eq!(after([0; 9]), MIN_ANSWER_TIMEOUT);
    }
}
