//! A change of the configuration.

use super::UdpManager;
use super::evict::STALE_TIMEOUT;
use super::place::placement_room;
use super::upstream::capacity_for_upstreams;
use crate::config::prepared::PreparedConfig;
use crate::config::slots_for;
use crate::flow::{FlowLimits, UdpFlow};
use crate::limits::SourceLimits;
use crate::output::Outputs;
use crate::reason::CloseReason;
use crate::time::Instant;

impl UdpManager {
    /// Works by the new configuration from now on. Flows stay, with their deadlines unless timeouts
    /// are shorter now, and so do backends that stay in their places. Costs a few steps for each
    /// backend; where [`Limits`](crate::config::Limits) or `max_flows` change, timeouts become
    /// shorter, or another backend takes a place in the list, a look at every flow too.
    pub(super) fn configure<'p>(
        &mut self,
        new: &PreparedConfig,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        // What changes now is more than single flows.
        #[cfg(feature = "snapshot")]
        self.forget_changes();
        self.recall_all(outputs);
        let config = new.config();
        let was = (&self.config.cluster, &self.balancer);
        let (limit, reserved) = placement_room(config);
        let slots = self.flows.slots();
        let room = (slots.max(limit), slots.max(reserved));
        self.placement.configure(was, &config.cluster, room, now, &mut self.random);
        // While it is known which backend they had.
        let replaced = self.backends.replaced_by(&config.cluster.backends);
        // One that serves on keeps its place in the order of turns.
        if !new.has_the_turns_of(&self.config.cluster) {
            let former = core::mem::replace(&mut self.balancer, new.balancer().clone());
            self.balancer.go_on_from(&former, &replaced);
        }
        if !replaced.is_empty() {
            let is_orphan = |flow: &UdpFlow| replaced.contains(&flow.backend());
            self.close_flows(is_orphan, CloseReason::BackendRemoved, now, outputs);
        }
        self.backends.configure(&config.cluster.backends, config.cluster.health, now);
        let has_other_questions = config.cluster.questions() != self.config.cluster.questions();
        let is_other_mode = config.cluster.mode.kind() != self.config.cluster.mode.kind();
        if is_other_mode || has_other_questions {
            // They would make no sense.
            self.close_flows(|_| true, CloseReason::ModeChanged, now, outputs);
        }
        // What is open is bound to the former source.
        let has_other_source = config.cluster.source != self.config.cluster.source;
        if has_other_source
            || is_other_mode
            || has_other_questions
            || config.cluster.upstream != self.config.cluster.upstream
        {
            self.retire_shared_upstreams(outputs);
        }

        let is_resized = config.max_flows != self.config.max_flows;
        let capacity = config.reserved_flows();
        self.flows.reserve(capacity);
        self.wheel.reserve(slots_for(capacity));
        self.queues.reserve(slots_for(capacity));
        if !config.accept_proxy_protocol.is_empty() {
            let flows = self.flows.len();
            let max_flows = flows.max(config.max_flows as usize);
            self.proxies.reserve(max_flows, flows.max(capacity), &mut self.random);
        }
        if is_resized || config.cluster.limits != self.config.cluster.limits {
            let capacity = self.flows.len().max(capacity);
            let limits = &config.cluster.limits;
            self.source_limits = SourceLimits::new(limits, capacity, &mut self.random);
            for (_, flow) in self.flows.iter() {
                self.source_limits.opened(flow.key().client.source());
            }
        }
        let is_kept_on = config.cluster.attempts().is_some();
        if config.cluster.retry != self.config.cluster.retry || !is_kept_on {
            self.kept.clear();
        }
        if config.cluster.idle_timeout != self.config.cluster.idle_timeout {
            self.silences_known_from = now + STALE_TIMEOUT;
        }
        self.set_flow_limits(FlowLimits::new(&config.cluster), now);
        self.config.clone_from(config);
        self.kept.reserve(config);
        self.upstreams.reserve(capacity_for_upstreams(config));
        if self.shares_upstreams() {
            if config.cluster.questions().is_none() {
                self.upstreams.know_backends(self.backends.len());
            }
            self.flows.reserve_routes(capacity);
        }
        self.sweep_if_needed(now);
    }

    /// A timer may come too early but never too late: where flows are to end sooner, what is
    /// scheduled for them moves now, and not with every datagram.
    fn set_flow_limits(&mut self, limits: FlowLimits, now: Instant) {
        let are_shorter = limits.has_shorter_timeouts_than(&self.limits);
        self.limits = limits;
        if !are_shorter {
            return;
        }
        for slot in 0..self.flows.slots() {
            let Some((id, _)) = self.flows.alive_at(slot) else { continue };
            if let Some(flow) = self.flows.get_mut(id) {
                flow.hasten(&self.limits, now);
                self.schedule(slot);
            }
        }
    }
}
