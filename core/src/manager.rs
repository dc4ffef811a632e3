//! The manager: every decision about the flows of one listener socket.

mod admit;
mod close;
mod configure;
pub(crate) mod evict;
mod expire;
pub(crate) mod failover;
mod forward;
mod hedge;
mod invariants;
mod offload;
mod one_way;
mod place;
mod proxied;
mod retry;
#[cfg(feature = "snapshot")]
mod snapshot;
mod upstream;

use core::net::SocketAddr;
use core::ops::Range;

use crate::affinity::{Placed, PlacedBy, Placement};
use crate::backend::Backends;
use crate::balance::Balancer;
use crate::collections::lists::Lists;
use crate::collections::wheel::TimerWheel;
use crate::config::prepared::PreparedConfig;
use crate::config::{ManagerConfig, slots_for};
use crate::counters::{Counters, Traffic};
use crate::egress::Salts;
use crate::flow::first_answers::FirstAnswers;
use crate::flow::key::FlowKey;
use crate::flow::table::FlowTable;
use crate::flow::{FlowLimits, UdpFlow};
use crate::id::{BackendId, FlowId, UpstreamId};
use crate::input::ManagerInput;
use crate::limits::SourceLimits;
use crate::limits::answered::AnsweredClients;
use crate::limits::overload::OpeningBudget;
use crate::local_addr::LocalAddr;
use crate::output::Outputs;
use crate::proxy_protocol::table::Proxies;
use crate::random::Random;
use crate::reason::{Direction, DropReason};
use crate::retry_buffer::RetryBuffer;
use crate::time::Instant;
use crate::upstream::Upstreams;

/// The queue of the flows that have not been answered, oldest first.
const UNANSWERED: usize = 0;

/// The queue of the flows that have been answered and whose clients have sent nothing since.
const EXCHANGED: usize = 1;

/// The queue of the flows whose clients have sent something after an answer.
const CONTINUED: usize = 2;

/// How many such queues there are.
const QUEUES: usize = 3;

/// With fewer flows than this they stay in the cache by themselves. Unit tests prefetch always.
const PREFETCH_FROM: usize = if cfg!(test) { 1 } else { 1_024 };

use evict::TakenElsewhere;
use failover::Sweep;
use forward::RecvMeta;
use offload::Activity;
use place::placement_room;
use upstream::capacity_for_upstreams;

pub use expire::{Deadline, DeadlineReason};

/// The flows of one listener socket, and all decisions about them.
///
/// # How to drive it
///
/// The methods fall into three kinds:
///
/// - the one handler, [`handle_input`](Self::handle_input): tell what happened, and when; it
///   emits what is to be done;
/// - the one poller, [`poll_timeout`](Self::poll_timeout): ask when to call next at the latest.
///   Ask again after every input;
/// - getters, which change nothing.
///
/// The order is always the same: input, carry out what was emitted, poll the timeout, wait. An
/// order that cannot be carried out is told as an input of its own
/// ([`Undelivered`](ManagerInput::Undelivered),
/// [`UpstreamOpenFailed`](ManagerInput::UpstreamOpenFailed)), and what was sent is, too
/// ([`Delivered`](ManagerInput::Delivered)): until then it is queued.
///
/// A known flow's burst costs one table lookup and writes to one flow. The manager allocates when
/// it is made, when it is configured again, and when a socket opens that flows share; at no other time,
/// unless it [shares](ManagerConfig::shares_max_flows) `max_flows`: then its tables double as flows open.
#[derive(Clone, Debug)]
pub struct UdpManager {
    config: ManagerConfig,
    /// What others hold of `max_flows` and `max_slots`, where they share them.
    elsewhere: TakenElsewhere,
    limits: FlowLimits,
    flows: FlowTable,
    upstreams: Upstreams,
    wheel: TimerWheel,
    backends: Backends,
    balancer: Balancer,
    queues: Lists,
    source_limits: SourceLimits,
    placement: Placement,
    salts: Salts,
    proxies: Proxies,
    counters: Counters,
    /// How many flows may open while the listener is behind.
    openings: OpeningBudget,
    /// Whose silence is a sign against a backend, and who has another flow where slots are scarce.
    answered_clients: AnsweredClients,
    /// How long backends take to answer.
    first_answers: FirstAnswers,
    /// When another flow may go into quarantine to make room, while slots are scarce.
    next_into_quarantine: Instant,
    random: Random,
    drain: Option<Instant>,
    /// Deadlines tell how long a flow has been silent from then on.
    silences_known_from: Instant,
    /// The search for flows that have to end, while one is under way.
    sweep: Option<Sweep>,
    /// Whether backends may have been lost since the last input whose flows the kernel must forward
    /// no more.
    has_lost_backends: bool,
    /// Those that may be asked again.
    kept: RetryBuffer,
    /// When the last timeout left work behind, if it did. The next is a tick later.
    last_partial_timeout: Option<Instant>,
}

