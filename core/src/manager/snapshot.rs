//! A manager as plain data, and a manager of that.

use super::invariants::queue_of;
use super::place::placement_room;
use super::upstream::{capacity_for_upstreams, shares_upstreams};
use super::{CONTINUED, EXCHANGED, QUEUES, UNANSWERED, UdpManager};
use crate::affinity::Placement;
use crate::backend::Backends;
use crate::balance::Balancer;
use crate::collections::lists::Lists;
use crate::collections::slot_set::SlotSet;
use crate::collections::wheel::TimerWheel;
use crate::config::prepared::PreparedConfig;
use crate::config::{MAX_FLOWS, ManagerConfig, Mode, slots_for};
use crate::counters::Counters;
use crate::flow::table::FlowTable;
use crate::flow::{FlowLimits, Offload, UdpFlow};
use crate::id::BackendId;
use crate::limits::SourceLimits;
use crate::proxy_protocol::table::Proxies;
use crate::random::Random;
use crate::retry_buffer::RetryBuffer;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowsSnapshot, TimersSnapshot};
use crate::snapshot::{ManagerSnapshot, RestoreError};
use crate::time::Instant;
use crate::upstream::{Carries, Upstreams};

impl UdpManager {
    /// Everything that it knows, as plain data. Looks at every flow, and changes nothing, but that
    /// [changes](Self::changes) are noted no longer.
    ///
    /// Anyone who has it can attack the flow table, and knows all clients.
    pub fn snapshot(&mut self) -> ManagerSnapshot {
        self.forget_changes();
        self.snapshot_of_changes()
    }

    /// A copy of this manager, in which is noted from now on what [changes](Self::changes), until the
    /// next snapshot or another configuration.
    #[must_use]
    pub fn copy_and_note_changes(&mut self) -> Self {
        self.forget_changes();
        let copy = self.clone();
        self.note_changes(true);
        copy
    }

    /// Notes no longer what changes.
    pub fn forget_changes(&mut self) {
        self.note_changes(false);
    }

    fn note_changes(&mut self, whether: bool) {
        // A ring of branches is told of as a whole or not at all.
        let has_rings = matches!(self.config.cluster.mode, Mode::FanOut { .. });
        let whether = whether && !has_rings;
        self.flows.note_changes(whether);
        self.wheel.note_changes(whether);
        self.queues.note_changes(whether);
    }

    /// Everything that it knows, but of flows and their timers only what has changed since a
    /// [copy](Self::copy_and_note_changes) was made: what makes of that one as this is now, by
    /// [`update`](Self::update). `None` where it is not noted.
    pub fn changes(&mut self) -> Option<ManagerSnapshot> {
        let is_noted = self.flows.notes_changes();
        is_noted.then(|| ManagerSnapshot { is_partial: true, ..self.snapshot_of_changes() })
    }

