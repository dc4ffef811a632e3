//! There is no systemd on this system: no sockets are open for this process, and how far it is only the
//! service manager of Windows wants to know.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::sys::fd::OwnedFd;

/// How far this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is up.
    Ready,
    /// It stops, which may take that long.
    Stopping(Duration),
}

/// Who is told of it, if anybody wants to know.
static LISTENER: OnceLock<fn(Progress)> = OnceLock::new();

/// Has how far this process is told to whoever runs it. The first who asks is told.
pub fn report_to(listener: fn(Progress)) {
    let _ = LISTENER.set(listener);
}

fn report(progress: Progress) {
    if let Some(listener) = LISTENER.get() {
        listener(progress);
    }
}

/// Tells how far this process is.
#[derive(Debug, Default)]
pub struct Notifier(());

impl Notifier {
    /// A way to whoever [wants to know](report_to).
    pub fn from_environment() -> Self {
        Self::default()
    }

    /// It is up.
    pub fn ready(&self) {
        report(Progress::Ready);
    }

    /// It reads its configuration again.
    pub const fn reloading(&self) {}

    /// It stops, and lets flows go on for `drain` at most.
    pub fn stopping(&self, drain: Duration) {
        report(Progress::Stopping(drain));
    }

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
