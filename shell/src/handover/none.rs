//! Where one process cannot pass its sockets on to another, nor leave them with the service manager.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use flowgate_config::Config;
use tracing::warn;

use crate::admin::request::Response;
use crate::control::log::LevelHandle;
use crate::control::supervisor::Supervisor;
use crate::control::systemd::Inherited;

/// Why there are no upgrades.
const REASON: &str = "this system cannot pass sockets on to another process: stop flowgate and start \
                      it again";

/// A process that is to take over: there is none.
pub(crate) enum Successor {}

/// Why it could not: nobody has tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {}

/// An upgrade that is under way: there is none.
pub(crate) struct Upgrade {
    pub(crate) successor: Option<u32>,
}

impl Supervisor {
    pub(crate) fn begin_upgrade(
        &mut self,
        _binary: Option<PathBuf>,
        reply: Option<Sender<Response>>,
    ) {
        match reply {
            // The caller may have gone.
            Some(reply) => drop(reply.send(Response::refused(REASON))),
            None => warn!("no upgrade: {REASON}"),
        }
    }

    pub(crate) fn hand_over(&mut self, successor: Successor) -> Result<(), String> {
        match successor {}
    }

    pub(crate) const fn call_off_upgrade(&self) {}

    pub(crate) const fn leave(&self) {}

    pub(crate) fn answer_upgrade(&self, _outcome: Result<Vec<String>, String>) {}

    pub(crate) fn snapshot(&self) -> Response {
        Response::refused("of flowgate on this system there are no snapshots")
    }

    pub(crate) const fn keep_listeners(&self) {}

    pub(crate) const fn keep_everything(&self) -> bool {
        false
    }

    pub(crate) fn resume(
        _path: &Path,
        _config: (&Config, &str),
        _level: &LevelHandle,
        _inherited: &mut Inherited,
    ) -> io::Result<Option<Self>> {
        Ok(None)
    }
}
