//! What flows were placed by and which ids were learned, as plain data.

use alloc::vec::Vec;

use super::Placement;
use super::placement::PlacedFlow;
use crate::config::ClusterConfig;
use crate::id::BackendId;
use crate::random::Random;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{PlacedFlowSnapshot, PlacementSnapshot};

impl Placement {
    /// All but how the backends were before others were added.
    pub(crate) fn snapshot(&self) -> PlacementSnapshot {
        let slots = self.flows.iter().zip(&self.fingerprints).enumerate();
        let placed = slots.filter(|&(_, flow)| flow != (&PlacedFlow::default(), &0));
        let flows = placed.map(|(slot, (flow, &fingerprint))| PlacedFlowSnapshot {
            slot: slot as u32,
            fingerprint,
            learned: flow.learned,
            placed: flow.placed,
        });
        PlacementSnapshot { learned: self.learned.snapshot(), flows: flows.collect() }
    }

    /// The same for a flow table of so many slots at most, with room for some. `is_alive` says in which slots there are any.
    pub(crate) fn restored(
        snapshot: &PlacementSnapshot,
        cluster: &ClusterConfig,
        slots: (usize, usize),
        backends: usize,
        is_alive: impl Fn(usize) -> bool,
    ) -> Result<Self, RestoreError> {
        let mut placement = Self::new(cluster, slots, &mut Random::new(0));
        placement.learned.restore(&snapshot.learned)?;
        let is_known = |backend: BackendId| backend.index() < backends;
        require!(snapshot.learned.ids.iter().all(|id| is_known(id.backend)), "an id of no backend");
        for flow in &snapshot.flows {
            let slot = flow.slot as usize;
            let Some(place) = placement.flows.get_mut(slot).filter(|_| is_alive(slot)) else {
                return Err(RestoreError::Broken("no flow was placed there"));
            };
            let is_free = *place == PlacedFlow::default() && placement.fingerprints[slot] == 0;
            require!(is_free, "a flow was placed twice");
            require!(flow.placed.is_possible(), "an id that is too long");
            let has_it = flow.learned == 0 || placement.learned.adopt(flow.learned);
            require!(has_it, "a flow has an id that was not learned");
            let PlacedFlowSnapshot { fingerprint, learned, placed, .. } = *flow;
            *place = PlacedFlow { learned, placed };
            placement.fingerprints[slot] = fingerprint;
        }
        require!(placement.learned.is_consistent(), "an id that will never be forgotten");
        Ok(placement)
    }
}

impl super::learned::LearnedIds {
    fn snapshot(&self) -> crate::snapshot::parts::LearnedIdsSnapshot {
        let mut ids: Vec<_> = self.entries().collect();
        ids.sort_unstable_by_key(|id| id.hash);
        crate::snapshot::parts::LearnedIdsSnapshot {
            keys: self.keys(),
            lengths: self.lengths(),
            ids,
            without_flow: self.without_flow().collect(),
        }
    }
}
