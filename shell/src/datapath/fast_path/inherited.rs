//! Flows that the kernel has forwarded for the process that this one has taken over from: it went on
//! with them while nobody served. They go by the sockets from then on, and are offered again.

use std::collections::BTreeSet;
use std::sync::Arc;

use flowgate_core::{BackendId, FlowId, Instant};
use flowgate_fastpath::InheritedMaps;
use serde::{Deserialize, Serialize};

use super::Activity;
use super::accounts::Told;
use super::offloads::{Key, REST, activity};
use crate::sys::clock::Clock;

/// A flow that the kernel forwards, or has forwarded until just now.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OffloadSnapshot {
    pub(super) flow: FlowId,
    pub(super) backend: BackendId,
    /// The number of the first of its two accounts.
    pub(super) accounts: u32,
    /// What its entries depend on, if it has any.
    pub(super) gate: Option<u32>,
    /// What of the accounts has been told.
    pub(super) told: Told,
}

/// What another process has to know of a shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ShardOffloads {
    /// The flows that the kernel goes on with while nobody serves.
    pub flows: Vec<OffloadSnapshot>,
    /// How often a datagram may have been overtaken, as was counted before.
    pub overtaken: u64,
}

/// Such flows of one shard. What is still counted of them is told until their accounts have rested.
#[derive(Debug)]
pub struct InheritedFlows {
    shard: u32,
    maps: Arc<InheritedMaps>,
    flows: Vec<OffloadSnapshot>,
    until: Instant,
}

impl InheritedFlows {
    /// Has the datagrams of all of them come by the sockets, before the next packet.
    pub fn take_back(
        shard: u32,
        maps: Arc<InheritedMaps>,
        flows: Vec<OffloadSnapshot>,
        now: Instant,
    ) -> Self {
        let gates: BTreeSet<u32> = flows.iter().filter_map(|flow| flow.gate).collect();
        gates.into_iter().for_each(|gate| maps.close(gate));
        Self { shard, maps, flows, until: now + REST }
    }

    /// What has been counted since that was told last.
    pub fn read(&mut self, clock: Clock) -> Vec<(Key, Activity)> {
        let Self { shard, maps, flows, .. } = self;
        let read = |flow: &mut OffloadSnapshot| {
            let accounts = maps.accounts(flow.accounts)?;
            let activity = activity(&mut flow.told, accounts, flow.backend, clock);
            (!activity.is_empty()).then_some(((*shard, flow.flow), activity))
        };
        flows.iter_mut().filter_map(read).collect()
    }

    /// When nothing more is counted.
    pub const fn until(&self) -> Instant {
        self.until
    }
}
