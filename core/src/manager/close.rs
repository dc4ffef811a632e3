//! The end of a flow.

use super::UdpManager;
use crate::id::FlowId;
use crate::output::{CloseReason, Output, Outputs};

impl UdpManager {
    /// Closes a flow. Nothing happens if the id is stale.
    pub(super) fn close<'p>(
        &mut self,
        id: FlowId,
        reason: CloseReason,
        outputs: &mut impl Outputs<'p>,
    ) {
        if self.flows.get(id).is_none() {
            return;
        }
        self.wheel.cancel(id.index());
        self.unanswered.remove(id.index());
        let flow = self.flows.remove(id);
        self.source_limits.closed(flow.key().client.ip_bits());
        if let Some(backend) = self.backends.get_mut(flow.backend()) {
            backend.flows_active -= 1;
        }
        self.counters.flows_closed[reason as usize] += 1;
        outputs.emit(Output::CloseFlow { flow: id, reason });
    }
}