impl UdpManager {
    /// A manager without flows. Every random choice it will make grows from `seed`: a shell must
    /// take it from the operating system, since anyone who knows it can attack the flow table.
    pub fn new(config: ManagerConfig, seed: u64, now: Instant) -> Self {
        Self::configured(&PreparedConfig::new(config), seed, now)
    }

    /// The same from a configuration that is prepared already: several managers that serve the same
    /// backends share what is large in it.
    pub fn configured(configuration: &PreparedConfig, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        let config = configuration.config().clone();
        let capacity = config.reserved_flows();
        let backends =
            Backends::new(&config.cluster.backends, config.cluster.health).starting_at(now);
        let mut manager = Self {
            limits: FlowLimits::new(&config.cluster),
            flows: FlowTable::new(capacity, &mut random),
            upstreams: Upstreams::with_capacity(capacity_for_upstreams(&config)),
            wheel: TimerWheel::new(slots_for(capacity), now),
            balancer: configuration.balancer().clone(),
            queues: Lists::new(QUEUES, slots_for(capacity)),
            backends,
            source_limits: SourceLimits::new(&config.cluster.limits, capacity, &mut random),
            placement: Placement::new(&config.cluster, placement_room(&config), &mut random),
            salts: Salts::new(seed),
            proxies: Proxies::new(),
            counters: Counters::default(),
            first_answers: FirstAnswers::default(),
            next_into_quarantine: now,
            openings: OpeningBudget::UNLIMITED,
            answered_clients: AnsweredClients::new(&mut random),
            random,
            drain: None,
            silences_known_from: now,
            sweep: None,
            has_lost_backends: false,
            kept: RetryBuffer::new(&config),
            last_partial_timeout: None,
            elsewhere: TakenElsewhere::default(),
            config,
        };
        if manager.shares_upstreams() {
            manager.flows.reserve_routes(capacity);
        }
        if !manager.config.accept_proxy_protocol.is_empty() {
            let max_flows = manager.config.max_flows as usize;
            manager.proxies.reserve(max_flows, capacity, &mut manager.random);
        }
        manager
    }

    /// The same, but that the first turn of round-robin is that of another backend: for managers
    /// that serve the same backends side by side, each of which gets another number.
    #[must_use]
    pub fn as_number(mut self, number: usize) -> Self {
        self.balancer.skip_turns(number, &self.backends);
        self
    }

