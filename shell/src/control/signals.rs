//! What the system tells this process to do: by signals, or on Windows by the console and the service
//! manager.

use std::io;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

#[cfg(windows)]
pub use windows::raise;

/// What ends a process at once that lets flows end. A service of Windows is told to stop only once.
pub const AT_ONCE: &str = if cfg!(windows) { "`flowgate stop --now`" } else { "a second SIGTERM" };

/// What a process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// To read its configuration again (`SIGHUP`).
    Reload,
    /// To open the log of flows again (`SIGUSR1`).
    ReopenLogs,
    /// To let a new process take over (`SIGUSR2`).
    Upgrade,
    /// To stop when its flows have ended (`SIGTERM`, Ctrl-Break, the service manager).
    Stop,
    /// To stop at once (`SIGINT`, Ctrl-C, a console that closes).
    StopNow,
}

/// Keeps what the threads of this process are told that would end it by default, and is harmless once
/// it [listens](listen), until then: to be called before there is another thread.
pub fn hold() {
    system::hold();
}

/// Goes back on [`hold`], for a process that listens to nothing.
pub fn release() {
    system::release();
}

/// Calls `on_signal`, which must not block, for whatever this process is told from now on, instead of
/// what would happen otherwise. What was [held](hold) comes first.
///
/// # Errors
///
/// When the system refuses, or is out of threads.
pub fn listen(on_signal: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    system::listen(on_signal)
}
