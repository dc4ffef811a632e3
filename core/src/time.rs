//! A point in time, as the caller tells it.

use core::ops::{Add, AddAssign, Sub};
use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds since an origin that the caller chooses.
///
/// The core never reads a clock. The shell counts from the start of its process on
/// `CLOCK_MONOTONIC`; a test counts from wherever it likes. Two instants can be compared only
/// when they come from the same origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Instant(u64);

impl Instant {
    /// The origin itself.
    pub const ORIGIN: Self = Self(0);

    /// The last representable instant, 584 years after the origin.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the origin, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time from `earlier` to `self`; zero when `earlier` is in fact later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Saturates at [`Instant::FAR_FUTURE`], so that an absurd timeout means "never" rather than a panic.
impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_durations_add_up_and_never_overflow() {
        let mut now = Instant::from_millis(5);
        now += Duration::from_nanos(7);
        assert_eq!(now, Instant::from_nanos(5_000_007));
        assert_eq!(now - Instant::from_millis(5), Duration::from_nanos(7));
        assert_eq!(Instant::from_millis(5) - now, Duration::ZERO, "later than it");
        assert_eq!(Instant::FAR_FUTURE + Duration::from_secs(1), Instant::FAR_FUTURE);
        assert_eq!(Instant::ORIGIN + Duration::MAX, Instant::FAR_FUTURE);
        assert_eq!((now.as_nanos(), now.as_millis()), (5_000_007, 5));
    }
}
