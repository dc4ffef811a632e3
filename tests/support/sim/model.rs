//! The reference: what a balancer must do, written to be obviously right rather than fast.
//!
//! It has no hash table, no timer wheel and no bursts: a list of flows that is searched from the
//! start, true deadlines, and datagrams one by one. It shares no code with the core but the names
//! of things, the frozen hash, and the encoding and the reading of PROXY headers.
//!
//! What it cannot know beforehand it takes from the outputs, once it has seen that it is allowed:
//! the id of a new flow; the backend where chance decides; on which backend a resting socket makes
//! room; and that a source was refused because it shares its buckets with others. Flows that end
//! at the same moment may end in any order.

mod admission;
mod balance;
mod change;
mod datagrams;
mod deadline;
mod effect;
mod health;
pub(super) mod relay;
mod room;
mod sockets;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::backend::Backends;
use flowgate_core::config::{ClusterConfig, ManagerConfig};
use flowgate_core::counters::{Counters, Ledger, Traffic};
use flowgate_core::{
    BackendId, Carrier, CloseReason, Direction, DropReason, FlowId, FlowRecord, Instant, LocalAddr,
    ManagerInput, Output, UdpManager, UpstreamFailure,
};

use self::admission::{Rates, Seen};
use self::balance::{Balance, Load};
use self::effect::Effect;
use self::health::Sign;
use self::relay::{Named, Role};
use self::room::{FirstAnswers, Openings, Room};
use self::sockets::{Kept, Resting};
use super::forge::backend_id;
use super::setting::{Setting, Source};
use super::{Violation, require};

/// The reference, and all that it believes of the balancer.
#[derive(Clone, Debug)]
pub struct Model {
    config: ManagerConfig,
    /// In the order in which they were opened.
    flows: Vec<Flow>,
    /// The sockets of flows that have ended, in the order in which they began to rest.
    resting: Vec<Resting>,
    /// The sockets that close, and until when they are nobody's.
    quarantined: BTreeMap<FlowId, Instant>,
    /// Every id ever given out: none may come twice.
    used_ids: BTreeSet<FlowId>,
    loads: Vec<Load>,
    balance: Balance,
    rates: Rates,
    /// Whom each proxy has named last.
    named: BTreeMap<Role, Named>,
    counters: Counters,
    drain: Option<Instant>,
    /// The flows that were answered and not confirmed, in the order in which they are looked at.
    unconfirmed: VecDeque<FlowId>,
    /// The same of those that were confirmed.
    continued: VecDeque<FlowId>,
    first_answers: FirstAnswers,
    openings: Openings,
    /// When each backend answered last, by its place.
    answers: BTreeMap<usize, Instant>,
    /// Clients that were answered where an answer is expected.
    answered_clients: BTreeSet<Source>,
    /// Where the flow that opens next has its room from.
    room: Room,
    /// From when on deadlines tell how long flows have been silent.
    silences_known_from: Instant,
    /// The most flows that were ever allowed: as many slots there may be.
    largest_table: usize,
    /// Whether flows had to end since the last timeout.
    has_to_sweep: bool,
    /// When it was made, or had its last timeout.
    timers_seen: Instant,
}

#[derive(Clone, Debug)]
struct Flow {
    id: FlowId,
    client: SocketAddr,
    local: Option<LocalAddr>,
    /// The proxy that speaks for the client.
    via: Option<Role>,
    backend: usize,
    opened: Instant,
    first_answer: Option<Instant>,
    deadline: Instant,
    requests: Traffic,
    replies: Traffic,
    /// It has had its last request: the client's next one opens another flow.
    retired: bool,
    /// A reply has gone to the client.
    answered: bool,
    /// The client has sent something after that.
    confirmed: bool,
    /// It has sent something to the backend that it has now.
    introduced: bool,
    /// Something has come from a backend, if only to be dropped.
    heard: bool,
}

/// Whom a burst comes from, and how it is marked.
#[derive(Clone, Copy, Debug)]
struct Sender {
    source: SocketAddr,
    local: Option<LocalAddr>,
    tos: u8,
    ttl: u8,
}