    /// Takes in what happened at `now` and emits what is to be done about it.
    ///
    /// `now` may stand still or jump ahead between calls. Never panics, whatever the input.
    #[inline]
    pub fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        match input {
            ManagerInput::ClientBurst { source, local, tos, ttl, burst } => {
                let client = FlowKey::new(source, local);
                self.handle_client_burst(&client, tos, ttl, burst, now, outputs);
            }
            ManagerInput::Mirrored { client, local, proxy_info, tos, ttl, burst } => {
                let (client, recv_meta) =
                    (FlowKey::new(client, local), RecvMeta { tos, ttl, proxy_info });
                self.handle_datagrams(&client, &client, &recv_meta, burst, now, outputs);
            }
            ManagerInput::UpstreamBurst { upstream, sender, tos, burst } => {
                self.handle_upstream_burst(upstream, sender, tos, burst, now, outputs);
            }
            ManagerInput::Unusable { direction, reason, datagrams, bytes } => {
                let traffic = Traffic { datagrams: u64::from(datagrams), bytes };
                let ledger = self.counters.ledger_mut(direction);
                ledger.received.add(traffic);
                ledger.drop(reason, traffic);
            }
            ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes } => {
                let traffic = Traffic { datagrams: u64::from(datagrams), bytes };
                self.handle_delivered(send_id, backend, direction, traffic);
            }
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes } => {
                let traffic = Traffic { datagrams: u64::from(datagrams), bytes };
                let of = (send_id, backend, direction);
                self.handle_undelivered(of, reason, traffic, now, outputs);
            }
            ManagerInput::UpstreamOpenFailed { upstream } => {
                self.handle_open_failed(upstream, now, outputs);
            }
            ManagerInput::UpstreamError { upstream, remote, question, error: _ } => {
                self.handle_upstream_error(upstream, remote, question, now, outputs);
            }
            ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last } => {
                let activity = Activity { backend, to_backend, to_client, last };
                self.handle_flow_activity(flow, &activity, now, outputs);
            }
            ManagerInput::BackendChanged { backend, event } => {
                self.handle_backend_event(backend, event, now);
            }
            ManagerInput::NetworkChanged => {
                if self.backends.network_changed(now) {
                    self.sweep_if_needed(now);
                }
            }
            ManagerInput::Reading { is_behind } => self.openings.begin(is_behind),
            ManagerInput::TakenElsewhere { flows, slots } => {
                self.elsewhere = TakenElsewhere { flows, slots };
            }
            ManagerInput::RoomWanted => self.make_room_elsewhere(now, outputs),
            ManagerInput::Configured(configuration) => self.configure(configuration, now, outputs),
            ManagerInput::Drain { deadline } => self.drain = Some(deadline),
            ManagerInput::Timeout => self.handle_timeout(now, outputs),
        }
        if self.has_lost_backends {
            self.recall_lost_backends(outputs);
        }
    }

    /// Fetches from memory the flows of the clients whose bursts are handled next, in that order,
    /// up to 64. With many flows each lies somewhere in main memory, and this waits for all of
    /// them together where handling one burst after another would wait for each.
    ///
    /// A hint: nothing depends on it but speed, also where it turns out wrong. Where proxies speak
    /// for clients, or each question is a flow, it does nothing, since whose the bursts are is not
    /// known before they are read.
    #[inline]
    pub fn prefetch(&mut self, clients: impl Iterator<Item = (SocketAddr, Option<LocalAddr>)>) {
        let ManagerConfig { accept_proxy_protocol, cluster, .. } = &self.config;
        let are_clients = accept_proxy_protocol.is_empty() && cluster.questions().is_none();
        if are_clients && self.flows.len() >= PREFETCH_FROM {
            self.flows.prefetch(clients.map(|(source, local)| FlowKey::new(source, local)));
            self.placement.prefetch(self.flows.expected());
        }
    }

    /// The same for the flows whose upstreams are in some slots, and whose replies are handled next.
    #[inline]
    pub fn prefetch_upstreams(&self, slots: impl Iterator<Item = usize>) {
        if self.flows.len() >= PREFETCH_FROM {
            self.flows.prefetch_slots(slots.filter_map(|slot| self.upstreams.flow_at(slot)));
        }
    }

    /// What it was told to do.
    pub const fn config(&self) -> &ManagerConfig {
        &self.config
    }

    /// What it has counted since it was made.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The backends and their live figures.
    pub const fn backends(&self) -> &Backends {
        &self.backends
    }

    /// How many flows are alive, retired ones too.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// How many slots are taken, by flows alive and in quarantine.
    pub fn taken_slots(&self) -> usize {
        self.flows.taken()
    }

    /// One flow, if it is alive.
    pub fn flow(&self, id: FlowId) -> Option<&UdpFlow> {
        self.flows.get(id)
    }

    /// All flows alive, in no particular order. Looks at every slot: not for each datagram. Its
    /// bounded twin is [`flows_in`](Self::flows_in).
    pub fn flows(&self) -> impl Iterator<Item = (FlowId, &UdpFlow)> {
        self.flows.iter()
    }

    /// The flows alive in some of the [slots](Self::slots), to look at all of them bit by bit.
    pub fn flows_in(&self, slots: Range<usize>) -> impl Iterator<Item = (FlowId, &UdpFlow)> {
        slots.filter_map(|slot| self.flows.alive_at(slot))
    }

    /// How many upstreams to make room for at start, so that none allocates. Shared ones are as many as
    /// they come to be.
    pub fn upstream_capacity(&self) -> usize {
        capacity_for_upstreams(&self.config)
    }

    /// How many slots there are to look at to see every flow.
    pub fn slots(&self) -> usize {
        self.flows.slots()
    }

    /// What a live flow was placed by, and the id or key, as much of it as is kept.
    pub fn placed(&self, id: FlowId) -> Placed {
        self.placement.of(id.index())
    }

    /// The backend that an id in a client's datagram names now, and how it is known, if there is one that
    /// can take it.
    pub fn named_by(&self, datagram: &[u8], now: Instant) -> Option<(PlacedBy, BackendId)> {
        let place = self.place(datagram, now);
        let can_take = |&named: &BackendId| self.backends.can_take(named, place.is_opening);
        place.named.filter(can_take).map(|named| (place.by, named))
    }

    /// How many flows have ended, and keep what they were answered by from others for a while.
    pub const fn quarantined(&self) -> usize {
        self.flows.quarantined()
    }

    /// What is kept from others since something may still come there, as far as it lies on upstreams
    /// that flows share: the upstream, and whose answers come there.
    pub fn places_in_quarantine(&self) -> impl Iterator<Item = (UpstreamId, BackendId)> {
        self.flows.in_quarantine().map(|(_, flow)| (flow.upstream(), flow.backend()))
    }

    /// How many upstream sockets are open, and how many of those are shared.
    pub fn upstream_counts(&self) -> (usize, usize) {
        self.upstreams.counts()
    }

    /// How many slots upstream sockets have had.
    pub const fn upstream_slots(&self) -> usize {
        self.upstreams.slots()
    }

    /// Whether it was told to drain and has no flow left.
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.flows.len() == 0
    }

    /// Counts datagrams that arrived or were accepted, and go no further.
    fn drop_burst<'p>(
        &mut self,
        direction: Direction,
        reason: DropReason,
        burst: &crate::Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.ledger_mut(direction).drop(reason, Traffic::of(burst));
        outputs.emit(crate::output::Output::Drop { direction, reason, datagrams: burst.count() });
    }
}

#[cfg(test)]
mod tests;
