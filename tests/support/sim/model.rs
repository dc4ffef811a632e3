//! The reference: what a balancer must do, written to be obviously right rather than fast.
//!
//! It has no hash table, no timer wheel and no bursts: a list of flows that is searched from the
//! start, true deadlines, and datagrams one by one. It shares no code with the core but the names
//! of things, the frozen hash, and the encoding of a PROXY header.
//!
//! What it cannot know beforehand it takes from the outputs, once it has seen that it is allowed:
//! the id of a new flow; the backend where chance decides; on which backend a resting socket makes
//! room; and that a source was refused because it shares its buckets with others. Flows that end
//! at the same moment may end in any order.

mod admission;
mod balance;
mod datagrams;
mod deadline;
mod effect;
mod sockets;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flowgate_core::backends::Backends;
use flowgate_core::config::ManagerConfig;
use flowgate_core::counters::{Counters, Ledger, Traffic};
use flowgate_core::{
    CloseReason, Direction, DropReason, FlowId, Instant, LocalAddr, ManagerInput, Output,
    UdpManager, UpstreamFailure,
};

use self::admission::{Rates, Seen};
use self::balance::{Balance, Load};
use self::effect::Effect;
use self::sockets::Resting;
use super::setting::Setting;
use super::{Violation, require};

/// The reference, and all that it believes of the balancer.
#[derive(Clone, Debug)]
pub struct Model {
    config: ManagerConfig,
    /// In the order in which they were opened.
    flows: Vec<Flow>,
    /// The sockets of flows that have ended, in the order in which they began to rest.
    resting: Vec<Resting>,
    /// Every id ever given out: none may come twice.
    used_ids: BTreeSet<FlowId>,
    loads: Vec<Load>,
    balance: Balance,
    rates: Rates,
    counters: Counters,
    drain: Option<Instant>,
    /// When it was made, or had its last timeout.
    timers_seen: Instant,
}

#[derive(Clone, Debug)]
struct Flow {
    id: FlowId,
    client: SocketAddr,
    local: Option<LocalAddr>,
    backend: usize,
    opened: Instant,
    deadline: Instant,
    requests: Traffic,
    replies: Traffic,
    /// It has had its last request: the client's next one opens another flow.
    retired: bool,
    /// A reply has gone to the client.
    answered: bool,
    /// The client has sent something after that.
    confirmed: bool,
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
            used_ids: BTreeSet::new(),
            loads: cluster.backends.iter().map(|&config| Load::none(config)).collect(),
            balance: Balance::new(cluster),
            rates: Rates::default(),
            counters: Counters::default(),
            drain: None,
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
        let expected = match *input {
            ManagerInput::ClientBurst { source, local, tos, ttl, burst } => {
                let from = Sender { source, local, tos, ttl };
                self.requests(from, &burst, now, &mut Seen::of(&observed))?
            }
            ManagerInput::BackendBurst { flow, tos, burst } => self.replies(flow, tos, &burst, now),
            ManagerInput::Timeout => self.timeout(now, &observed),
            _ => self.told(input, now),
        };
        if observed != expected {
            return Err(effect::difference(&observed, &expected));
        }
        let fewest = effect::fewest_outputs(&expected);
        let emitted = outputs.len();
        require!(emitted == fewest, "{emitted} outputs where {fewest} would do: {outputs:?}");
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
            ];
            let dropped = DropReason::ALL.iter().map(|&reason| {
                (reason.as_str(), is.dropped_for(reason), should.dropped_for(reason))
            });
            for (name, is, should) in named.into_iter().chain(dropped) {
                let direction = direction.as_str();
                require!(is == should, "{direction} {name} is {is:?}, and should be {should:?}");
            }
        }
        let flows = |c: &Counters| (c.flows_opened, c.flows_closed, c.upstream_errors);
        let (is, should) = (flows(counters), flows(&self.counters));
        Err(Violation(format!("flows are counted {is:?}, and should be {should:?}")))
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// How many sockets there must be: those of flows, and those that rest.
    pub fn socket_count(&self) -> usize {
        self.flows.len() + self.resting.len()
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
            ManagerInput::Undelivered { flow, direction, reason, datagrams, bytes } => {
                self.undelivered(flow, direction, reason, traffic(datagrams, bytes))
            }
            ManagerInput::UpstreamFailed { flow, failure: UpstreamFailure::NotOpened } => {
                let place = self.flows.iter().position(|f| f.id == flow);
                let close = |place| self.close(place, CloseReason::UpstreamFailed, now);
                return place.map(close).into_iter().collect();
            }
            ManagerInput::UpstreamFailed { .. } => self.counters.upstream_errors += 1,
            ManagerInput::Drain { deadline } => self.drain = Some(deadline),
            ManagerInput::ClientBurst { .. }
            | ManagerInput::BackendBurst { .. }
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
        ledger.forwarded = minus(ledger.forwarded, traffic);
        let dropped = &mut ledger.dropped[reason as usize];
        *dropped = dropped.plus(traffic);
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) {
            let load = &mut self.loads[flow.backend];
            let (of_flow, of_backend) = match direction {
                Direction::ToBackend => (&mut flow.requests, &mut load.to),
                Direction::ToClient => (&mut flow.replies, &mut load.from),
            };
            *of_flow = minus(*of_flow, traffic);
            *of_backend = minus(*of_backend, traffic);
        }
    }

    fn close<'p>(&mut self, place: usize, reason: CloseReason, now: Instant) -> Effect<'p> {
        let flow = self.flows.remove(place);
        self.loads[flow.backend].flows -= 1;
        self.counters.flows_closed[reason as usize] += 1;
        let keep_socket = self.keeps_socket(reason);
        if keep_socket {
            self.rest(flow.id, flow.backend, now);
        }
        Effect::Close { flow: flow.id, reason, keep_socket }
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
        Ok(())
    }
}

fn check_loads(loads: &[Load], backends: &Backends) -> Result<(), Violation> {
    for (load, (id, backend)) in loads.iter().zip(backends.iter()) {
        let is = (backend.flows_active, backend.to, backend.from);
        let should = (load.flows, load.to, load.from);
        require!(is == should, "{id:?} has {is:?}, and should have {should:?}");
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
