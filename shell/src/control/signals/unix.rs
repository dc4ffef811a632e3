//! Signals.

use std::io;

use libc::SIGXFSZ;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use tokio::signal::unix::{SignalKind, signal};

use super::Signal;
use crate::control::task::{self, ControlTask};

/// What a process is told that does not end it, once it listens.
fn harmless() -> SigSet {
    [NixSignal::SIGHUP, NixSignal::SIGUSR1, NixSignal::SIGUSR2].into_iter().collect()
}

pub(super) fn hold() {
    // It fails for no signal that exists.
    let _ = harmless().thread_block();
}

pub(super) fn release() {
    let _ = harmless().thread_unblock();
}

pub(super) fn listen(mut on_signal: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let runtime = task::runtime()?;
    // They are received by the event loop that they are made in.
    let _inside = runtime.enter();
    // A file at its limit is an error of the thread that writes it, and not the end of the process.
    drop(signal(SignalKind::from_raw(SIGXFSZ))?);
    let mut reload = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let mut stop = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    release();
    ControlTask::spawn("signals", async move {
        loop {
            let (heard, signal) = tokio::select! {
                heard = reload.recv() => (heard, Signal::Reload),
                heard = reopen.recv() => (heard, Signal::ReopenLogs),
                heard = upgrade.recv() => (heard, Signal::Upgrade),
                heard = stop.recv() => (heard, Signal::Stop),
                heard = interrupt.recv() => (heard, Signal::StopNow),
            };
            if heard.is_none() {
                return;
            }
            on_signal(signal);
        }
    })?;
    Ok(())
}