impl Model {
    /// The reference for a manager that has just been made.
    pub fn new(setting: &Setting) -> Self {
        let cluster = &setting.config.cluster;
        Self {
            config: setting.config.clone(),
            flows: vec![],
            resting: vec![],
            quarantined: BTreeMap::new(),
            used_ids: BTreeSet::new(),
            loads: cluster.backends.iter().map(|&config| Load::none(config)).collect(),
            balance: Balance::new(cluster),
            rates: Rates::default(),
            named: BTreeMap::new(),
            counters: Counters::default(),
            drain: None,
            unconfirmed: VecDeque::new(),
            continued: VecDeque::new(),
            first_answers: FirstAnswers::default(),
            openings: Openings::default(),
            answers: BTreeMap::new(),
            answered_clients: BTreeSet::new(),
            room: Room::default(),
            silences_known_from: setting.start,
            largest_table: setting.config.max_flows as usize,
            has_to_sweep: false,
            timers_seen: setting.start,
        }
    }

    /// Compares what the balancer did about an input with what it had to do.
    pub fn check(
        &mut self,
        input: &ManagerInput<'_>,
        now: Instant,
        outputs: &[Output<'_>],
    ) -> Result<(), Violation> {
        let observed = effect::of_outputs(outputs);
        let mut are_alone = false;
        let expected = match *input {
            ManagerInput::ClientBurst { source, local, tos, ttl, burst } => {
                let from = Sender { source, local, tos, ttl };
                are_alone = self.are_alone(from, burst.datagrams().next().unwrap_or_default());
                self.requests(from, &burst, now, &mut Seen::of(&observed))?
            }
            ManagerInput::BackendBurst { flow, tos, burst } => self.replies(flow, tos, &burst, now),
            ManagerInput::Timeout => self.timeout(now, &observed),
            ManagerInput::Configured(new) => self.configure(new.config(), now, &observed),
            _ => self.proxy_info(input, now),
        };
        if observed != expected {
            return Err(effect::difference(&observed, &expected));
        }
        let fewest = if are_alone { expected.len() } else { effect::fewest_outputs(&expected) };
        let emitted = outputs.len();
        require!(emitted == fewest, "{emitted} outputs where {fewest} would do: {outputs:?}");
        let is_timeout = matches!(input, ManagerInput::Timeout);
        let has_to_end = (0..self.flows.len()).any(|place| self.must_end(place).is_some());
        self.has_to_sweep = has_to_end || (self.has_to_sweep && !is_timeout);
        Ok(())
    }

    /// Compares what the balancer says of itself with what it must be.
    pub fn check_state(&self, manager: &UdpManager, counters: &Counters) -> Result<(), Violation> {
        self.check_counters(counters)?;
        let (is, should) = (manager.flow_count(), self.flows.len());
        require!(is == should, "there are {is} flows, and should be {should}");
        for flow in &self.flows {
            flow.check(manager)?;
        }
        check_loads(&self.loads, manager.backends())?;
        for (id, _) in manager.backends().iter() {
            let is = manager.resting_for(id);
            let should = self.resting.iter().filter(|rests| rests.backend == id.index()).count();
            require!(is == should, "{is} sockets rest for {id:?}, and {should} should");
        }
        let (is, should) = (manager.quarantined(), self.quarantined.len());
        require!(is == should, "{is} sockets are in quarantine, and {should} should be");
        let should = self.drain.is_some() && self.flows.is_empty();
        require!(manager.is_drained() == should, "drained is {}, not {should}", !should);
        Ok(())
    }

    fn check_counters(&self, counters: &Counters) -> Result<(), Violation> {
        if *counters == self.counters {
            return Ok(());
        }
        for direction in Direction::ALL {
            let (is, should) = (counters.ledger(direction), self.counters.ledger(direction));
            let named = [
                ("received", is.received, should.received),
                ("forwarded", is.forwarded, should.forwarded),
                ("queued", is.queued, should.queued),
            ];
            let dropped = DropReason::ALL.iter().map(|&reason| {
                (reason.as_str(), is.dropped_for(reason), should.dropped_for(reason))
            });
            for (name, is, should) in named.into_iter().chain(dropped) {
                let direction = direction.as_str();
                require!(is == should, "{direction} {name} is {is:?}, and should be {should:?}");
            }
        }
        let flows =
            |c: &Counters| (c.flows_opened, c.flows_closed, c.flows_moved, c.upstream_errors);
        let (is, should) = (flows(counters), flows(&self.counters));
        Err(Violation(format!("flows are counted {is:?}, and should be {should:?}")))
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// How many sockets there must be: those of flows, those that rest, and those in quarantine.
    pub fn socket_count(&self) -> usize {
        self.flows.len() + self.resting.len() + self.quarantined.len()
    }

    /// What the balancer is told without datagrams to forward.
    fn proxy_info<'p>(&mut self, input: &ManagerInput<'_>, now: Instant) -> Vec<Effect<'p>> {
        match *input {
            ManagerInput::Unusable { direction, reason, datagrams, bytes } => {
                let traffic = traffic(datagrams, bytes);
                let ledger = self.ledger(direction);
                ledger.received = ledger.received.plus(traffic);
                let dropped = &mut ledger.dropped[reason as usize];
                *dropped = dropped.plus(traffic);
            }
            ManagerInput::Delivered { backend, direction, datagrams, bytes, .. } => {
                self.delivered(backend, direction, traffic(datagrams, bytes));
            }
            // In sessions every datagram has a flow.
            ManagerInput::Undelivered {
                carrier: Carrier::OneWay(_) | Carrier::Copy(_), ..
            } => {}
            ManagerInput::Undelivered {
                carrier: Carrier::Flow(flow),
                direction,
                reason,
                datagrams,
                bytes,
                ..
            } => self.undelivered(flow, direction, reason, traffic(datagrams, bytes)),
            ManagerInput::UpstreamFailed { flow, failure: UpstreamFailure::NotOpened } => {
                let place = self.place_of(flow);
                let close = |place| self.close(place, CloseReason::UpstreamFailed, now);
                return place.map(close).unwrap_or_default();
            }
            ManagerInput::UpstreamFailed { flow, .. } => {
                self.counters.upstream_errors += 1;
                if let Some(place) = self.place_of(flow) {
                    let flow = &self.flows[place];
                    let timeout = timeout_of(&self.config.cluster, flow.answered).as_nanos() as u64;
                    let sent = flow.deadline.as_nanos().saturating_sub(timeout);
                    let sign = Sign::Error { sent: Instant::from_nanos(sent) };
                    self.note(flow.backend, sign, now);
                }
            }
            ManagerInput::BackendChanged { backend, event } => {
                if let Some(load) = self.loads.get_mut(backend.index()) {
                    load.health.hear(event);
                }
            }
            ManagerInput::Drain { deadline } => self.drain = Some(deadline),
            ManagerInput::Reading { is_behind } => self.openings.read(is_behind),
            ManagerInput::ClientBurst { .. }
            | ManagerInput::Mirrored { .. }
            | ManagerInput::BackendBurst { .. }
            | ManagerInput::Configured(_)
            | ManagerInput::Timeout => {}
        }
        vec![]
    }

