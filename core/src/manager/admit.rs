//! A client's datagrams: which flow they belong to, and whether there may be one.

use core::net::SocketAddr;

use ipnet::IpNet;

use super::UdpManager;
use crate::burst::Burst;
use crate::config::ManagerConfig;
use crate::counters::Traffic;
use crate::flow::UdpFlow;
use crate::flow_table::FlowKey;
use crate::id::FlowId;
use crate::input::LocalAddr;
use crate::output::{CloseReason, Direction, DropReason, Output, Outputs};
use crate::time::Instant;

impl UdpManager {
    #[inline]
    pub(super) fn handle_client_burst<'p>(
        &mut self,
        key: &FlowKey,
        tos: u8,
        ttl: u8,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.to_backend.received.add(Traffic::of(&burst));
        if key.client.port() == 0 {
            self.drop_burst(Direction::ToBackend, DropReason::PortZero, &burst, outputs);
            return;
        }
        let mut rest = self.drop_too_large(Direction::ToBackend, burst, outputs);
        // One turn, unless `requests` makes the burst reach into a next flow.
        while let Some(burst) = rest {
            let flow = match self.flows.find(key) {
                Some(flow) => flow,
                None => match self.admit(key, ttl, now, outputs) {
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
        ttl: u8,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<FlowId, DropReason> {
        let ttl = ttl.checked_sub(1).filter(|&left| left > 0).ok_or(DropReason::TtlExpired)?;
        let client = key.client.address();
        self.check_client(client, key.local())?;
        if self.drain.is_some() {
            return Err(DropReason::Draining);
        }
        self.source_limits.admit(key.client.ip_bits(), now)?;
        let to_evict = self.who_must_go()?;
        let affinity = self.config.cluster.affinity;
        let backend = self
            .balancer
            .pick(&self.backends, client, affinity, &mut self.random)
            .ok_or(DropReason::NoBackend)?;
        if let Some(unanswered) = to_evict {
            self.close(unanswered, CloseReason::Evicted, outputs);
        }
        let chosen = self.backends.get_mut(backend).ok_or(DropReason::NoBackend)?;
        chosen.flows_active += 1;
        let address = chosen.address();

        let limits = &self.limits;
        let flow = self
            .flows
            .insert(key, |generation| UdpFlow::new(key, generation, backend, limits, now));
        self.wheel.schedule(flow.index(), self.flows.at(flow.index()).1.deadline());
        self.unanswered.push(flow.index());
        self.source_limits.opened(key.client.ip_bits());
        self.counters.flows_opened += 1;
        outputs.emit(Output::OpenUpstream { flow, backend, address, ttl });
        Ok(flow)
    }

    /// Whether a client may have flows here at all.
    fn check_client(&self, client: SocketAddr, local: Option<LocalAddr>) -> Result<(), DropReason> {
        let called = local.map_or(self.config.address.ip(), |local| local.ip);
        let is_listener = client == SocketAddr::new(called, self.config.address.port());
        if is_listener || self.backends.has_address(client) {
            return Err(DropReason::OwnAddress);
        }
        let ManagerConfig { allow, deny, .. } = &self.config;
        let is_in = |networks: &[IpNet]| networks.iter().any(|net| net.contains(&client.ip()));
        if is_in(deny) || !(allow.is_empty() || is_in(allow)) {
            return Err(DropReason::Denied);
        }
        Ok(())
    }

    /// Which flow must end so that one more can open: the oldest that has not been answered, if
    /// there is no room. A flow that has been answered is never given up for a new one, since
    /// whoever floods the listener from forged addresses gets no answers.
    fn who_must_go(&self) -> Result<Option<FlowId>, DropReason> {
        let limit = self.config.cluster.limits.unanswered_flows as usize;
        let too_many_unanswered = limit > 0 && self.unanswered.len() >= limit;
        if !self.flows.is_full() && !too_many_unanswered {
            return Ok(None);
        }
        let oldest = self.unanswered.first().ok_or(DropReason::MaxFlows)?;
        Ok(Some(self.flows.at(oldest).0))
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
