//! Whether the kernel forwards established flows by itself, and why not.

use std::sync::Arc;

use flowgate_config::{Config, FastPathMode, Listener};
use tracing::info;

use super::{BoundListener, Server};
use crate::datapath::fast_path::{Offloads, SharedFastPath};
use crate::datapath::report::FastPathState;
use crate::datapath::worker::Command;

/// There is no kernel path for a listener whose configuration names it.
#[derive(Debug, thiserror::Error)]
#[error(
    "listener {listener:?}: fast_path is \"tc\", and {reason}; \"auto\" goes on by the sockets then"
)]
pub struct FastPathError {
    listener: String,
    reason: String,
}

impl Server {
    /// Loads the program, if a listener asks for it and it is not loaded yet.
    ///
    /// # Errors
    ///
    /// When a listener names it and it cannot be had.
    pub fn load_fast_path(&mut self, config: &Config) -> Result<(), FastPathError> {
        let wanted = config.listeners.iter().filter(|l| l.fast_path != FastPathMode::Off);
        // What was not permitted before may be now, and is tried once.
        let mut is_tried = matches!(self.fast_path, Some(Ok(_)));
        for listener in wanted {
            if !is_tried && self.lasting_obstacle(listener).is_none() {
                is_tried = true;
                self.fast_path = Some(SharedFastPath::load().map_err(|error| error.to_string()));
                self.give_fast_path();
            }
            if let (FastPathMode::Tc, Some(reason)) = (listener.fast_path, self.obstacle(listener))
            {
                return Err(FastPathError { listener: listener.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Gives each worker access to what has just been loaded.
    fn give_fast_path(&mut self) {
        let Some(Ok(shared)) = &self.fast_path else { return };
        let of_workers: Result<Vec<_>, _> =
            self.workers.iter().map(|_| Offloads::new(Arc::clone(shared), self.clock)).collect();
        match of_workers {
            Ok(all) => {
                for (worker, offloads) in self.workers.iter().zip(all) {
                    worker.command(Command::UseFastPath(Box::new(offloads)));
                }
            }
            Err(error) => self.fast_path = Some(Err(error.to_string())),
        }
    }

    /// Whether the kernel may forward a listener's flows.
    pub(super) fn may_offload(&self, listener: &Listener) -> bool {
        listener.fast_path != FastPathMode::Off && self.obstacle(listener).is_none()
    }

    /// Says of a listener that is told to use the kernel path where it can, if it cannot.
    pub(super) fn say_obstacle(&self, listener: &Listener) {
        let asked = listener.fast_path != FastPathMode::Off;
        if let Some(obstacle) = self.obstacle(listener).filter(|_| asked) {
            let listener = listener.name.as_str();
            info!(listener, "no kernel path, all datagrams go by the sockets: {obstacle}");
        }
    }

    pub(super) fn fast_path_state(&self, listener: &BoundListener) -> Option<FastPathState> {
        let settings = &listener.settings;
        let obstacle = self.obstacle(settings);
        let mode = settings.fast_path;
        (mode != FastPathMode::Off).then_some(FastPathState { mode, obstacle })
    }

    /// Why the kernel cannot forward a listener's flows, whatever it permits.
    fn lasting_obstacle(&self, listener: &Listener) -> Option<String> {
        let of_io = self.io.fast_path_obstacle().map(str::to_owned);
        of_io.or_else(|| obstacle_of(listener))
    }

    fn obstacle(&self, listener: &Listener) -> Option<String> {
        self.lasting_obstacle(listener).or_else(|| match &self.fast_path {
            Some(Err(error)) => Some(error.clone()),
            Some(Ok(_)) | None => None,
        })
    }
}

/// Why the kernel cannot forward a listener's flows on any host.
fn obstacle_of(listener: &Listener) -> Option<String> {
    let is_loopback = listener.address.ip().is_loopback();
    let of_loopback = "the listener's address is a loopback address";
    let of_interface = "the listener takes the datagrams of one interface only";
    let obstacle = match listener.interface {
        Some(_) => Some(of_interface),
        None => is_loopback.then_some(of_loopback),
    };
    obstacle.or_else(|| listener.cluster.policy.offload_obstacle()).map(str::to_owned)
}
