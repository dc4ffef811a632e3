//! The world around a balancer: clients, a network, a shell's sockets, and backends.
//!
//! The world knows nothing of flows but what the outputs say, and nothing of what should happen
//! but this: a datagram must reach whom it is for, once, in order, uncut.

mod shell;
mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flowgate_core::config::Limits;
use flowgate_core::{BackendId, Direction, DropReason, FlowId, Instant, ManagerInput};

use self::sockets::{HandedOn, Upstream};
use super::action::{Action, Fate, FlowPick, Train};
use super::forge::forged_ids;
use super::setting::{Party, Setting, Temper};
use super::wire::{Parcel, Route, Wire};

/// Everything outside the balancer.
#[derive(Clone, Debug, Default)]
pub struct World {
    tempers: Vec<Temper>,
    limits: Limits,
    /// How long sockets must rest.
    rest: Duration,
    most_sockets: usize,
    next_number: u32,
    /// What clients sent and the network holds back.
    from_clients: Wire,
    /// What backends answered.
    from_backends: Wire,
    /// The upstream sockets of flows.
    upstreams: BTreeMap<FlowId, Upstream>,
    /// Those whose flows have ended.
    resting: BTreeMap<FlowId, Upstream>,
    /// The flows whose sockets others have now.
    handed_on: BTreeMap<FlowId, HandedOn>,
    sockets_opened: u64,
    /// The flows that have ended not long ago.
    closed: VecDeque<(FlowId, Upstream)>,
    /// Whether the sockets take nothing now.
    blocked: bool,
    /// What was ordered to be sent and waits for the sockets.
    outbox: VecDeque<Unsent>,
}

/// The shape of a burst that waits to be sent.
#[derive(Clone, Copy, Debug)]
struct Unsent {
    flow: FlowId,
    direction: Direction,
    stride: u16,
    datagrams: u16,
    bytes: usize,
}

/// Something that the balancer is told.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Datagrams arrive.
    Arrival(Parcel),
    /// Anything else.
    Told(ManagerInput<'static>),
}

impl Event {
    pub(super) fn input(&self) -> ManagerInput<'_> {
        match self {
            Self::Arrival(parcel) => parcel.input(),
            Self::Told(input) => *input,
        }
    }
}

