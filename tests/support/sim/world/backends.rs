//! Who may be sent anything, and who may not, as the operator and the probes have said.
//!
//! The world does not work out what datagrams say of a backend: where that counts, it asks for less.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flowgate_core::config::{BackendConfig, Failback, ManagerConfig, OnBackendDown};
use flowgate_core::{BackendEvent, BackendId};

use super::World;
use crate::sim::forge::backend_id;
use crate::sim::{Violation, require};

/// What has been said of backends.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Every index that the list of backends ever had, with who has it now.
    list: Vec<BackendConfig>,
    down: BTreeSet<BackendId>,
    draining: BTreeSet<BackendId>,
    /// Whether signs in datagrams have ever counted.
    signs_count: bool,
}

impl Known {
    pub(super) fn new(config: &ManagerConfig) -> Self {
        let mut known = Self::default();
        known.configure(config);
        known
    }

    /// A backend that comes to an index, or back to it, is as good as any.
    pub(super) fn configure(&mut self, config: &ManagerConfig) {
        let backends = &config.cluster.backends;
        for (index, &new) in backends.iter().enumerate() {
            let id = backend_id(index as u8);
            match self.list.get_mut(index) {
                Some(old) => {
                    if old.address != new.address || (old.removed && !new.removed) {
                        self.down.remove(&id);
                        self.draining.remove(&id);
                    }
                    *old = new;
                }
                None => self.list.push(new),
            }
        }
        self.list.iter_mut().skip(backends.len()).for_each(|backend| backend.removed = true);
        self.signs_count |= config.cluster.health.passive.is_some();
    }

    pub(super) fn hear(&mut self, backend: BackendId, event: BackendEvent) {
        if backend.index() >= self.list.len() {
            return;
        }
        match event {
            BackendEvent::Up | BackendEvent::Unprobed => drop(self.down.remove(&backend)),
            BackendEvent::Down => drop(self.down.insert(backend)),
            BackendEvent::Drain { .. } => drop(self.draining.insert(backend)),
            BackendEvent::Undrain => drop(self.draining.remove(&backend)),
        }
    }

    fn is_there(&self, backend: BackendId, address: SocketAddr) -> bool {
        let known = self.list.get(backend.index());
        known.is_some_and(|known| !known.removed && known.address == address)
    }

    fn is_backup(&self, backend: BackendId) -> bool {
        self.list.get(backend.index()).is_some_and(|backend| backend.backup)
    }

    fn is_wanted(&self, backend: BackendId) -> bool {
        let known = self.list.get(backend.index());
        let is_member = known.is_some_and(|known| !known.removed && known.weight > 0);
        is_member && !self.draining.contains(&backend)
    }

    /// Whether a backend that the probes find down may count as up, since all are.
    fn may_fail_open(&self, config: &ManagerConfig) -> bool {
        let mut all = (0..self.list.len()).map(|index| backend_id(index as u8));
        let has_better = all.any(|id| self.is_wanted(id) && !self.down.contains(&id));
        config.cluster.health.fail_open && (self.signs_count || !has_better)
    }
}

impl World {
    /// A datagram goes to a backend: never to one that has been removed, and to one that is down
    /// only where flows are pinned, or all are down.
    pub(super) fn check_receiver(
        &self,
        backend: BackendId,
        address: SocketAddr,
    ) -> Result<(), Violation> {
        let known = &self.known;
        require!(known.is_there(backend, address), "{address} is sent to, and has been removed");
        let is_pinned = self.config.cluster.health.on_backend_down == OnBackendDown::Pin;
        let is_out = known.down.contains(&backend) && !known.may_fail_open(&self.config);
        require!(is_pinned || !is_out, "{address} is sent to, and is down");
        Ok(())
    }

    /// A backend is given a flow: never one that is to have none.
    pub(super) fn check_choice(
        &self,
        backend: BackendId,
        address: SocketAddr,
    ) -> Result<(), Violation> {
        let known = &self.known;
        require!(known.is_there(backend, address), "{address} gets a flow, and has been removed");
        require!(known.is_wanted(backend), "{address} gets a flow, and is to have none");
        let is_out = known.down.contains(&backend) && !known.may_fail_open(&self.config);
        require!(!is_out, "{address} gets a flow, and is down");
        Ok(())
    }

    /// A flow leaves a backend: only one that is gone, is down where flows are not pinned, or is a
    /// backup where flows return.
    pub(super) fn check_move(
        &self,
        backend: BackendId,
        address: SocketAddr,
    ) -> Result<(), Violation> {
        let known = &self.known;
        let moves_from_down = self.config.cluster.health.on_backend_down == OnBackendDown::Rehash
            && (known.down.contains(&backend) || known.signs_count);
        let returns =
            self.config.cluster.health.failback == Failback::All && known.is_backup(backend);
        let is_free = moves_from_down || returns || !known.is_there(backend, address);
        require!(is_free, "a flow leaves {address}, and need not");
        Ok(())
    }
}