    fn undelivered(
        &mut self,
        id: FlowId,
        direction: Direction,
        reason: DropReason,
        traffic: Traffic,
    ) {
        let ledger = self.ledger(direction);
        ledger.queued = minus(ledger.queued, traffic);
        let dropped = &mut ledger.dropped[reason as usize];
        *dropped = dropped.plus(traffic);
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) {
            let of_flow = match direction {
                Direction::ToBackend => &mut flow.requests,
                Direction::ToClient => &mut flow.replies,
            };
            *of_flow = minus(*of_flow, traffic);
        }
    }

    fn delivered(&mut self, backend: Option<BackendId>, direction: Direction, traffic: Traffic) {
        let ledger = self.ledger(direction);
        ledger.queued = minus(ledger.queued, traffic);
        ledger.forwarded = ledger.forwarded.plus(traffic);
        if let Some(backend) = backend {
            let load = &mut self.loads[backend.index()];
            load.to = load.to.plus(traffic);
        }
    }

    fn close<'p>(&mut self, place: usize, reason: CloseReason, now: Instant) -> Vec<Effect<'p>> {
        let kept = self.keeps_socket(reason, &self.flows[place]);
        let flow = self.flows.remove(place);
        self.put_off(&flow, now);
        self.unconfirmed.retain(|&id| id != flow.id);
        self.continued.retain(|&id| id != flow.id);
        let record = self.config.record_flows.then(|| flow.record(reason, now));
        let has_asked = self.config.cluster.responses > 0 && flow.requests.datagrams > 0;
        if reason == CloseReason::Idle && has_asked && !flow.heard {
            self.miss_answer(&flow, now);
        }
        self.loads[flow.backend].flows -= 1;
        self.counters.flows_closed[reason as usize] += 1;
        match kept {
            Kept::Not => {}
            Kept::ForOthers => self.rest(flow.id, flow.backend, now),
            Kept::ForNobody(time) => drop(self.quarantined.insert(flow.id, now + time)),
        }
        let keep_socket = kept != Kept::Not;
        let mut effects = vec![];
        effects.extend(record.map(|record| Effect::Record { flow: flow.id, record }));
        effects.push(Effect::Close { flow: flow.id, reason, keep_socket });
        effects
    }

    fn place_of(&self, id: FlowId) -> Option<usize> {
        self.flows.iter().position(|flow| flow.id == id)
    }

    /// All ids of flows and resting sockets: first those that `observed` ends, in that order.
    fn in_order_of(&self, observed: &[Effect<'_>]) -> Vec<FlowId> {
        let mut ids: Vec<FlowId> = observed.iter().filter_map(Effect::ended).collect();
        let known = self.flows.iter().map(|flow| flow.id).chain(self.resting.iter().map(|r| r.id));
        let known = known.chain(self.quarantined.keys().copied());
        let others: Vec<FlowId> = known.filter(|id| !ids.contains(id)).collect();
        ids.extend(others);
        ids
    }

    fn drop<'p>(
        &mut self,
        direction: Direction,
        reason: DropReason,
        datagram: &[u8],
    ) -> Effect<'p> {
        count(&mut self.ledger(direction).dropped[reason as usize], datagram);
        Effect::Drop { direction, reason }
    }

    fn ledger(&mut self, direction: Direction) -> &mut Ledger {
        match direction {
            Direction::ToBackend => &mut self.counters.to_backend,
            Direction::ToClient => &mut self.counters.to_client,
        }
    }
}

