//! The reference: what a balancer must do, written to be obviously right rather than fast.
//!
//! It has no hash table, no timer wheel and no bursts: a list of flows that is searched from the
//! start, true deadlines, and datagrams one by one. It shares no code with the core but the names
//! of things, the frozen hash, and the encoding and the reading of PROXY headers.
//!
//! What it cannot know beforehand it takes from the outputs, once it has seen that it is allowed:
//! the id of a new flow; the backend where chance decides, and which of the free sockets; and that a
//! source was refused because it shares its buckets with others. Flows that end at the same moment
//! may end in any order.

mod admission;
mod balance;
mod change;
mod datagrams;
mod deadline;
mod effect;
mod health;
mod offload;
pub(super) mod relay;
mod retry;
mod room;
mod sockets;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::backend::Backends;
use flowgate_core::config::{ClusterConfig, ManagerConfig};
use flowgate_core::counters::{Counters, Ledger, Traffic};
use flowgate_core::{
    BackendId, CloseReason, Direction, DropReason, FlowId, FlowRecord, Instant, LocalAddr,
    ManagerInput, Output, SendId, TransactionId, UdpManager, UpstreamId,
};

use self::admission::{Rates, Seen};
use self::balance::{Balance, Load};
use self::effect::Effect;
use self::health::Sign;
use self::relay::{Name, Named, Role};
use self::retry::{Cause, Question};
use self::room::{FirstAnswers, Openings, Room};
use self::sockets::{Quarantined, Recipient, Socket};
use super::forge::backend_id;
use super::setting::{Setting, Source};
use super::{Violation, require};

/// The reference, and all that it believes of the balancer.
#[derive(Clone, Debug)]
pub struct Model {
    config: ManagerConfig,
    /// In the order in which they were opened.
    flows: Vec<Flow>,
    /// The sockets that are open.
    sockets: BTreeMap<UpstreamId, Socket>,
    /// What flows that have ended have left on them, where something may still come.
    quarantined: Vec<Quarantined>,
    /// The same where nothing should come, on shared ones.
    quarantined_pairs: Vec<Quarantined>,
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
    /// When another flow may go into quarantine for a new one, while slots are scarce.
    next_into_quarantine: Instant,
    openings: Openings,
    /// When each backend answered last, by its place.
    answers: BTreeMap<usize, Instant>,
    /// Clients that were answered where an answer is expected.
    answered_clients: BTreeSet<Source>,
    /// How many flows others have, and slots, where they share the limits of both.
    others: (usize, usize),
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
    /// Whether that timeout may have left something to the next.
    may_have_left: bool,
    /// Whether who may be asked again depended on the order of what happened then.
    was_tight: bool,
}

