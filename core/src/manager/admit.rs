//! A client's datagrams: which flow they belong to, and whether there may be one.

use core::net::SocketAddr;

use super::UdpManager;
use crate::burst::Burst;
use crate::counters::Traffic;
use crate::flow::UdpFlow;
use crate::flow_table::FlowKey;
use crate::id::FlowId;
use crate::input::LocalAddr;
use crate::output::{Direction, DropReason, Output, Outputs};
use crate::time::Instant;

impl UdpManager {
    #[inline]
    pub(super) fn handle_client_burst<'p>(
        &mut self,
        source: SocketAddr,
        local: Option<LocalAddr>,
        tos: u8,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.to_backend.received.add(Traffic::of(&burst));
        if source.port() == 0 {
            self.drop_burst(Direction::ToBackend, DropReason::PortZero, &burst, outputs);
            return;
        }
        let key = FlowKey::new(source, local);
        let mut rest = self.drop_too_large(Direction::ToBackend, burst, outputs);
        // One turn, unless `requests` makes the burst reach into a next flow.
        while let Some(burst) = rest {
            let flow = match self.flows.find(&key) {
                Some(flow) => flow,
                None => match self.admit(&key, now, outputs) {
                    Ok(flow) => flow,
                    Err(reason) => {
                        self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
                        return;
                    }
                },
            };
            rest = self.forward_requests(flow, tos, burst, now, outputs);
        }
    }

    /// Opens a flow, or says why there can be none. Nothing is allocated or asked of the shell
    /// for a datagram that is refused.
    fn admit<'p>(
        &mut self,
        key: &FlowKey,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<FlowId, DropReason> {
        if self.drain.is_some() {
            return Err(DropReason::Draining);
        }
        if self.flows.is_full() {
            return Err(DropReason::MaxFlows);
        }
        let affinity = self.config.cluster.affinity;
        let backend = self
            .balancer
            .pick(&self.backends, key.client.address(), affinity, &mut self.random)
            .ok_or(DropReason::NoBackend)?;
        let chosen = self.backends.get_mut(backend).ok_or(DropReason::NoBackend)?;
        chosen.flows_active += 1;
        let address = chosen.address();

        let limits = &self.limits;
        let flow = self
            .flows
            .insert(key, |generation| UdpFlow::new(key, generation, backend, limits, now));
        self.wheel.schedule(flow.index(), self.flows.at(flow.index()).1.deadline());
        self.counters.flows_opened += 1;
        outputs.emit(Output::OpenUpstream { flow, backend, address });
        Ok(flow)
    }

    /// Drops the datagrams longer than `max_datagram_size` and returns the others. All datagrams
    /// of a burst but the last are equally long, so either all pass, or at most the last.
    #[inline]
    pub(super) fn drop_too_large<'p>(
        &mut self,
        direction: Direction,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) -> Option<Burst<'p>> {
        let longest = self.config.max_datagram_size;
        if burst.stride() <= longest {
            return Some(burst);
        }
        let (too_large, fits) = if burst.last_len() <= usize::from(longest) {
            burst.split_at(burst.count() - 1)
        } else {
            (Some(burst), None)
        };
        if let Some(too_large) = too_large {
            self.drop_burst(direction, DropReason::TooLarge, &too_large, outputs);
        }
        fits
    }
}