impl Flow {
    /// What it was, in the words of the log of flows.
    fn record(&self, reason: CloseReason, now: Instant) -> FlowRecord {
        let nanos = |until: Instant| until.as_nanos() - self.opened.as_nanos();
        FlowRecord {
            client: self.client,
            backend: backend_id(self.backend as u8),
            reason,
            to_backend: self.requests,
            to_client: self.replies,
            lasted_ns: nanos(now),
            first_answer_ns: self.first_answer.map(nanos),
        }
    }

    fn check(&self, manager: &UdpManager) -> Result<(), Violation> {
        let id = self.id;
        let Some(flow) = manager.flow(id) else {
            return Err(Violation(format!("{id:?} should be alive")));
        };
        let is = (flow.client(), flow.local(), flow.backend().index());
        let should = (self.client, self.local, self.backend);
        require!(is == should, "{id:?} is {is:?}, and should be {should:?}");
        let is = (flow.is_retired(), flow.is_answered());
        let should = (self.retired, self.answered);
        require!(is == should, "{id:?} is {is:?}, and should be {should:?}");
        let is = (flow.opened(), flow.deadline(), flow.to_backend(), flow.to_client());
        let should = (self.opened, self.deadline, self.requests, self.replies);
        require!(is == should, "{id:?} is {is:?}, and should be {should:?}");
        let is = flow.first_answer_after();
        let should = self.first_answer.map(|first| first - self.opened);
        require!(is == should, "{id:?} is answered after {is:?}, and should be {should:?}");
        Ok(())
    }
}

fn check_loads(loads: &[Load], backends: &Backends) -> Result<(), Violation> {
    let (is, should) = (backends.len(), loads.len());
    require!(is == should, "there are {is} backends, and should be {should}");
    for (load, (id, backend)) in loads.iter().zip(backends.iter()) {
        let is = (backend.flows_active, backend.to, backend.from);
        let should = (load.flows, load.to, load.from);
        require!(is == should, "{id:?} has {is:?}, and should have {should:?}");
        let is = (backend.address(), backend.is_removed(), backend.state());
        let should = (load.config.address, load.config.removed, load.health.state());
        require!(is == should, "{id:?} is {is:?}, and should be {should:?}");
    }
    Ok(())
}

fn traffic(datagrams: u32, bytes: u64) -> Traffic {
    let datagrams = datagrams.into();
    Traffic { datagrams, bytes }
}

fn count(sum: &mut Traffic, datagram: &[u8]) {
    *sum = sum.plus(traffic(1, datagram.len() as u64));
}

/// Panics where less was counted than is taken back, which the world never asks for.
fn minus(traffic: Traffic, less: Traffic) -> Traffic {
    Traffic { datagrams: traffic.datagrams - less.datagrams, bytes: traffic.bytes - less.bytes }
}

/// How long a flow lives without a datagram: perhaps shorter while it waits for its first answer.
fn timeout_of(cluster: &ClusterConfig, is_answered: bool) -> Duration {
    let for_the_unanswered = cluster.limits.unanswered_timeout;
    if is_answered || for_the_unanswered.is_zero() {
        cluster.idle_timeout
    } else {
        cluster.idle_timeout.min(for_the_unanswered)
    }
}
