//! A manager as plain data, and a manager of that.

use super::failover::Sweep;
use super::invariants::queue_of;
use super::upstream::{capacity_for_upstreams, shares_upstreams};
use super::{CONTINUED, EXCHANGED, QUEUES, UNANSWERED, UdpManager};
use crate::affinity::Placement;
use crate::backend::Backends;
use crate::collections::lists::Queues;
use crate::collections::wheel::TimerWheel;
use crate::config::prepared::PreparedConfig;
use crate::config::{MAX_FLOWS, slots_for};
use crate::counters::Counters;
use crate::flow::table::FlowTable;
use crate::flow::{FlowLimits, Offload};
use crate::id::BackendId;
use crate::limits::SourceLimits;
use crate::proxy_protocol::table::Proxies;
use crate::random::Random;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowSnapshot, FlowsSnapshot, SweepSnapshot, TimersSnapshot};
use crate::snapshot::{ManagerSnapshot, RestoreError};
use crate::time::Instant;
use crate::upstream::{Carries, Upstreams};

impl UdpManager {
    /// Everything that it knows, as plain data. Looks at every flow, and changes nothing.
    ///
    /// Anyone who has it can attack the flow table, and knows all clients.
    pub fn snapshot(&self) -> ManagerSnapshot {
        let timers = self.wheel.snapshot();
        ManagerSnapshot {
            config: self.config.clone(),
            backends: self.backends.snapshot(self.config.cluster.backends.len()),
            turns: self.balancer.snapshot(),
            flows: self.flows_snapshot(),
            upstreams: self.upstreams.snapshot(),
            sources: self.source_limits.snapshot(Instant::from_millis(timers.elapsed)),
            timers,
            proxies: self.proxies.snapshot(),
            counters: self.counters.snapshot(),
            openings: self.openings,
            answered_clients: self.answered_clients.clone(),
            first_answers: self.first_answers,
            placement: self.placement.snapshot(),
            random: self.random.state(),
            salts: self.salts.clone(),
            drain: self.drain,
            silences_known_from: self.silences_known_from,
            sweep: self.sweep.map(Sweep::snapshot),
            last_partial_timeout: self.last_partial_timeout,
            kept: self.kept.clone(),
        }
    }

    fn flows_snapshot(&self) -> FlowsSnapshot {
        FlowsSnapshot {
            unanswered: self.queues.iter(UNANSWERED).collect(),
            unconfirmed: self.queues.iter(EXCHANGED).collect(),
            continued: self.queues.iter(CONTINUED).collect(),
            ..self.flows.snapshot()
        }
    }

    /// A manager that does in all things what the one would have done whose snapshot it is, as long as
    /// the clock goes on where it was. It is ready to work: it allocates what it will ever need.
    ///
    /// What takes long to make is taken from a configuration that is prepared already, where that
    /// has the same [turns](crate::balance): a table for [`Maglev`](crate::config::Balance::Maglev).
    ///
    /// Whatever the snapshot says, this takes no more time and memory than a manager with the flow
    /// table that any configuration may ask for, and a small multiple of the snapshot.
    ///
    /// # Errors
    ///
    /// When the snapshot is not that of a manager: when an
    /// [invariant](Self::assert_invariants) is broken.
    pub fn restore(
        snapshot: ManagerSnapshot,
        prepared: Option<&PreparedConfig>,
    ) -> Result<Self, RestoreError> {
        let ManagerSnapshot { config, flows: table, .. } = &snapshot;
        let (max_flows, most) = (config.max_flows, MAX_FLOWS);
        if max_flows > most || table.alive.len() > most as usize {
            return Err(RestoreError::TooManyFlows { max_flows, most });
        }
        require!(snapshot.answered_clients.is_sound(), "a table of clients of another size");
        let mut flows = FlowTable::restored(table, max_flows as usize)?;
        let upstreams = restored_upstreams(&snapshot, &mut flows)?;
        let capacity = flows.len().max(max_flows as usize);
        let slots = flows.slots().max(slots_for(max_flows as usize));
        let mut backends = Backends::restored(&snapshot.backends, &config.cluster)?;
        let mut source_limits =
            SourceLimits::restored(&snapshot.sources, &config.cluster.limits, capacity)?;
        for (_, flow) in flows.iter() {
            backends.restore_flow(flow.backend())?;
            source_limits.opened(flow.key().client.source());
        }
        let of_flows = flows.iter().filter_map(|(_, flow)| flow.proxy());
        let relayed = if config.accept_proxy_protocol.is_empty() { 0 } else { max_flows as usize };
        let proxies = Proxies::restored(&snapshot.proxies, relayed, of_flows)?;
        let wheel = TimerWheel::restored(&snapshot.timers, flows.slots(), slots)?;
        let mut balancer = match prepared.filter(|ready| ready.has_the_turns_of(&config.cluster)) {
            Some(ready) => ready.balancer().clone(),
            None => PreparedConfig::new(config.clone()).balancer().clone(),
        };
        balancer.restore(&snapshot.turns)?;
        let sweep = snapshot.sweep.as_ref().map(|sweep| Sweep::restored(sweep, flows.slots()));
        let sweep = sweep.transpose()?;
        let mut config = config.clone();
        if let Some(prepared) = prepared {
            config.cluster.quic_lb = prepared.config().cluster.quic_lb.clone();
        }
        let is_alive = |slot| flows.alive_at(slot).is_some();
        let placement = Placement::restored(
            &snapshot.placement,
            &config.cluster,
            slots,
            backends.len(),
            is_alive,
        )?;
        let mut restored = Self {
            limits: FlowLimits::new(&config.cluster),
            queues: Queues::new(QUEUES, slots),
            counters: Counters::restored(&snapshot.counters, flows.len() as u64)?,
            openings: snapshot.openings.restored(),
            answered_clients: snapshot.answered_clients,
            first_answers: snapshot.first_answers.restored(),
            sweep,
            has_lost_backends: false,
            flows,
            upstreams,
            wheel,
            backends,
            balancer,
            source_limits,
            proxies,
            random: Random::new(snapshot.random),
            placement,
            salts: snapshot.salts,
            drain: snapshot.drain,
            silences_known_from: snapshot.silences_known_from,
            last_partial_timeout: snapshot.last_partial_timeout,
            kept: snapshot.kept,
            config,
        };
        require!(restored.is_kept_rightly(), "a question of no flow is kept");
        restored.restore_queues(&snapshot.flows)?;
        restored.check_timers(&snapshot.flows, &snapshot.timers)?;
        Ok(restored)
    }

