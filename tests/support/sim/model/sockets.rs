//! What becomes of the sockets of flows that have ended.

use std::time::Duration;

use flowgate_core::{CloseReason, FlowId, Instant};

use super::Model;
use super::health::Fate;

/// A socket whose flow has ended, and that another may have.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    pub(super) id: FlowId,
    pub(super) backend: usize,
    until: Instant,
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
    /// Whether the socket of a flow that ends for `reason` is kept: not one to a backend that is
    /// not to have the flows that it has.
    pub(super) fn keeps_socket(&self, reason: CloseReason, backend: usize) -> bool {
        let ends_by_itself = matches!(reason, CloseReason::Idle | CloseReason::Complete);
        let has_a_use = self.drain.is_none() && self.fate(backend) == Fate::Stays;
        ends_by_itself && has_a_use && self.config.cluster.upstream_reuse.is_some()
    }

    /// A socket begins to rest, behind all others.
    pub(super) fn rest(&mut self, id: FlowId, backend: usize, now: Instant) {
        let rest = self.config.cluster.upstream_reuse.unwrap_or_default();
        self.resting.push(Resting { id, backend, until: now + rest });
    }

    /// Something came for a flow that has ended: its socket begins to rest anew.
    pub(super) fn disturb(&mut self, id: FlowId, now: Instant) {
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
