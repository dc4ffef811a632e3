//! How fast sources may do something.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Sizes, hash};
use crate::time::Instant;

/// How fast each source may do something: a leaky bucket of one second's worth for each, by the
/// generic cell rate algorithm (ITU-T I.371), which needs one word a bucket.
///
/// A source that has just lost its last flow must still be known, and forged sources come by the
/// million, so a source that is new to its set of buckets takes the emptiest of them over. Anyone who
/// is too fast keeps its own full, so that it stays known; and nobody is ever refused for what
/// others do, however many there are.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    /// Sets of [`BUCKETS_OF_SET`].
    pub(super) buckets: Vec<Bucket>,
    per_second: u64,
    pub(super) keys: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Whose it is.
    pub(super) fingerprint: u32,
    /// The time at which it will have run empty.
    pub(super) empty_at: Instant,
}

/// How full the bucket of a source is, and where it is or would be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    bucket: Bucket,
    index: usize,
    /// What is free of it.
    room: Duration,
}

/// How much may come at once: one second's worth.
const CAPACITY: Duration = Duration::from_secs(1);

/// How many sources of one hash are told apart.
const BUCKETS_OF_SET: usize = 4;

impl Rate {
    /// At most `per_second`, which is not zero.
    pub(super) fn new(per_second: u64, max_flows: usize, keys: (u64, u64)) -> Self {
        Self::with_buckets(vec![Bucket::EMPTY; Self::buckets_for(max_flows)], per_second, keys)
    }

    /// The same with buckets that are there already: some sets of them.
    pub(super) const fn with_buckets(
        buckets: Vec<Bucket>,
        per_second: u64,
        keys: (u64, u64),
    ) -> Self {
        Self { buckets, per_second, keys }
    }

    pub(super) fn buckets_for(max_flows: usize) -> usize {
        max_flows.max(1_024).next_power_of_two() * 2
    }

    /// Whether a source may do one more, and if so counts it.
    pub(super) fn admit(&mut self, source: u128, now: Instant) -> bool {
        let level = self.level(source, now);
        let sizes = Sizes { count: 1, each: 1, last: 1 };
        let fits = self.fits(&level, sizes) > 0;
        if fits {
            self.fill(level, sizes);
        }
        fits
    }

    pub(super) fn level(&self, source: u128, now: Instant) -> Level {
        let hash = hash(source, self.keys);
        let first = hash as usize % (self.buckets.len() / BUCKETS_OF_SET) * BUCKETS_OF_SET;
        let fingerprint = (hash >> 32) as u32;
        let set = &self.buckets[first..first + BUCKETS_OF_SET];
        let own = set.iter().position(|bucket| bucket.fingerprint == fingerprint);
        let empty_at = own.map_or(now, |own| set[own].empty_at.max(now));
        let emptiest = || (0..BUCKETS_OF_SET).min_by_key(|&at| set[at].empty_at).unwrap_or(0);
        Level {
            bucket: Bucket { fingerprint, empty_at },
            index: first + own.unwrap_or_else(emptiest),
            room: CAPACITY.saturating_sub(empty_at - now),
        }
    }

    /// How many of some things a source may still do. One that is worth more than a second goes
    /// into an empty bucket, and over its rim: the source has to wait for so much longer.
    pub(super) fn fits(&self, level: &Level, sizes: Sizes) -> u16 {
        let (room, each) = (level.room, self.cost(sizes.each).min(CAPACITY));
        let before_last = sizes.count - 1;
        let room_for = (room.as_nanos() as u64).checked_div(each.as_nanos() as u64);
        let fitting = room_for.map_or(before_last, |fitting| {
            u16::try_from(fitting).map_or(before_last, |fitting| fitting.min(before_last))
        });
        let is_last_next = fitting == before_last;
        let left = room.saturating_sub(each * u32::from(fitting));
        fitting + u16::from(is_last_next && self.cost(sizes.last).min(CAPACITY) <= left)
    }

    /// Counts what a source does: what fits, or nothing.
    pub(super) fn fill(&mut self, level: Level, sizes: Sizes) {
        let Some(before_last) = sizes.count.checked_sub(1) else { return };
        let amount = self.cost(sizes.each) * u32::from(before_last) + self.cost(sizes.last);
        let Level { bucket, index, .. } = level;
        self.buckets[index] = Bucket { empty_at: bucket.empty_at + amount, ..bucket };
    }

    /// How long it takes to run out again.
    fn cost(&self, amount: u16) -> Duration {
        const NANOS: u64 = CAPACITY.as_nanos() as u64;
        Duration::from_nanos(u64::from(amount) * NANOS / self.per_second)
    }
}

impl Bucket {
    pub(super) const EMPTY: Self = Self { fingerprint: 0, empty_at: Instant::ORIGIN };
}
