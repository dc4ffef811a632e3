//! Signals.

use std::io;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::Signal;
use crate::control::thread::ControlThread;

pub(super) fn listen(mut on_signal: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    // A file at its limit is an error of the thread that writes it, and not the end of the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    ControlThread::spawn("signals", move || {
        for number in &mut signals {
            on_signal(match number {
                SIGHUP => Signal::Reload,
                SIGUSR1 => Signal::ReopenLogs,
                SIGUSR2 => Signal::Upgrade,
                SIGTERM => Signal::Stop,
                _ => Signal::StopNow,
            });
        }
    })?;
    Ok(())
}

/// Ends the process, whatever its other threads do.
pub fn exit(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}
