//! There is no systemd on this system: nobody wants to know how far this process is, and no sockets are
//! open for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use crate::sys::fd::OwnedFd;

/// Tells nobody anything.
#[derive(Debug, Default)]
pub struct Notifier(());

impl Notifier {
    /// Nobody wants to know.
    pub fn from_environment() -> Self {
        Self::default()
    }

    /// It is up.
    pub const fn ready(&self) {}

    /// It reads its configuration again.
    pub const fn reloading(&self) {}

    /// It stops.
    pub const fn stopping(&self, _drain: Duration) {}

    /// What to show with the state of the service.
    pub const fn status(&self, _text: &str) {}

    /// There is no watchdog.
    pub const fn watchdog_interval(&self) -> Option<Duration> {
        None
    }

    /// It is alive.
    pub const fn alive(&self) {}

    /// Nothing is kept.
    pub const fn forget_flows(&self) {}
}

/// Why sockets of the service manager cannot be used: there are none.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InheritError(Infallible);

/// What was open for this process before it began: nothing.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The sockets for listeners.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
}

/// What is open for this process: nothing.
///
/// # Errors
///
/// None.
pub fn inherited() -> Result<Inherited, InheritError> {
    Ok(Inherited::default())
}