/// The party of a datagram that must reach nobody.
const NOBODY: u16 = u16::MAX;
/// Datagrams too short for a tag.
const UNTAGGED: Train = Train::single(3);

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(setting: &Setting) -> Self {
        let cluster = &setting.config.cluster;
        Self {
            tempers: setting.tempers.clone(),
            limits: cluster.limits.clone(),
            rest: cluster.upstream_reuse.unwrap_or_default(),
            most_sockets: setting.config.max_flows as usize,
            ..Self::default()
        }
    }

    /// The sockets of the old process are gone, and what was on its way to them. What clients sent
    /// is still on its way.
    pub(super) fn restart(&mut self) {
        self.from_backends.clear();
        self.upstreams.clear();
        self.resting.clear();
        self.handed_on.clear();
        self.closed.clear();
        self.outbox.clear();
    }

    /// Does what an action says, and returns what the balancer is told of it.
    pub(super) fn act(&mut self, action: Action, now: Instant) -> Vec<Event> {
        let told = match action {
            Action::Send { party, tos, ttl, train, fate } => {
                let parcel = self.request(Party::new(party), tos, ttl, train);
                return self.deliver(Some(parcel), fate, now);
            }
            Action::Arrive { pick, coalesced, fate } => {
                let parcel = self.from_clients.take(pick, coalesced);
                return self.deliver(parcel, fate, now);
            }
            Action::Answer { pick, coalesced, fate } => {
                let parcel = self.from_backends.take(pick, coalesced);
                return self.deliver(parcel, fate, now);
            }
            Action::Push { flow, tos, train } => self.push(flow, tos, train, now),
            Action::Unusable { direction, reason, datagrams } => {
                Some(unusable(direction, reason, datagrams, 100))
            }
            Action::GiveUp { pick, datagrams, reason } => self.give_up(pick, datagrams, reason),
            Action::Fail { flow, failure } => {
                let flow = self.resolve(flow).0;
                Some(Event::Told(ManagerInput::UpstreamFailed { flow, failure }))
            }
            Action::Drain { patience } => {
                let deadline = now + patience;
                Some(Event::Told(ManagerInput::Drain { deadline }))
            }
            Action::Block => {
                self.blocked = true;
                None
            }
            Action::Unblock => {
                self.unblock();
                None
            }
            Action::Wait(_) | Action::Timeout(_) => None,
        };
        told.into_iter().collect()
    }

    /// A client's datagrams, as they leave it.
    pub(super) fn request(&mut self, party: Party, tos: u8, ttl: u8, train: Train) -> Parcel {
        let route = Route::FromClient { source: party.source(), local: party.local(), ttl };
        Parcel::new(route, tos, train, party.identity(), &mut self.next_number)
    }

    /// All that backends have answered and that has not arrived.
    pub(super) fn take_answers(&mut self, now: Instant) -> Vec<Event> {
        let mut answers = vec![];
        while let Some(parcel) = self.from_backends.take(0, true) {
            answers.extend(self.arrival(parcel, now));
        }
        answers
    }

    /// All that clients have sent and that has not arrived.
    pub(super) fn take_requests(&mut self) -> Vec<Event> {
        let mut requests = vec![];
        while let Some(parcel) = self.from_clients.take(0, true) {
            requests.push(Event::Arrival(parcel));
        }
        requests
    }

    /// The sockets take everything that waits.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
        self.outbox.clear();
    }

    /// How many upstream sockets are open.
    pub(super) fn open_sockets(&self) -> usize {
        self.upstreams.len() + self.resting.len()
    }

    fn deliver(&mut self, parcel: Option<Parcel>, fate: Fate, now: Instant) -> Vec<Event> {
        let Some(parcel) = parcel else {
            return vec![];
        };
        let arrivals = match fate {
            Fate::Now => vec![parcel],
            Fate::Singly => parcel.singly(),
            Fate::Lost => vec![],
            Fate::Twice => vec![parcel.clone(), parcel],
            Fate::Later => {
                match parcel.route {
                    Route::FromClient { .. } => self.from_clients.hold(parcel),
                    Route::FromBackend(_) => self.from_backends.hold(parcel),
                }
                vec![]
            }
        };
        arrivals.into_iter().filter_map(|parcel| self.arrival(parcel, now)).collect()
    }

    /// A parcel that arrives, unless it comes too late, or its socket sees that a stranger sent it.
    fn arrival(&mut self, mut parcel: Parcel, now: Instant) -> Option<Event> {
        if let Route::FromBackend(flow) = parcel.route {
            let backend = self.backend_of(flow);
            if backend.is_some_and(|backend| self.temper(backend) == Temper::Stranger) {
                let datagrams = u32::from(parcel.burst().count());
                let bytes = parcel.bytes.len() as u64;
                let reason = DropReason::ForeignSource;
                return Some(unusable(Direction::ToClient, reason, datagrams, bytes));
            }
            parcel.route = Route::FromBackend(self.flow_reached(flow, now)?);
        }
        Some(Event::Arrival(parcel))
    }

    fn push(&mut self, flow: FlowPick, tos: u8, train: Train, now: Instant) -> Option<Event> {
        let (flow, upstream) = self.resolve(flow);
        let (party, train) = match upstream {
            None => (NOBODY, train),
            Some(Upstream { party: None, .. }) => (NOBODY, UNTAGGED),
            Some(Upstream { party: Some(party), .. }) => (party, train),
        };
        let route = Route::FromBackend(self.flow_reached(flow, now)?);
        let parcel = Parcel::new(route, tos, train, party, &mut self.next_number);
        Some(Event::Arrival(parcel))
    }

    /// The flow that an action means, and what is known of it. Where there is none of the kind, a
    /// forged one.
    fn resolve(&self, pick: FlowPick) -> (FlowId, Option<Upstream>) {
        let nth = |n: u8, len: usize| usize::from(n).checked_rem(len);
        let known = match pick {
            FlowPick::Live(n) => nth(n, self.upstreams.len())
                .and_then(|n| self.upstreams.iter().nth(n))
                .map(|(&flow, &upstream)| (flow, upstream)),
            FlowPick::Stale(n) => nth(n, self.closed.len()).map(|n| self.closed[n]),
            FlowPick::Forged(_) => None,
        };
        if let Some((flow, upstream)) = known {
            return (flow, Some(upstream));
        }
        let (FlowPick::Live(n) | FlowPick::Stale(n) | FlowPick::Forged(n)) = pick;
        let forged = forged_ids()[usize::from(n) % forged_ids().len()];
        (forged, self.upstreams.get(&forged).copied())
    }

    fn temper(&self, backend: BackendId) -> Temper {
        self.tempers[backend.index()]
    }
}

fn unusable(direction: Direction, reason: DropReason, datagrams: u32, bytes: u64) -> Event {
    Event::Told(ManagerInput::Unusable { direction, reason, datagrams, bytes })
}
