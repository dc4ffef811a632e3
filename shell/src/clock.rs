//! The one place where a clock is read.

use std::time::Duration;

use flowgate_core::Instant;

/// The monotonic clock (`CLOCK_MONOTONIC`), counted from when it was made. It stands still while
/// the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock that reads [`Instant::ORIGIN`] now.
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// What it reads now.
    pub fn now(&self) -> Instant {
        Instant::ORIGIN + self.uptime()
    }

    /// How long ago it was started.
    pub fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The time of day: how long ago 1970 began (UTC). It may jump; only for people to read.
    pub fn unix_time(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}
