//! The flow table as plain data.

use alloc::vec::Vec;

use super::{BY_KEY, FlowTable};
use crate::flow::UdpFlow;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowSnapshot, FlowsSnapshot};

impl FlowTable {
    /// A table without flows, as the one was before it had any whose snapshot this is.
    pub(crate) fn before(snapshot: &FlowsSnapshot, reserved: usize) -> Self {
        let mut table = Self::with_secret(reserved, snapshot.hash_keys);
        table.flows.reserve_index(BY_KEY, reserved.max(snapshot.alive.len()) * 2);
        table
    }

    /// Notes from now on which flows change, or stops to do that.
    pub(crate) fn note_changes(&mut self, whether: bool) {
        self.flows.note_changes(whether);
    }

    /// Whether that is noted.
    pub(crate) const fn notes_changes(&self) -> bool {
        self.flows.notes_changes()
    }

    /// The flows, all or those that have changed since that is noted; without queues.
    pub(crate) fn snapshot(&mut self) -> FlowsSnapshot {
        let all = || self.flows.iter().filter(|&(slot, _)| self.flows.has_changed(slot));
        let alive = all().filter_map(|(slot, flow)| flow.snapshot(slot as u32)).collect();
        let ended = all().filter(|(_, flow)| flow.has_ended());
        let quarantined =
            ended.map(|(slot, flow)| flow.quarantined_snapshot(slot as u32)).collect();
        FlowsSnapshot {
            hash_keys: self.flows.secret(),
            next_generation: self.next_generation,
            alive,
            quarantined,
            vacant: self.flows.vacant(),
            unanswered: Vec::new(),
            unconfirmed: Vec::new(),
            continued: Vec::new(),
        }
    }

    /// The flow in a slot, alive or in quarantine, if there is one.
    pub(crate) fn any_at(&self, slot: usize) -> Option<&UdpFlow> {
        self.flows.get(slot)
    }

    /// Makes the flows what a snapshot says, in the slots that it names; without what is found by
    /// routes.
    pub(crate) fn update(&mut self, snapshot: &FlowsSnapshot) -> Result<(), RestoreError> {
        require!(snapshot.hash_keys == self.flows.secret(), "another flow table");
        let changed = snapshot.slots();
        let had_ended = |&slot: &u32| self.flows.get(slot as usize).is_some_and(UdpFlow::has_ended);
        let ended = changed.iter().filter(|&slot| had_ended(slot)).count();
        self.quarantined = self.quarantined.saturating_sub(ended) + snapshot.quarantined.len();
        self.next_generation = snapshot.next_generation;
        let mut broken = None;
        let alive = snapshot.alive.iter().map_while(|flow| {
            let restored = UdpFlow::restored(flow).map_err(|error| broken = Some(error));
            Some((flow.slot, restored.ok()?))
        });
        let quarantined = snapshot.quarantined.iter();
        let quarantined = quarantined.map(|flow| (flow.slot, UdpFlow::restored_quarantined(flow)));
        let all = alive.chain(quarantined);
        let is_sound = self.flows.update(&changed, all, &snapshot.vacant).is_some();
        if let Some(broken) = broken {
            return Err(broken);
        }
        require!(is_sound, "a slot of the flow table is named twice, or never");
        for flow in &snapshot.alive {
            let (id, flow) = self.at(flow.slot as usize);
            if flow.is_findable() {
                require!(self.look_up(&flow.key()).is_none(), "a client has two flows");
                self.flows.add_to(BY_KEY, id.index());
            }
        }
        self.restore_rings(&snapshot.alive)
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