    fn snapshot_of_changes(&mut self) -> ManagerSnapshot {
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
            next_into_quarantine: self.next_into_quarantine,
            elsewhere: self.elsewhere,
            placement: self.placement.snapshot(),
            random: self.random.state(),
            salts: self.salts.clone(),
            drain: self.drain,
            silences_known_from: self.silences_known_from,
            sweep: self.sweep,
            last_partial_timeout: self.last_partial_timeout,
            kept: self.kept.snapshot(),
            is_partial: false,
        }
    }

    fn flows_snapshot(&mut self) -> FlowsSnapshot {
        FlowsSnapshot {
            unanswered: self.queues.pushed_back(UNANSWERED),
            unconfirmed: self.queues.pushed_back(EXCHANGED),
            continued: self.queues.pushed_back(CONTINUED),
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
    /// When the snapshot is not that of a manager, or only what has [changed](Self::changes) in one:
    /// when an [invariant](Self::assert_invariants) is broken.
    pub fn restore(
        snapshot: ManagerSnapshot,
        prepared: Option<&PreparedConfig>,
    ) -> Result<Self, RestoreError> {
        let ManagerSnapshot { config, flows: table, .. } = &snapshot;
        require!(!snapshot.is_partial, "changes, and nobody knows what was before");
        let (max_flows, most) = (config.max_flows, MAX_FLOWS);
        if max_flows > most || table.alive.len() > most as usize {
            return Err(RestoreError::TooManyFlows { max_flows, most });
        }
        let balancer = match prepared.filter(|ready| ready.has_the_turns_of(&config.cluster)) {
            Some(ready) => ready.balancer().clone(),
            None => PreparedConfig::new(config.clone()).balancer().clone(),
        };
        let mut config = config.clone();
        let reserved = config.reserved_flows();
        let slots = table.slots().len().max(slots_for(reserved));
        if let Some(prepared) = prepared {
            config.cluster.quic_lb = prepared.config().cluster.quic_lb.clone();
        }
        let before = Before {
            flows: FlowTable::before(table, reserved),
            queues: Lists::new(QUEUES, slots),
            wheel: TimerWheel::new(slots, Instant::ORIGIN),
            backends: Backends::new(&[], config.cluster.health),
            upstreams: Upstreams::with_capacity(0),
            has_proxies: true,
            balancer,
            config,
        };
        before.updated(snapshot)
    }

    /// What another manager has become that was like this one, by what has [changed](Self::changes)
    /// in it since. Takes time for that alone, if neither payloads nor proxies say whose flows are
    /// whose, and sources have no limits.
    ///
    /// # Errors
    ///
    /// As for [`restore`](Self::restore).
    pub fn update(self, changes: ManagerSnapshot) -> Result<Self, RestoreError> {
        let Self { flows, queues, wheel, backends, upstreams, balancer, config, .. } = self;
        let mut theirs = changes.config.clone();
        theirs.cluster.quic_lb.clone_from(&config.cluster.quic_lb);
        require!(changes.is_partial && theirs == config, "changes of another manager");
        let has_proxies = !self.proxies.is_empty();
        let before =
            Before { flows, queues, wheel, backends, upstreams, has_proxies, balancer, config };
        before.updated(changes)
    }
}

/// What is kept of a manager when a snapshot says what has become of it. The rest is made again.
struct Before {
    flows: FlowTable,
    queues: Lists,
    wheel: TimerWheel,
    /// How many flows they had.
    backends: Backends,
    /// How many flows were on them.
    upstreams: Upstreams,
    has_proxies: bool,
    balancer: Balancer,
    config: ManagerConfig,
}

impl Before {
    fn updated(mut self, snapshot: ManagerSnapshot) -> Result<UdpManager, RestoreError> {
        let max_flows = self.config.max_flows as usize;
        require!(snapshot.answered_clients.is_sound(), "a table of clients of another size");
        let (backends, upstreams) = self.counts(&snapshot)?;
        let Self { flows, queues, mut wheel, mut balancer, config, .. } = self;
        let reserved = config.reserved_flows();
        let capacity = flows.len().max(reserved);
        let (limit, slots) = placement_room(&config);
        let slots = (flows.slots().max(limit), flows.slots().max(slots));
        let mut source_limits =
            SourceLimits::restored(&snapshot.sources, &config.cluster.limits, capacity)?;
        if source_limits.totals().next().is_some() {
            flows.iter().for_each(|(_, flow)| source_limits.opened(flow.key().client.source()));
        }
        let proxied = if config.accept_proxy_protocol.is_empty() { 0 } else { max_flows };
        let proxied = (proxied, capacity);
        let proxies = if self.has_proxies || !snapshot.proxies.known.is_empty() {
            let of_flows = flows.iter().filter_map(|(_, flow)| flow.proxy());
            Proxies::restored(&snapshot.proxies, proxied, of_flows)?
        } else {
            let changed = snapshot.flows.alive.iter().map(|flow| flows.at(flow.slot as usize));
            let of_flows = changed.filter_map(|(_, flow)| flow.proxy());
            Proxies::restored(&snapshot.proxies, proxied, of_flows)?
        };
        let is_taken = |slot| flows.any_at(slot).is_some();
        wheel.update(&snapshot.timers, &snapshot.flows.vacant, is_taken)?;
        balancer.restore(&snapshot.turns)?;
        let sweep = snapshot.sweep;
        let within = |slot| slot <= flows.slots();
        let is_within = sweep.is_none_or(|sweep| within(sweep.next_slot) && within(sweep.left));
        require!(is_within, "a search beyond all flows");
        let is_alive = |slot| flows.alive_at(slot).is_some();
        let placement = Placement::restored(
            &snapshot.placement,
            &config.cluster,
            slots,
            backends.len(),
            is_alive,
        )?;
        let kept = RetryBuffer::restored(&snapshot.kept, &config, flows.slots());
        let kept = kept.ok_or(RestoreError::Broken("a question of no flow is kept"))?;
        let mut restored = UdpManager {
            limits: FlowLimits::new(&config.cluster),
            queues,
            counters: Counters::restored(&snapshot.counters, flows.len() as u64)?,
            openings: snapshot.openings.restored(),
            answered_clients: snapshot.answered_clients,
            first_answers: snapshot.first_answers.restored(),
            next_into_quarantine: snapshot.next_into_quarantine,
            elsewhere: snapshot.elsewhere,
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
            kept,
            config,
        };
        require!(restored.is_kept_rightly(), "a question of no flow is kept");
        restored.restore_queues(&snapshot.flows)?;
        restored.check_timers(&snapshot.flows, &snapshot.timers)?;
        Ok(restored)
    }

    /// Takes in the flows, and what they are counted by.
    fn counts(
        &mut self,
        snapshot: &ManagerSnapshot,
    ) -> Result<(Backends, Upstreams), RestoreError> {
        let (config, table) = (&self.config, &snapshot.flows);
        let mut backends = Backends::restored(&snapshot.backends, &config.cluster)?;
        backends.count_as(&self.backends);
        let capacity = capacity_for_upstreams(config);
        let mut upstreams = Upstreams::restored(&snapshot.upstreams, capacity)?;
        upstreams.count_as(&self.upstreams);
        for slot in table.slots() {
            if let Some(flow) = self.flows.any_at(slot as usize) {
                upstreams.uncount_flow(flow.upstream());
                if !flow.has_ended() {
                    backends.uncount_flow(flow.backend());
                }
            }
        }
        self.flows.update(table)?;
        if shares_upstreams(config) {
            self.flows.reserve_routes(config.reserved_flows());
        }
        for flow in &table.alive {
            backends.restore_flow(BackendId::new(flow.backend as usize))?;
        }
        for ended in &table.quarantined {
            let backend = BackendId::new(ended.backend as usize);
            require!(backends.get(backend).is_some(), "a quarantine for nobody");
        }
        require!(backends.flows() == self.flows.len(), "a backend of other flows");
        let alive = table.alive.iter().map(|flow| flow.slot);
        for slot in alive.chain(table.quarantined.iter().map(|flow| flow.slot)) {
            let (_, flow) = self.flows.at(slot as usize);
            let (upstream, backend, named) = (flow.upstream(), flow.backend(), flow.transaction());
            upstreams.restore_flow(upstream, slot)?;
            if matches!(upstreams.get(upstream), Some(Carries::Many { .. })) {
                let known = self.flows.find_route(upstream, backend, named);
                require!(known.is_none(), "two flows get the same answers");
                self.flows.add_route(slot as usize);
            }
        }
        let names = |slot| self.flows.any_at(slot).map(UdpFlow::upstream);
        upstreams.check_restored(self.flows.len() + self.flows.quarantined(), names)?;
        Ok((backends, upstreams))
    }
}

impl UdpManager {
    /// Puts flows into the queues that they belong to.
    fn restore_queues(&mut self, snapshot: &FlowsSnapshot) -> Result<(), RestoreError> {
        let queues = [
            (UNANSWERED, &snapshot.unanswered),
            (EXCHANGED, &snapshot.unconfirmed),
            (CONTINUED, &snapshot.continued),
        ];
        let mut named = SlotSet::default();
        for (queue, slots) in queues {
            for &slot in slots {
                let flow = self.flows.alive_at(slot as usize);
                let belongs = flow.is_some_and(|(_, flow)| queue_of(flow) == Some(queue));
                let is_new = belongs && named.insert(slot as usize);
                require!(is_new, "a flow in the wrong queue, or twice");
                self.queues.push_back(queue, slot as usize);
            }
        }
        for slot in snapshot.slots().into_iter().map(|slot| slot as usize) {
            match self.flows.alive_at(slot) {
                None => drop(self.queues.remove(slot)),
                Some((_, flow)) => {
                    let is_there = self.queues.list_of(slot) == queue_of(flow);
                    require!(is_there, "a flow is in no queue");
                }
            }
        }
        Ok(())
    }

    /// Every flow has a timer, which comes up in time.
    fn check_timers(
        &self,
        snapshot: &FlowsSnapshot,
        timers: &TimersSnapshot,
    ) -> Result<(), RestoreError> {
        let scheduled = timers.slots.iter().flat_map(|slot| slot.timers.iter().copied());
        for slot in snapshot.slots().into_iter().chain(scheduled).map(|slot| slot as usize) {
            let Some(flow) = self.flows.any_at(slot) else { continue };
            // That of a flow whose activity was asked for comes after its deadline.
            let is_asked = !flow.has_ended() && flow.offload() == Offload::Asked;
            require!(!is_asked || self.wheel.is_scheduled(slot), "a flow without a timer");
            let is_in_time = is_asked || self.wheel.is_in_time_for(slot, flow.deadline());
            require!(is_in_time, "a flow without a timer, or a late one");
        }
        Ok(())
    }
}
