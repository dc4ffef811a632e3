//! The flow table as plain data.

use alloc::vec::Vec;

use hashbrown::HashTable;

use super::{Expected, FlowTable};
use crate::collections::slots::Slots;
use crate::config::slots_for;
use crate::flow::UdpFlow;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowSnapshot, FlowsSnapshot};

impl FlowTable {
    /// The table alone, without queues.
    pub(crate) fn snapshot(&self) -> FlowsSnapshot {
        let alive = self.flows.iter().filter_map(|(slot, flow)| flow.snapshot(slot as u32));
        let quarantined =
            self.in_quarantine().map(|(slot, flow)| flow.quarantined_snapshot(slot as u32));
        FlowsSnapshot {
            hash_keys: self.hash_keys,
            next_generation: self.next_generation,
            alive: alive.collect(),
            quarantined: quarantined.collect(),
            vacant: self.flows.vacant().collect(),
            unanswered: Vec::new(),
            unconfirmed: Vec::new(),
            continued: Vec::new(),
        }
    }

    /// The table, without what is found by routes.
    pub(crate) fn restored(
        snapshot: &FlowsSnapshot,
        capacity: usize,
    ) -> Result<Self, RestoreError> {
        let used = snapshot.alive.len() + snapshot.quarantined.len() + snapshot.vacant.len();
        let mut broken = None;
        let alive = snapshot.alive.iter().map_while(|flow| {
            let restored = UdpFlow::restored(flow).map_err(|error| broken = Some(error));
            Some((flow.slot, restored.ok()?))
        });
        let quarantined = snapshot.quarantined.iter();
        let quarantined = quarantined.map(|flow| (flow.slot, UdpFlow::restored_quarantined(flow)));
        let all = alive.chain(quarantined);
        let flows = Slots::restored(used, slots_for(capacity), all, &snapshot.vacant);
        if let Some(broken) = broken {
            return Err(broken);
        }
        let Some(flows) = flows else {
            return Err(RestoreError::Broken("a slot of the flow table is named twice, or never"));
        };
        let mut restored = Self {
            flows,
            quarantined: snapshot.quarantined.len(),
            index: HashTable::with_capacity(capacity.max(snapshot.alive.len()) * 2),
            routes: HashTable::new(),
            hash_keys: snapshot.hash_keys,
            capacity,
            next_generation: snapshot.next_generation,
            expected: Expected::NOTHING,
        };
        restored.restore_index(&snapshot.alive)?;
        restored.restore_rings(&snapshot.alive)?;
        Ok(restored)
    }

    /// Makes flows findable.
    fn restore_index(&mut self, alive: &[FlowSnapshot]) -> Result<(), RestoreError> {
        let Self { flows, index, hash_keys, .. } = self;
        for snapshot in alive {
            let flow = &flows[snapshot.slot as usize];
            if !flow.is_findable() {
                continue;
            }
            let is_key = |&at: &u32| flows[at as usize].has_key(&flow.key());
            let rehash = |&at: &u32| flows[at as usize].key().hash(*hash_keys);
            let hash = flow.key().hash(*hash_keys);
            require!(index.find(hash, is_key).is_none(), "a client has two flows");
            index.insert_unique(hash, snapshot.slot, rehash);
        }
        Ok(())
    }

    /// Links the branches that carry the same client's datagrams: where each branch is followed by one and
    /// follows one, every ring closes.
    fn restore_rings(&mut self, alive: &[FlowSnapshot]) -> Result<(), RestoreError> {
        let branches =
            || alive.iter().filter_map(|branch| Some((branch.slot, branch.next_branch?)));
        let mut followed = Vec::new();
        for (slot, next) in branches() {
            let Some((next_id, next_flow)) = self.alive_at(next as usize) else {
                return Err(RestoreError::Broken("a ring that leads nowhere"));
            };
            let key = self.flows[slot as usize].key();
            require!(next != slot && next_flow.has_key(&key), "a ring of two clients");
            self.flows[slot as usize].set_next_branch(next_id);
            followed.push(next);
        }
        followed.sort_unstable();
        let mut following: Vec<u32> = branches().map(|(slot, _)| slot).collect();
        following.sort_unstable();
        require!(followed == following, "a ring that does not close");
        Ok(())
    }
}
