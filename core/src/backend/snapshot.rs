//! The backends as plain data.

use alloc::vec::Vec;

use super::{Backend, Backends};
use crate::config::ClusterConfig;
use crate::id::BackendId;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{BackendSnapshot, BackendsSnapshot};
use crate::time::Instant;

impl Backends {
    /// All of them, of which the configuration lists this many.
    pub(crate) fn snapshot(&self, listed: usize) -> BackendsSnapshot {
        BackendsSnapshot {
            figures: self.list.iter().map(Backend::snapshot).collect(),
            beyond: self.list.iter().skip(listed).map(|backend| backend.config).collect(),
            latest_answer: self.latest_answer.map(|(id, at)| (id.index() as u32, at)),
            latest_other: self.latest_other,
        }
    }

    /// The backends, without flows.
    pub(crate) fn restored(
        snapshot: &BackendsSnapshot,
        cluster: &ClusterConfig,
    ) -> Result<Self, RestoreError> {
        let configs: Vec<_> = cluster.backends.iter().chain(&snapshot.beyond).copied().collect();
        require!(configs.len() == snapshot.figures.len(), "a backend without figures");
        require!(snapshot.beyond.iter().all(|backend| backend.removed), "a backend is not listed");
        let mut restored = Self::new(&configs, cluster.health);
        for (backend, snapshot) in restored.list.iter_mut().zip(&snapshot.figures) {
            let traffic = [snapshot.to, snapshot.dropped, snapshot.from];
            require!(traffic.iter().all(|sum| sum.has_room()), "a backend's figures ran over");
            [backend.to, backend.dropped, backend.from] = traffic;
            backend.health = snapshot.health.sound();
            backend.ejections = snapshot.ejections;
            backend.answer_times = snapshot.answer_times;
        }
        restored.recompute(Instant::ORIGIN);
        for (backend, snapshot) in restored.list.iter_mut().zip(&snapshot.figures) {
            backend.state_since = snapshot.state_since;
        }
        restored.latest_answer =
            snapshot.latest_answer.map(|(index, at)| (BackendId::new(index as usize), at));
        restored.latest_other = snapshot.latest_other;
        Ok(restored)
    }

    /// Counts flows as they were counted before a snapshot told of others.
    pub(crate) fn count_as(&mut self, before: &Self) {
        for (backend, before) in self.list.iter_mut().zip(&before.list) {
            backend.flows_active = before.flows_active;
        }
    }

    /// Counts a flow no longer, of which a snapshot says something else.
    pub(crate) fn uncount_flow(&mut self, backend: BackendId) {
        if let Some(backend) = self.get_mut(backend) {
            backend.flows_active = backend.flows_active.saturating_sub(1);
        }
    }

    /// How many flows all of them are counted to have.
    pub(crate) fn flows(&self) -> usize {
        self.list.iter().map(|backend| backend.flows_active as usize).sum()
    }

    /// Counts a flow. There must be such a backend.
    pub(crate) fn restore_flow(&mut self, backend: BackendId) -> Result<(), RestoreError> {
        match self.get_mut(backend) {
            Some(backend) => backend.flows_active += 1,
            None => return Err(RestoreError::Broken("a flow without its backend")),
        }
        Ok(())
    }
}

impl Backend {
    fn snapshot(&self) -> BackendSnapshot {
        BackendSnapshot {
            health: self.health,
            state_since: self.state_since,
            ejections: self.ejections,
            to: self.to,
            dropped: self.dropped,
            from: self.from,
            answer_times: self.answer_times,
        }
    }
}