#[derive(Clone, Debug)]
struct Flow {
    id: FlowId,
    client: SocketAddr,
    local: Option<LocalAddr>,
    /// The proxy that speaks for the client.
    via: Option<Role>,
    /// What names its question, where each is a flow of its own.
    question: Option<Name>,
    backend: usize,
    upstream: UpstreamId,
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
    /// The kernel may forward its datagrams.
    offered: bool,
    /// It was asked what it has forwarded, and is to be asked again then.
    asked_until: Option<Instant>,
    /// How many datagrams came by the sockets since it was offered.
    by_sockets: u64,
    /// Its question, as long as another backend may be asked.
    kept: Option<Question>,
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
            sockets: BTreeMap::new(),
            quarantined: vec![],
            quarantined_pairs: vec![],
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
            next_into_quarantine: setting.start,
            openings: Openings::default(),
            answers: BTreeMap::new(),
            answered_clients: BTreeSet::new(),
            others: (0, 0),
            room: Room::default(),
            silences_known_from: setting.start,
            largest_table: setting.config.max_flows as usize,
            has_to_sweep: false,
            timers_seen: setting.start,
            may_have_left: false,
            was_tight: false,
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
            ManagerInput::UpstreamBurst { upstream, sender, tos, burst } => {
                self.replies((upstream, sender), tos, &burst, now)
            }
            ManagerInput::Timeout => self.timeout(now, &observed)?,
            ManagerInput::UpstreamError { upstream, remote, question, .. } => {
                self.counters.upstream_errors += 1;
                let about = (upstream, remote, question);
                self.network_failed(about, now, &mut Seen::of(&observed))?
            }
            ManagerInput::Undelivered { send_id, direction, reason, datagrams, bytes, .. } => {
                let what = (send_id, direction, traffic(datagrams, bytes));
                self.undelivered(what, reason, now, &mut Seen::of(&observed))?
            }
            ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last } => {
                let backend = backend.index();
                let told = offload::Told { backend, to_backend, to_client, last };
                self.activity(flow, &told, now)
            }
            ManagerInput::Configured(new) => self.configure(new.config(), now, &observed),
            _ => self.told(input, now),
        };
        if observed != expected {
            return Err(effect::difference(&observed, &expected));
        }
        let fewest = if are_alone { expected.len() } else { effect::fewest_outputs(&expected) };
        let is_loose = |output: &&Output<'_>| matches!(output, Output::RecallBackend { .. });
        let emitted = outputs.len() - outputs.iter().filter(is_loose).count();
        // Where each question is a flow of its own, how many it takes does not matter.
        require!(
            emitted == fewest || self.asks(),
            "{emitted} outputs where {fewest} would do: {outputs:?}"
        );
        let is_timeout = matches!(input, ManagerInput::Timeout);
        let has_to_end = (0..self.flows.len()).any(|index| self.must_end(index).is_some());
        self.has_to_sweep = has_to_end || (self.has_to_sweep && !is_timeout);
        Ok(())
    }

    /// Compares what the balancer says of itself with what it must be.
    pub fn check_state(
        &mut self,
        manager: &UdpManager,
        counters: &Counters,
        now: Instant,
    ) -> Result<(), Violation> {
        self.check_counters(counters)?;
        self.check_kept(manager, now)?;
        self.end_what_is_over(manager, now);
        let (is, should) = (manager.flow_count(), self.flows.len());
        require!(is == should, "there are {is} flows, and should be {should}");
        for flow in &self.flows {
            flow.check(manager)?;
        }
        check_loads(&self.loads, manager.backends())?;
        let (is, should) = (manager.quarantined(), self.quarantined.len());
        require!(is == should, "{is} flows are in quarantine, and {should} should be");
        let shared = self.sockets.values().filter(|socket| socket.is_shared).count();
        let (is, should) = (manager.upstream_counts(), (self.sockets.len(), shared));
        require!(is == should, "{is:?} sockets are open, and {should:?} should be");
        let should = self.drain.is_some() && self.flows.is_empty();
        require!(manager.is_drained() == should, "drained is {}, not {should}", !should);
        Ok(())
    }

    /// A quarantine may end between its time and the end of that tick, which nobody is told of where
    /// its socket stays.
    fn end_what_is_over(&mut self, manager: &UdpManager, now: Instant) {
        let mut there: Vec<_> = manager.places_in_quarantine().collect();
        // Of two in one place the one that ends first is over.
        let mut known = self.quarantined.clone();
        known.sort_by_key(|left| std::cmp::Reverse(left.until));
        for left in known {
            let index = (left.upstream, BackendId::new(left.backend));
            match there.iter().position(|other| *other == index) {
                Some(index) => drop(there.swap_remove(index)),
                None if left.until <= now => drop(self.end_of_quarantine(left, now)),
                None => {}
            }
        }
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
        let flows = |c: &Counters| {
            (c.flows_opened, c.flows_closed, c.flows_moved, c.retries, c.upstream_errors)
        };
        let (is, should) = (flows(counters), flows(&self.counters));
        Err(Violation(format!("flows are counted {is:?}, and should be {should:?}")))
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// How many things there are that end by time: flows, what is in quarantine, and sockets.
    pub fn socket_count(&self) -> usize {
        self.flows.len() + self.quarantined.len() + self.sockets.len()
    }

    /// What the balancer is told without datagrams to forward.
    fn told<'p>(&mut self, input: &ManagerInput<'_>, now: Instant) -> Vec<Effect<'p>> {
        match *input {
            ManagerInput::Unusable { direction, reason, datagrams, bytes } => {
                let traffic = traffic(datagrams, bytes);
                let ledger = self.ledger(direction);
                ledger.received = ledger.received.plus(traffic);
                let dropped = &mut ledger.dropped[reason as usize];
                *dropped = dropped.plus(traffic);
            }
            ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes } => {
                self.delivered((send_id, backend), direction, traffic(datagrams, bytes));
            }
            ManagerInput::UpstreamOpenFailed { upstream } => {
                return self.open_failed(upstream, now);
            }
            ManagerInput::BackendChanged { backend, event } => {
                if let Some(load) = self.loads.get_mut(backend.index()) {
                    load.health.hear(event);
                }
            }
            ManagerInput::NetworkChanged => self.network_changed(),
            ManagerInput::RoomWanted => return self.make_room_for_others(now),
            ManagerInput::TakenElsewhere { flows, slots } => {
                self.others = (flows as usize, slots as usize);
            }
            ManagerInput::Drain { deadline } => self.drain = Some(deadline),
            ManagerInput::Reading { is_behind } => self.openings.read(is_behind),
            ManagerInput::ClientBurst { .. }
            | ManagerInput::Mirrored { .. }
            | ManagerInput::UpstreamBurst { .. }
            | ManagerInput::FlowActivity { .. }
            | ManagerInput::Configured(_)
            | ManagerInput::Undelivered { .. }
            | ManagerInput::UpstreamError { .. }
            | ManagerInput::Timeout => {}
        }
        vec![]
    }

    /// The flows of a socket that could not be opened end.
    fn open_failed<'p>(&mut self, upstream: UpstreamId, now: Instant) -> Vec<Effect<'p>> {
        self.retire_socket(upstream);
        let mut effects = vec![];
        while let Some(index) = (0..self.flows.len())
            .filter(|&index| self.flows[index].upstream == upstream)
            .min_by_key(|&index| self.flows[index].id.index())
        {
            effects.extend(self.close(index, CloseReason::UpstreamFailed, now));
        }
        let is_shared = self.sockets.get(&upstream).is_some_and(|socket| socket.is_shared);
        if is_shared && !self.is_used(upstream) {
            effects.extend(self.close_socket(upstream));
        }
        effects
    }

    /// The network says something of what was sent by a socket.
    fn network_failed<'p>(
        &mut self,
        (upstream, remote, question): (UpstreamId, Option<SocketAddr>, Option<TransactionId>),
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        let question = question.filter(|_| self.asks()).map(relay::name_of);
        let is_shared = self.sockets.get(&upstream).map(|socket| socket.is_shared);
        let address = |index: usize| self.loads[index].config.address;
        let index = match (is_shared, remote) {
            (Some(true), Some(remote)) => match self.recipient(upstream, remote, question) {
                Recipient::Flow(index) => Some(index),
                _ => None,
            },
            // By a socket of one flow no question is named.
            (Some(false), _) if question.is_none() => {
                self.flows.iter().position(|flow| flow.upstream == upstream)
            }
            _ => None,
        };
        let (backend, sent) = if let Some(index) = index {
            let flow = &self.flows[index];
            let timeout = timeout_of(&self.config.cluster, flow.answered).as_nanos() as u64;
            (flow.backend, flow.deadline.as_nanos().saturating_sub(timeout))
        } else {
            // Of nobody knows which datagram, but that it was not long ago.
            let Some(remote) = remote else { return Ok(vec![]) };
            let backend = (0..self.loads.len()).find(|&index| address(index) == remote);
            let Some(backend) = backend else { return Ok(vec![]) };
            (backend, now.as_nanos().saturating_sub(1_000_000_000))
        };
        self.note(backend, Sign::Error { sent: Instant::from_nanos(sent) }, now);
        let Some(index) = index else { return Ok(vec![]) };
        Ok(self.ask_another(index, Cause::Refused, now, seen)?.unwrap_or_default())
    }

    fn undelivered<'p>(
        &mut self,
        (send_id, direction, traffic): (SendId, Direction, Traffic),
        reason: DropReason,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        // In sessions every datagram has a flow, but for those that were counted before.
        let SendId::Flow { flow: id, .. } = send_id else { return Ok(vec![]) };
        if direction == Direction::ToBackend
            && let Some(index) = self.index_of(id)
            && let Some(effects) =
                self.undelivered_question((index, send_id), reason, traffic, now, seen)?
        {
            return Ok(effects);
        }
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
            if direction == Direction::ToBackend && flow.requests.datagrams == 0 {
                flow.kept = None;
            }
        }
        Ok(vec![])
    }

    fn delivered(
        &mut self,
        (send_id, backend): (SendId, Option<BackendId>),
        direction: Direction,
        traffic: Traffic,
    ) {
        if !matches!(send_id, SendId::Copy(_)) {
            let ledger = self.ledger(direction);
            ledger.queued = minus(ledger.queued, traffic);
            ledger.forwarded = ledger.forwarded.plus(traffic);
        }
        if let Some(backend) = backend {
            let load = &mut self.loads[backend.index()];
            load.to = load.to.plus(traffic);
        }
    }

    fn close<'p>(&mut self, index: usize, reason: CloseReason, now: Instant) -> Vec<Effect<'p>> {
        let quarantine = self.quarantine_after(reason, &self.flows[index]);
        let flow = self.flows.remove(index);
        self.put_off(&flow, now);
        self.unconfirmed.retain(|&id| id != flow.id);
        self.continued.retain(|&id| id != flow.id);
        let address = self.loads[flow.backend].config.address;
        let record = self.config.record_flows.then(|| flow.record(reason, address, now));
        let has_asked = self.config.cluster.responses > 0 && flow.requests.datagrams > 0;
        if reason == CloseReason::Idle && has_asked && !flow.heard {
            self.miss_answer(&flow, now);
        }
        self.loads[flow.backend].flows -= 1;
        self.counters.flows_closed[reason as usize] += 1;
        let mut effects = vec![];
        effects.extend(flow.offered.then_some(Effect::Recall { flow: flow.id }));
        effects.extend(record.map(|record| Effect::Record { flow: flow.id, record }));
        effects.push(Effect::Close { flow: flow.id, upstream: flow.upstream, reason });
        match quarantine {
            Some(time) => {
                let left = (flow.upstream, flow.backend, flow.question);
                self.put_in_quarantine(left, now + time);
            }
            None => {
                let has_sent = flow.requests.datagrams > 0;
                effects.extend(self.leave(flow.upstream, flow.backend, has_sent, now));
            }
        }
        effects
    }

    fn index_of(&self, id: FlowId) -> Option<usize> {
        self.flows.iter().position(|flow| flow.id == id)
    }

    /// The ids of all flows: first those that `observed` ends, in that order.
    fn in_order_of(&self, observed: &[Effect<'_>]) -> Vec<FlowId> {
        let mut ids: Vec<FlowId> = observed.iter().filter_map(Effect::ended).collect();
        let known = self.flows.iter().map(|flow| flow.id);
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
    fn record(&self, reason: CloseReason, backend_address: SocketAddr, now: Instant) -> FlowRecord {
        let nanos = |until: Instant| until.as_nanos() - self.opened.as_nanos();
        FlowRecord {
            client: self.client,
            backend: backend_id(self.backend as u8),
            backend_address,
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
        let is = (flow.client(), flow.local(), flow.backend().index(), flow.upstream());
        let should = (self.client, self.local, self.backend, self.upstream);
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
