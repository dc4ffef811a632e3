//! How long first answers take, in buckets.

use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

const fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// The longest times of all buckets but the last, which has no end.
pub const BOUNDS: [Duration; 13] = [
    micros(500),
    micros(1_000),
    micros(2_500),
    micros(5_000),
    micros(10_000),
    micros(25_000),
    micros(50_000),
    micros(100_000),
    micros(250_000),
    micros(500_000),
    micros(1_000_000),
    micros(2_500_000),
    micros(5_000_000),
];

/// How many flows had their first answer within which time since they opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct AnswerTimes {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl AnswerTimes {
    /// Counts a first answer that came after this time.
    pub(crate) fn record(&mut self, took: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| bound < took);
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
        self.sum = self.sum.saturating_add(took);
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many took at most so long: for each of [`BOUNDS`], and without one for all.
    pub fn cumulated(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS.into_iter().map(Some).chain([None]);
        bounds.zip(self.counts).scan(0_u64, |sum, (bound, count)| {
            *sum = sum.saturating_add(count);
            Some((bound, *sum))
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How long all of them took together.
    pub const fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_is_long_enough() {
        let mut times = AnswerTimes::default();
        let took = [0, 500, 501, 2_500, 60_000_000].map(micros);
        took.into_iter().for_each(|took| times.record(took));
        let mut other = AnswerTimes::default();
        other.record(micros(1_000));
        times.add(&other);
        let cumulated: std::vec::Vec<u64> = times.cumulated().map(|(_, count)| count).collect();
        assert_eq!(cumulated, [2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6]);
        assert_eq!(times.cumulated().last(), Some((None, 6)));
        assert_eq!((times.count(), times.sum()), (6, micros(60_004_501)));
    }
}
