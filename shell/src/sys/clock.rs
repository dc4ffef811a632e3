//! The one place where a clock is read.

use std::io;
use std::time::Duration;

use flowgate_core::Instant;

/// The monotonic clock (`CLOCK_MONOTONIC`), counted from when it was made. It stands still while
/// the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What the system's clock said then, which is the same for all processes.
    origin: Duration,
}

impl Clock {
    /// A clock that reads [`Instant::ORIGIN`] now.
    pub fn start() -> Self {
        Self { origin: monotonic() }
    }

    /// The clock of another process of this machine, which says what its [`origin`](Self::origin)
    /// is: the two read the same.
    pub const fn with_origin(origin: Duration) -> Self {
        Self { origin }
    }

    /// What the system's clock said when this one read [`Instant::ORIGIN`].
    pub const fn origin(&self) -> Duration {
        self.origin
    }

    /// What it reads now.
    pub fn now(&self) -> Instant {
        Instant::ORIGIN + self.uptime()
    }

    /// How long ago it was started.
    pub fn uptime(&self) -> Duration {
        monotonic().saturating_sub(self.origin)
    }

    /// The time of day: how long ago 1970 began (UTC). It may jump; only for people to read.
    pub fn unix_time(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}

/// A moment after which nobody waits any longer.
#[derive(Clone, Copy, Debug)]
pub struct IoDeadline {
    clock: Clock,
    limit: Duration,
}

impl IoDeadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self { clock: Clock::start(), limit }
    }

    /// What is left until then, never zero: a socket takes no zero for a timeout.
    ///
    /// # Errors
    ///
    /// `TimedOut` once it is over.
    pub fn left(&self) -> io::Result<Duration> {
        match self.limit.checked_sub(self.clock.uptime()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Since some moment, usually the start of the machine.
#[cfg(unix)]
fn monotonic() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    // Every kernel has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Since some moment, which another process does not know.
#[cfg(not(unix))]
fn monotonic() -> Duration {
    static FIRST: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    FIRST.elapsed()
}
