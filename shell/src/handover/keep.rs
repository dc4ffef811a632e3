//! What the service manager keeps while no process runs, so that a restart loses nothing, and a
//! crash no more than the flows.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use flowgate_config::Config;
use flowgate_core::snapshot;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::fdstore::Kept;
use super::snapshot::{ProcessSnapshot, ServerSnapshot};
use super::take_over::Candidate;
use crate::control::log::LevelHandle;
use crate::control::supervisor::Supervisor;
use crate::control::systemd::Inherited;
use crate::sys::sockopt::cookie;

/// What is kept of a process, beside its sockets.
#[derive(Serialize, Deserialize)]
struct KeptSnapshot {
    process: ProcessSnapshot,
    /// Which socket is which, in the order of the snapshot.
    cookies: Vec<u64>,
}

impl Supervisor {
    /// Has the service manager keep the listeners that there are now.
    pub(crate) fn keep_listeners(&self) {
        if self.notifier.room() > 0 {
            let listeners = self.server.listeners();
            let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            self.notifier.keep_listeners(&listeners);
        }
    }

    /// Has the service manager keep everything, where it has room for it; says whether it does. Then
    /// nobody serves any more, and the next process goes on.
    pub(crate) fn keep_everything(&self) -> bool {
        if !self.server.io().can_hand_over() || self.notifier.room() == 0 || self.upgrade.is_some()
        {
            return false;
        }
        let snapshot = self.process_snapshot(ServerSnapshot::default());
        let (server, released) = self.server.release(false);
        let descriptors: Vec<_> = released.descriptors().collect();
        if descriptors.len() >= self.notifier.room() {
            warn!(
                sockets = descriptors.len(),
                room = self.notifier.room(),
                "the service manager has not enough room for all sockets: \
                 raise FileDescriptorStoreMax="
            );
            drop(descriptors);
            self.server.take_back(released);
            return false;
        }
        let process = ProcessSnapshot { control: None, http: None, server, ..snapshot };
        let cookies = descriptors.iter().map(|fd| cookie(*fd).unwrap_or(0)).collect();
        let snapshot = snapshot::encode(&KeptSnapshot { process, cookies });
        // It has the listeners already.
        let flows = descriptors.get(self.server.shards()..).unwrap_or_default();
        match self.notifier.keep_flows(&snapshot, flows) {
            Ok(()) => {
                info!(sockets = descriptors.len(), "the service manager keeps all sockets");
                true
            }
            Err(error) => {
                warn!("the service manager does not keep the flows: {error}");
                self.notifier.forget_flows();
                drop(descriptors);
                self.server.take_back(released);
                false
            }
        }
    }

    /// Goes on where a process stopped that left everything with the service manager, if one did. Where
    /// that cannot be, it is logged.
    ///
    /// # Errors
    ///
    /// When the listeners cannot be duplicated: out of descriptors.
    pub(crate) fn resume(
        path: &Path,
        (config, text): (&Config, &str),
        level: &LevelHandle,
        inherited: &mut Inherited,
    ) -> io::Result<Option<Self>> {
        let Some(kept) = inherited.kept.take() else { return Ok(None) };
        let listeners = inherited.listeners.iter().map(|(_, fd)| fd.try_clone());
        let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
        let own = (config.clone(), text.to_owned());
        let resumed = Self::go_on(path, &own, level, kept, listeners.into_iter());
        let say = |reason: &String| {
            warn!("cannot go on with the flows of the former process: {reason}");
        };
        Ok(resumed.inspect_err(say).ok())
    }

    /// Goes on where a process stopped that left everything with the service manager; `listeners`
    /// are what is left of its listeners.
    ///
    /// # Errors
    ///
    /// Why that cannot be.
    fn go_on(
        path: &Path,
        config: &(Config, String),
        level: &LevelHandle,
        kept: Kept,
        listeners: impl Iterator<Item = OwnedFd>,
    ) -> Result<Self, String> {
        let bytes = kept.snapshot().map_err(|error| error.to_string())?;
        let snapshot: KeptSnapshot = snapshot::decode(&bytes).map_err(|error| error.to_string())?;
        let by_cookie = |fd: OwnedFd| Some((cookie(fd.as_fd()).ok()?, fd));
        let mut sockets: HashMap<u64, OwnedFd> =
            listeners.chain(kept.flows).filter_map(by_cookie).collect();
        let candidate = Candidate::validate(path, config, level, snapshot.process)?;
        let descriptors = snapshot.cookies.iter().map(|cookie| sockets.remove(cookie));
        let supervisor = candidate.stage(descriptors)?.serve(|| ());
        info!("going on where the former process stopped");
        Ok(supervisor)
    }
}