    /// Puts every flow into the queue that it belongs to.
    fn restore_queues(&mut self, snapshot: &FlowsSnapshot) -> Result<(), RestoreError> {
        let queues = [
            (UNANSWERED, &snapshot.unanswered),
            (EXCHANGED, &snapshot.unconfirmed),
            (CONTINUED, &snapshot.continued),
        ];
        for (queue, slots) in queues {
            for &slot in slots {
                let is_new = self.queues.queue_of(slot as usize).is_none();
                let flow = self.flows.alive_at(slot as usize);
                let belongs = flow.is_some_and(|(_, flow)| queue_of(flow) == Some(queue));
                require!(is_new && belongs, "a flow in the wrong queue, or twice");
                self.queues.push(queue, slot as usize);
            }
            let all = self.flows.iter().filter(|(_, flow)| queue_of(flow) == Some(queue));
            require!(all.count() == slots.len(), "a flow is in no queue");
        }
        for ended in &snapshot.quarantined {
            let backend = BackendId::new(ended.backend as usize);
            require!(self.backends.get(backend).is_some(), "a quarantine for nobody");
        }
        Ok(())
    }

    /// Every flow has a timer, which comes up in time, and nothing else has.
    fn check_timers(
        &self,
        snapshot: &FlowsSnapshot,
        timers: &TimersSnapshot,
    ) -> Result<(), RestoreError> {
        // That of a flow whose activity was asked for comes after its deadline.
        let asked = |flow: &&FlowSnapshot| flow.offload == Offload::Asked;
        let is_scheduled = |flow: &FlowSnapshot| self.wheel.is_scheduled(flow.slot as usize);
        require!(snapshot.alive.iter().filter(asked).all(is_scheduled), "a flow without a timer");
        let alive = snapshot.alive.iter().filter(|flow| !asked(flow));
        let alive = alive.map(|flow| (flow.slot, flow.deadline));
        let is_in_time =
            |(slot, deadline): (u32, Instant)| self.wheel.is_in_time_for(slot as usize, deadline);
        let quarantined = snapshot.quarantined.iter().map(|flow| (flow.slot, flow.until));
        let all = alive.chain(quarantined);
        require!({ all }.all(is_in_time), "a flow without a timer, or a late one");
        let scheduled: usize = timers.places.iter().map(|place| place.timers.len()).sum();
        let flows = snapshot.alive.len() + snapshot.quarantined.len();
        require!(scheduled == flows, "a timer of no flow");
        Ok(())
    }
}

/// The upstreams, and what of the flows is found by their routes.
fn restored_upstreams(
    snapshot: &ManagerSnapshot,
    flows: &mut FlowTable,
) -> Result<Upstreams, RestoreError> {
    let capacity = capacity_for_upstreams(&snapshot.config);
    let mut upstreams = Upstreams::restored(&snapshot.upstreams, capacity)?;
    let alive = snapshot.flows.alive.iter().map(|flow| (flow.slot, flow.upstream, flow.backend));
    let ended = &snapshot.flows.quarantined;
    let ended = ended.iter().map(|flow| (flow.slot, flow.upstream, flow.backend));
    let mut count = 0;
    if shares_upstreams(&snapshot.config) {
        flows.reserve_routes();
    }
    for (slot, upstream, backend) in alive.chain(ended) {
        upstreams.restore_flow(upstream, slot)?;
        count += 1;
        if matches!(upstreams.get(upstream), Some(Carries::Many { .. })) {
            let transaction = flows.at(slot as usize).1.transaction();
            let known = flows.find_route(upstream, BackendId::new(backend as usize), transaction);
            require!(known.is_none(), "two flows get the same answers");
            flows.add_route(slot as usize);
        }
    }
    upstreams.check_restored(count)?;
    Ok(upstreams)
}

impl Sweep {
    const fn snapshot(self) -> SweepSnapshot {
        let Self { at, next_slot, left } = self;
        SweepSnapshot { at, next_slot: next_slot as u32, left: left as u32 }
    }

    fn restored(snapshot: &SweepSnapshot, slots: usize) -> Result<Self, RestoreError> {
        let &SweepSnapshot { at, next_slot, left } = snapshot;
        let (next_slot, left) = (next_slot as usize, left as usize);
        require!(next_slot <= slots && left <= slots, "a search beyond all flows");
        Ok(Self { at, next_slot, left })
    }
}
