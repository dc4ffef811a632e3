//! Flows as plain data.

use core::net::{IpAddr, Ipv4Addr};

use super::{Stage, UdpFlow};
use crate::flow::key::FlowKey;
use crate::id::{BackendId, FlowId, UpstreamId};
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowSnapshot, KeySnapshot, PathSnapshot, QuarantinedSnapshot};
use crate::time::Instant;

impl UdpFlow {
    /// What is known of a flow that is alive, in a slot; `None` of one that has ended.
    pub(crate) fn snapshot(&self, slot: u32) -> Option<FlowSnapshot> {
        if self.stage == Stage::Quarantined {
            return None;
        }
        let id = FlowId::new(slot, self.generation);
        let next_branch = Some(self.next_branch(id)).filter(|&next| next != id);
        Some(FlowSnapshot {
            slot,
            generation: self.generation,
            key: self.key().snapshot(),
            backend: self.backend.index() as u32,
            upstream: self.upstream(),
            stage: self.stage,
            confirmed: self.confirmed,
            introduced: self.introduced,
            heard: self.heard,
            mirrored: self.mirrored,
            offload: self.offload,
            by_sockets: self.by_sockets,
            is_winner: self.is_winner,
            is_prompt: self.is_prompt,
            to_backend: self.to_backend,
            to_client: self.to_client,
            opened: self.opened,
            first_answer: self.answered.then_some(self.first_answer),
            deadline: self.deadline,
            next_branch: next_branch.map(|next| next.index() as u32),
        })
    }

    /// A flow that is alive, and goes on after itself in its ring until another is told.
    pub(crate) fn restored(snapshot: &FlowSnapshot) -> Result<Self, RestoreError> {
        let answered = snapshot.first_answer.is_some();
        let traffic = [snapshot.to_backend, snapshot.to_client];
        require!(snapshot.stage != Stage::Quarantined, "a flow that has ended is alive");
        require!(answered || !snapshot.confirmed, "a flow is confirmed before it is answered");
        require!(traffic.iter().all(|traffic| traffic.has_room()), "a flow's figures ran over");
        let FlowKey { client, local, transaction } = FlowKey::restored(&snapshot.key);
        Ok(Self {
            client,
            local,
            deadline: snapshot.deadline,
            to_backend: snapshot.to_backend,
            generation: snapshot.generation,
            backend: BackendId::new(snapshot.backend as usize),
            upstream_index: snapshot.upstream.index() as u32,
            upstream_generation: snapshot.upstream.generation(),
            stage: snapshot.stage,
            answered,
            confirmed: snapshot.confirmed,
            introduced: snapshot.introduced,
            heard: snapshot.heard,
            mirrored: snapshot.mirrored,
            offload: snapshot.offload,
            by_sockets: snapshot.by_sockets,
            is_winner: snapshot.is_winner,
            is_prompt: snapshot.is_prompt,
            to_client: snapshot.to_client,
            opened: snapshot.opened,
            first_answer: snapshot.first_answer.unwrap_or(snapshot.opened),
            link: if client.asks() {
                transaction
            } else {
                super::link_to(FlowId::new(snapshot.slot, snapshot.generation))
            },
        })
    }

    /// What is known of a flow that has ended.
    pub(crate) const fn quarantined_snapshot(&self, slot: u32) -> QuarantinedSnapshot {
        let (backend, upstream) = (self.backend.index() as u32, self.upstream());
        let generation = self.generation;
        let transaction = if self.client.asks() { Some(self.transaction()) } else { None };
        QuarantinedSnapshot {
            transaction,
            slot,
            generation,
            backend,
            upstream,
            until: self.deadline,
        }
    }

    /// A flow that has ended. Of what it was, nothing matters any more.
    pub(crate) fn restored_quarantined(snapshot: &QuarantinedSnapshot) -> Self {
        let nobody = KeySnapshot {
            ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 0,
            path: PathSnapshot::Direct { scope: 0 },
            transaction: snapshot.transaction,
        };
        let id = FlowId::new(snapshot.slot, snapshot.generation);
        let backend = BackendId::new(snapshot.backend as usize);
        let key = FlowKey::restored(&nobody);
        let blank = Self::blank(&key, id, backend, snapshot.upstream, snapshot.until);
        Self { stage: Stage::Quarantined, ..blank }
    }

    /// What stands for a flow where there is none.
    pub(crate) fn nobody() -> Self {
        Self::restored_quarantined(&QuarantinedSnapshot {
            transaction: None,
            slot: 0,
            generation: 0,
            backend: 0,
            upstream: UpstreamId::new(0, 0),
            until: Instant::ORIGIN,
        })
    }
}
