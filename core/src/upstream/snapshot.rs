//! Upstreams as plain data.

use alloc::vec::Vec;

use super::{Carries, IDLE, Upstream, Upstreams};
use crate::id::UpstreamId;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{UpstreamSnapshot, UpstreamsSnapshot};
use crate::upstream::pool::Pool;

impl Upstreams {
    pub(crate) fn snapshot(&mut self) -> UpstreamsSnapshot {
        let open =
            self.iter().map(|(id, carries)| UpstreamSnapshot { id, carries: empty(carries) });
        let open = open.collect();
        UpstreamsSnapshot {
            next_generation: self.next_generation,
            open,
            vacant: self.slots.vacant(),
            pools: self.pools.clone(),
            idle: self.idle.iter(IDLE).collect(),
        }
    }

    /// The table, in which shared upstreams carry nothing yet.
    pub(crate) fn restored(
        snapshot: &UpstreamsSnapshot,
        capacity: usize,
    ) -> Result<Self, RestoreError> {
        let used = snapshot.open.len() + snapshot.vacant.len();
        let mut shared = 0;
        let open = snapshot.open.iter().map(|upstream| {
            shared += usize::from(matches!(upstream.carries, Carries::Many { .. }));
            let (generation, carries) = (upstream.id.generation(), empty(upstream.carries));
            (upstream.id.index() as u32, Upstream { generation, carries })
        });
        let slots: Vec<u32> = snapshot.open.iter().map(|it| it.id.index() as u32).collect();
        let slots = [&slots[..], &snapshot.vacant].concat();
        let mut restored = Self::with_capacity(capacity.max(used));
        let is_sound = restored.slots.update(&slots, open, &snapshot.vacant);
        require!(is_sound.is_some(), "a slot of upstreams is named twice, or never");
        restored.next_generation = snapshot.next_generation;
        restored.shared = shared;
        restored.pools.clone_from(&snapshot.pools);
        restored.check_pools()?;
        restored.pools.iter_mut().for_each(Pool::make_room);
        restored.idle.reserve(used);
        for &index in &snapshot.idle {
            let is_new = restored.idle.list_of(index as usize).is_none();
            require!(is_new && restored.slots.get(index as usize).is_some(), "an idle socket");
            restored.idle.push_back(IDLE, index as usize);
        }
        Ok(restored)
    }

    /// Counts flows on shared upstreams as they were counted before a snapshot told of others.
    pub(crate) fn count_as(&mut self, before: &Self) {
        for (id, carries) in before.iter() {
            if let (Some(Carries::Many { flows, .. }), Carries::Many { flows: before, .. }) =
                (self.carries_mut(id), carries)
            {
                *flows = before;
            }
        }
    }

    fn carries_mut(&mut self, id: UpstreamId) -> Option<&mut Carries> {
        let upstream = self.slots.get_mut(id.index())?;
        (upstream.generation == id.generation()).then_some(&mut upstream.carries)
    }

    /// Counts a flow no longer, of which a snapshot says something else.
    pub(crate) fn uncount_flow(&mut self, id: UpstreamId) {
        if let Some(Carries::Many { flows, .. }) = self.carries_mut(id) {
            *flows = flows.saturating_sub(1);
        }
    }

    /// Notes a flow that a snapshot names on an upstream.
    pub(crate) fn restore_flow(&mut self, id: UpstreamId, slot: u32) -> Result<(), RestoreError> {
        match self.carries_mut(id) {
            None => return Err(RestoreError::Broken("a flow on a socket that is not open")),
            Some(Carries::One(flow)) => require!(*flow == slot, "a socket of another flow"),
            Some(Carries::Many { flows, .. }) => *flows += 1,
        }
        Ok(())
    }

    /// Every shared upstream has a place in its pool, or is retired, and is idle if it has no flow.
    fn check_pools(&self) -> Result<(), RestoreError> {
        for (v6, pool) in [false, true].into_iter().zip(&self.pools) {
            let members = self.iter().filter(|(_, carries)| {
                matches!(carries, Carries::Many { v6: of, is_retired: false, .. } if *of == v6)
            });
            require!(pool.holds(members.map(|(id, _)| id)), "a pool of other sockets");
        }
        Ok(())
    }

    /// Checks what can be checked once all flows are known. `names` says which upstream the flow in a
    /// slot has.
    pub(crate) fn check_restored(
        &self,
        flows: usize,
        names: impl Fn(usize) -> Option<UpstreamId>,
    ) -> Result<(), RestoreError> {
        let mut idle = 0;
        let mut carried = 0;
        for (id, carries) in self.iter() {
            match carries {
                Carries::One(flow) => {
                    require!(names(flow as usize) == Some(id), "a socket of no flow");
                    carried += 1;
                }
                Carries::Many { flows, is_retired, .. } => {
                    carried += flows as usize;
                    let is_idle = self.idle.list_of(id.index()).is_some();
                    idle += usize::from(is_idle);
                    require!(is_idle == (flows == 0 && !is_retired), "a socket that never closes");
                    require!(!is_retired || flows > 0, "a socket that should have closed");
                }
            }
        }
        require!(carried == flows, "a socket of no flow");
        require!(idle == self.idle.len(IDLE), "a socket that is not shared is idle");
        Ok(())
    }
}

/// The same before any flow is counted on it.
const fn empty(mut carries: Carries) -> Carries {
    if let Carries::Many { flows, .. } = &mut carries {
        *flows = 0;
    }
    carries
}
