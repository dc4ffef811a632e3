//! What becomes of the sockets of flows that have ended.

use std::time::Duration;

use flowgate_core::config::Source;
use flowgate_core::{CloseReason, FlowId, Instant};

use super::health::Fate;
use super::{Flow, Model};

/// A socket whose flow has ended, and that another may have.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    pub(super) id: FlowId,
    pub(super) backend: usize,
    until: Instant,
}

/// What becomes of the socket of a flow that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Not,
    ForOthers,
    ForNobody(Duration),
}

/// How long a socket that has rested is kept.
const KEPT_FOR: Duration = Duration::from_secs(60);

impl Resting {
    /// When it closes, unless it is wanted before.
    pub(super) fn closes(&self) -> Instant {
        self.until + KEPT_FOR
    }
}

impl Model {
    /// Whether the socket of a flow that ends for `reason` is kept: for nobody, as long as answers
    /// may still come by it; for others, where its backend is to have the flows that it has.
    pub(super) fn keeps_socket(&self, reason: CloseReason, flow: &Flow) -> Kept {
        let cluster = &self.config.cluster;
        if let Some(time) = self.quarantine()
            && reason != CloseReason::UpstreamFailed
            && flow.requests.datagrams > 0
        {
            let was_used_lately = match reason {
                CloseReason::Complete => false,
                CloseReason::Idle | CloseReason::Evicted => cluster.idle_timeout < time,
                _ => true,
            };
            if was_used_lately || flow.replies.datagrams < flow.requests.datagrams {
                return Kept::ForNobody(time);
            }
        }
        let ends_by_itself = matches!(reason, CloseReason::Idle | CloseReason::Complete);
        let has_a_use = self.drain.is_none() && self.fate(flow.backend) == Fate::Stays;
        let is_kept = ends_by_itself && has_a_use && cluster.upstream_reuse.is_some();
        if is_kept { Kept::ForOthers } else { Kept::Not }
    }

    fn quarantine(&self) -> Option<Duration> {
        let cluster = &self.config.cluster;
        let is_wanted = self.drain.is_none() && cluster.source != Source::Client;
        let time = Some(cluster.upstream_quarantine);
        time.filter(|time| is_wanted && !time.is_zero())
    }

    /// Whether there is a slot for another flow: those in quarantine have as many as there may be
    /// flows.
    pub(super) fn has_free_slot(&self) -> bool {
        self.socket_count() < 2 * self.config.max_flows as usize
    }

    /// Whether there is one when this flow has ended.
    pub(super) fn leaves_a_slot(&self, id: FlowId) -> bool {
        let flow = &self.flows[self.place_of(id).expect("a flow that is alive")];
        let kept = self.keeps_socket(CloseReason::Evicted, flow);
        self.has_free_slot() || kept == Kept::Not
    }

    /// A socket begins to rest, behind all others.
    pub(super) fn rest(&mut self, id: FlowId, backend: usize, now: Instant) {
        let rest = self.config.cluster.upstream_reuse.unwrap_or_default();
        self.resting.push(Resting { id, backend, until: now + rest });
    }

    /// Something came for a flow that has ended: its socket begins to rest anew.
    pub(super) fn disturb(&mut self, id: FlowId, now: Instant) {
        if let Some(time) = self.quarantine()
            && let Some(until) = self.quarantined.get_mut(&id)
        {
            *until = (now + time).max(*until);
        }
        if let Some(place) = self.resting.iter().position(|resting| resting.id == id) {
            let former = self.resting.remove(place);
            self.rest(id, former.backend, now);
            // Never for less long than it was to rest before.
            if let Some(disturbed) = self.resting.last_mut() {
                disturbed.until = disturbed.until.max(former.until);
            }
        }
    }

    /// Takes the socket that has rested longest on a backend, if it has rested enough.
    pub(super) fn take_rested(&mut self, backend: usize, now: Instant) -> Option<FlowId> {
        let place = self.resting.iter().position(|resting| resting.backend == backend)?;
        let has_rested = self.resting[place].until <= now;
        has_rested.then(|| self.resting.remove(place).id)
    }
}
