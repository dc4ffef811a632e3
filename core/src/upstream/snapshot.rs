//! Upstreams as plain data.

use super::{Carries, IDLE, Upstream, Upstreams};
use crate::collections::lists::Queues;
use crate::collections::slots::Slots;
use crate::id::UpstreamId;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{CarriesSnapshot, UpstreamSnapshot, UpstreamsSnapshot};
use crate::upstream::pool::Pool;

impl Upstreams {
    pub(crate) fn snapshot(&self) -> UpstreamsSnapshot {
        let open = self.iter().map(|(id, carries)| UpstreamSnapshot {
            id,
            carries: match carries {
                Carries::One(flow) => CarriesSnapshot::One { flow },
                Carries::Many { v6, idle_since, is_retired, .. } => {
                    CarriesSnapshot::Many { v6, idle_since, is_retired }
                }
            },
        });
        UpstreamsSnapshot {
            next_generation: self.next_generation,
            open: open.collect(),
            vacant: self.slots.vacant().collect(),
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
            let carries = match upstream.carries {
                CarriesSnapshot::One { flow } => Carries::One(flow),
                CarriesSnapshot::Many { v6, idle_since, is_retired } => {
                    shared += 1;
                    Carries::Many { v6, flows: 0, idle_since, is_retired }
                }
            };
            let generation = upstream.id.generation();
            (upstream.id.index() as u32, Upstream { generation, carries })
        });
        let slots = Slots::restored(used, capacity, open, &snapshot.vacant);
        let Some(slots) = slots else {
            return Err(RestoreError::Broken("a slot of upstreams is named twice, or never"));
        };
        let mut restored = Self {
            slots,
            next_generation: snapshot.next_generation,
            shared,
            pools: snapshot.pools.clone(),
            idle: Queues::new(1, 0),
        };
        restored.check_pools()?;
        restored.pools.iter_mut().for_each(Pool::make_room);
        if let Some(last) = used.checked_sub(1) {
            // Room for all of them.
            restored.idle.push(IDLE, last);
            restored.idle.remove(last);
        }
        for &index in &snapshot.idle {
            let is_new = restored.idle.queue_of(index as usize).is_none();
            require!(is_new && restored.slots.get(index as usize).is_some(), "an idle socket");
            restored.idle.push(IDLE, index as usize);
        }
        Ok(restored)
    }

    /// Notes a flow that a snapshot names on an upstream.
    pub(crate) fn restore_flow(&mut self, id: UpstreamId, slot: u32) -> Result<(), RestoreError> {
        let upstream = self.slots.get_mut(id.index());
        let upstream = upstream.filter(|upstream| upstream.generation == id.generation());
        let Some(upstream) = upstream else {
            return Err(RestoreError::Broken("a flow on a socket that is not open"));
        };
        match &mut upstream.carries {
            Carries::One(flow) => require!(*flow == slot, "a socket of another flow"),
            Carries::Many { flows, .. } => *flows += 1,
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

    /// Checks what can be checked once all flows are known.
    pub(crate) fn check_restored(&self, flows: usize) -> Result<(), RestoreError> {
        let mut idle = 0;
        let mut carried = 0;
        for (id, carries) in self.iter() {
            match carries {
                Carries::One(_) => carried += 1,
                Carries::Many { flows, is_retired, .. } => {
                    carried += flows as usize;
                    let is_idle = self.idle.queue_of(id.index()).is_some();
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
