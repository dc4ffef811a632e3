//! `flowgate run`: the balancer in the foreground.

use std::path::Path;
use std::sync::mpsc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use super::Failure;
use crate::log;
use crate::server::{Server, WorkerEnd};

/// What the main thread waits for.
enum Event {
    Signal(i32),
    WorkerEnded(WorkerEnd),
}

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    log::init(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let (sender, events) = mpsc::channel();
    // Before the first socket is bound: from then on a signal finds its handler.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let on_signal = sender.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if on_signal.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    let mut server = Server::start(&config, move |end| {
        // The main thread may be on its way out already.
        let _ = sender.send(Event::WorkerEnded(end));
    })?;
    info!(version = env!("CARGO_PKG_VERSION"), "started");

    let mut running = server.workers();
    let mut is_draining = false;
    while running > 0 {
        match events.recv()? {
            Event::Signal(SIGHUP) => {
                warn!("reload is not yet supported; the configuration stays as it is");
            }
            Event::Signal(SIGTERM) if !is_draining => {
                info!(
                    "draining for at most {:?}; a second SIGTERM stops at once",
                    config.drain_timeout
                );
                is_draining = true;
                server.drain(config.drain_timeout);
            }
            Event::Signal(_) => server.stop(),
            Event::WorkerEnded(WorkerEnd::Done) => running -= 1,
            Event::WorkerEnded(end) => {
                // Half a balancer would serve some clients and not others: let the supervisor
                // start a whole one.
                return Err(Failure(format!("a worker {end}; stopping the process")));
            }
        }
    }
    server.join();
    info!("stopped");
    Ok(())
}
