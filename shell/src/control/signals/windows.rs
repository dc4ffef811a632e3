//! The events of a console, and what the service manager says.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

use super::Signal;
use crate::control::task::{self, ControlTask};

type Act = Box<dyn FnMut(Signal) + Send>;

/// Who is told, or what there was to tell before anybody listened.
static LISTENER: Mutex<Result<Act, Vec<Signal>>> = Mutex::new(Err(Vec::new()));

/// No event ends a process here that would not end it anyway.
pub(super) const fn hold() {}

pub(super) const fn release() {}

pub(super) fn listen(mut on_signal: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let runtime = task::runtime()?;
    // They are received by the event loop that they are made in.
    let _inside = runtime.enter();
    let (mut interrupt, mut stop, mut close, mut shutdown) =
        (ctrl_c()?, ctrl_break()?, ctrl_close()?, ctrl_shutdown()?);
    {
        let mut listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(missed) = &mut *listener {
            missed.drain(..).for_each(&mut on_signal);
        }
        *listener = Ok(Box::new(on_signal));
    }
    ControlTask::spawn("signals", async move {
        loop {
            let (heard, signal) = tokio::select! {
                heard = interrupt.recv() => (heard, Signal::StopNow),
                heard = stop.recv() => (heard, Signal::Stop),
                heard = close.recv() => (heard, Signal::StopNow),
                heard = shutdown.recv() => (heard, Signal::StopNow),
            };
            if heard.is_none() {
                return;
            }
            raise(signal);
        }
    })?;
    Ok(())
}

/// Tells this process something that the service manager has said.
pub fn raise(signal: Signal) {
    match &mut *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) {
        Ok(on_signal) => on_signal(signal),
        Err(missed) => missed.push(signal),
    }
}
