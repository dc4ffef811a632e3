//! The world around a balancer: clients, a network, a shell's sockets, and backends.
//!
//! The world knows nothing of flows but what the outputs say, and nothing of what should happen
//! but this: a datagram must reach whom it is for, once, in order, uncut.

mod backends;
mod kernel;
mod proxies;
mod shell;
mod sockets;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use flowgate_core::config::{Balance, ManagerConfig};
use flowgate_core::{
    BackendEvent, BackendId, Direction, DropReason, FlowId, Instant, ManagerInput, PreparedConfig,
    UpstreamId,
};

use self::backends::Known;
use self::kernel::KernelTable;
use self::proxies::Named;
use self::sockets::Upstream;
use super::action::{Action, BackendPick, Change, Fate, FlowPick, News, SocketFailure, Train};
use super::forge::{FORGED_UPSTREAMS, backend_id, forged_ids};
use super::setting::{Party, Setting, Temper};
use super::wire::{Parcel, Route, Way, Wire};

/// Everything outside the balancer.
#[derive(Clone, Debug)]
pub struct World {
    setting: Setting,
    /// What the balancer is told to do now.
    config: ManagerConfig,
    /// What it has been told of its backends.
    known: Known,
    /// How those behave that have each place.
    tempers: Vec<Temper>,
    /// How many backends have come that were not there at the start.
    newcomers: u16,
    next_number: u32,
    /// Whom each proxy has named last.
    named: Named,
    /// Whose the datagrams are that have just arrived.
    caller: SocketAddr,
    /// What clients sent and the network holds back.
    from_clients: Wire,
    /// What backends answered.
    from_backends: Wire,
    /// The flows of which some datagram was never sent.
    given_up: BTreeSet<FlowId>,
    /// What flows use towards their backends.
    upstreams: BTreeMap<FlowId, Upstream>,
    /// The sockets that are open, and whom they are connected to.
    sockets: BTreeMap<UpstreamId, Option<SocketAddr>>,
    /// Until when something may come, and of whom, for flows that have ended or gone on with another
    /// backend.
    left: BTreeMap<(FlowId, UpstreamId, SocketAddr), Instant>,
    /// Whether it was told to drain: then nothing waits in quarantine.
    is_draining: bool,
    flows_opened: u64,
    /// The flows that have ended not long ago.
    closed: VecDeque<(FlowId, Upstream)>,
    /// Whether the sockets take nothing now.
    blocked: bool,
    /// What was ordered to be sent and waits for the sockets.
    outbox: VecDeque<Unsent>,
    /// What the sockets have taken, and the balancer has not been told.
    delivered: Vec<Event>,
    /// What the kernel forwards by itself.
    kernel: KernelTable,
}

/// The shape of a burst that waits to be sent.
#[derive(Clone, Copy, Debug)]
struct Unsent {
    flow: FlowId,
    upstream: UpstreamId,
    backend: Option<BackendId>,
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
    /// The configuration changes.
    Configured(Box<PreparedConfig>),
    /// Anything else.
    Told(ManagerInput<'static>),
}

impl Event {
    pub(super) fn input(&self) -> ManagerInput<'_> {
        match self {
            Self::Arrival(parcel) => parcel.input(),
            Self::Configured(configuration) => ManagerInput::Configured(configuration),
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
        Self {
            config: setting.config.clone(),
            known: Known::new(&setting.config),
            tempers: setting.tempers.clone(),
            setting: setting.clone(),
            newcomers: 0,
            next_number: 0,
            named: Named::default(),
            caller: SocketAddr::from(([0; 4], 0)),
            from_clients: Wire::default(),
            from_backends: Wire::default(),
            given_up: BTreeSet::new(),
            upstreams: BTreeMap::new(),
            sockets: BTreeMap::new(),
            left: BTreeMap::new(),
            is_draining: false,
            flows_opened: 0,
            closed: VecDeque::new(),
            blocked: false,
            outbox: VecDeque::new(),
            delivered: Vec::new(),
            kernel: KernelTable::default(),
        }
    }

    /// The sockets of the old process are gone, and what was on its way to them. What clients sent
    /// is still on its way. The new process has the configuration that the first one started with.
    pub(super) fn restart(&mut self) {
        self.config = self.setting.config.clone();
        self.known = Known::new(&self.config);
        self.tempers = self.setting.tempers.clone();
        self.from_backends.clear();
        self.given_up.clear();
        self.upstreams.clear();
        self.sockets.clear();
        self.left.clear();
        self.is_draining = false;
        self.closed.clear();
        self.outbox.clear();
        self.delivered.clear();
        self.kernel = KernelTable::default();
    }

    /// Does what an action says, and returns what the balancer is told of it.
    pub(super) fn act(&mut self, action: Action, now: Instant) -> Vec<Event> {
        let told = match action {
            Action::Send { party, tos, ttl, train, fate } => {
                let parcel = self.request(Party::new(party), tos, ttl, train);
                return self.deliver(Some(parcel), fate, now);
            }
            Action::Again { flow, flows, tos, train, fate } => {
                const TTL: u8 = 64;
                let parties = self.parties_of(flow, flows);
                let send = |party| {
                    let parcel = self.request(party, tos, TTL, train);
                    self.deliver(Some(parcel), fate, now)
                };
                return parties.into_iter().flat_map(send).collect();
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
            Action::Fail { flow, failure } => Some(Event::Told(self.fail(flow, failure))),
            Action::News { backend, event } => {
                let backend = match backend {
                    BackendPick::Known(n) => {
                        backend_id(n.checked_rem(self.backend_count()).unwrap_or(n))
                    }
                    BackendPick::Serving(n) => match self.resolve(FlowPick::Live(n)).1 {
                        Some(upstream) => upstream.backend,
                        None => backend_id(n),
                    },
                    BackendPick::Forged(n) => backend_id(n),
                };
                Some(told_of(backend, event, now))
            }
            Action::Reconfigure { change, patient } => self.reconfigure(change, patient),
            Action::Drain { patience } => {
                let deadline = now + patience;
                Some(Event::Told(ManagerInput::Drain { deadline }))
            }
            Action::Read { is_behind } => Some(Event::Told(ManagerInput::Reading { is_behind })),
            Action::Others { flows, slots } => {
                Some(Event::Told(ManagerInput::TakenElsewhere { flows, slots }))
            }
            Action::WantRoom => Some(Event::Told(ManagerInput::RoomWanted)),
            Action::NetworkChanges => Some(Event::Told(ManagerInput::NetworkChanged)),
            Action::Block => {
                self.blocked = true;
                None
            }
            Action::Unblock => {
                self.unblock();
                None
            }
            Action::Forward { pick, to_backend, to_client } => {
                self.forward(pick, to_backend, to_client, now);
                None
            }
            Action::Tell { pick } => self.kernel.tell(pick),
            Action::Forget { pick } => self.kernel.forget(pick),
            Action::TellRecalled => return self.kernel.take_recalled(),
            Action::Snapshot | Action::Wait(_) | Action::Timeout(_) => None,
        };
        told.into_iter().collect()
    }

    /// The configuration as a change makes it, unless that takes too long.
    fn reconfigure(&mut self, change: Change, patient: bool) -> Option<Event> {
        let mut config = self.config.clone();
        change.apply(&mut config, self.newcomers + 1);
        if config.cluster.balance == Balance::Maglev && !patient {
            return None;
        }
        if let Some((index, newcomer)) = change.newcomer(self.config.cluster.backends.len()) {
            self.newcomers += 1;
            self.tempers.resize(self.tempers.len().max(index + 1), newcomer.temper);
            self.tempers[index] = newcomer.temper;
        }
        Some(Event::Configured(Box::new(PreparedConfig::new(config))))
    }

    /// What makes all backends serve again: the probes and the operator have nothing against any,
    /// and at least one is there, if there ever was one.
    pub(super) fn heal(&mut self, now: Instant) -> Vec<Event> {
        let told = |event| {
            (0..self.backend_count()).map(move |index| told_of(backend_id(index), event, now))
        };
        let mut events: Vec<Event> = told(News::Up).chain(told(News::Undrain)).collect();
        events.push(Event::Told(ManagerInput::TakenElsewhere { flows: 0, slots: 0 }));
        // Time enough to catch up.
        let read = || Event::Told(ManagerInput::Reading { is_behind: false });
        events.extend((0..40).map(|_| read()));
        if self.config.cluster.backends.iter().all(|backend| backend.removed) {
            events.extend(self.reconfigure(Change::Return(0), true));
        }
        events
    }

    /// Whose flows are open, of this many from one on.
    fn parties_of(&self, first: u8, count: u8) -> Vec<Party> {
        let open = self.upstreams.len().max(1);
        let from_first = self.upstreams.values().cycle().skip(usize::from(first) % open);
        let some = from_first.take(usize::from(count).min(self.upstreams.len()));
        some.filter_map(|upstream| Party::of_identity(upstream.party?)).collect()
    }

    /// How many backends there ever were.
    fn backend_count(&self) -> u8 {
        self.tempers.len() as u8
    }

    /// What the balancer is told to do now.
    pub(super) const fn config(&self) -> &ManagerConfig {
        &self.config
    }

    /// A client's datagrams, as they leave it.
    pub(super) fn request(&mut self, party: Party, tos: u8, ttl: u8, train: Train) -> Parcel {
        let route = Route::FromClient { source: party.source(), local: party.local(), ttl };
        let parcel = Parcel::new(route, tos, train, party.identity(), &mut self.next_number);
        match self.header_of(party) {
            Some(header) => parcel.behind(header),
            None => parcel,
        }
    }

    /// What the kernel says to the questions that it was asked.
    pub(super) fn take_replies_of_the_kernel(&mut self) -> Vec<Event> {
        let upstreams = &self.upstreams;
        self.kernel.take_replies(|flow| upstreams.get(&flow).map(|upstream| upstream.backend))
    }

    /// All that the kernel has forwarded and not told.
    pub(super) fn take_activity(&mut self) -> Vec<Event> {
        let mut events = self.kernel.take_recalled();
        events.extend(self.kernel.tell_all());
        events
    }

    /// All that backends have answered and that has not arrived.
    pub(super) fn take_answers(&mut self, now: Instant) -> Vec<Event> {
        let mut answers = vec![];
        while let Some(parcel) = self.from_backends.take(0, true) {
            answers.extend(self.arrival(parcel, now));
        }
        answers
    }

    /// The same, and none of it arrives.
    pub(super) fn lose_answers(&mut self) {
        self.from_backends.clear();
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
        let waiting = std::mem::take(&mut self.outbox);
        waiting.into_iter().for_each(|unsent| self.take(unsent));
    }

    /// What the sockets have taken since the last time.
    pub(super) fn take_delivered(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.delivered)
    }

    /// How many upstream sockets are open.
    pub(super) fn open_sockets(&self) -> usize {
        self.sockets.len()
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

    /// A parcel that arrives, unless it comes so late that the network has lost it.
    fn arrival(&mut self, parcel: Parcel, now: Instant) -> Option<Event> {
        if let Route::FromBackend(way) = parcel.route
            && self.is_too_late(way, now)
        {
            return None;
        }
        Some(Event::Arrival(parcel))
    }

    fn push(&mut self, flow: FlowPick, tos: u8, train: Train, now: Instant) -> Option<Event> {
        let (flow, upstream) = self.resolve(flow);
        let way = self.way_of(flow, upstream);
        if self.is_too_late(way, now) {
            return None;
        }
        let (party, train) = match upstream {
            None => (NOBODY, train),
            Some(Upstream { party: None, .. }) => (NOBODY, UNTAGGED),
            Some(Upstream { party: Some(party), .. }) => (party, train),
        };
        let route = Route::FromBackend(way);
        let parcel = Parcel::new(route, tos, train, party, &mut self.next_number);
        Some(Event::Arrival(parcel))
    }

    /// How what a flow's backend sends comes back; of one that was forged, by a socket that was.
    fn way_of(&self, flow: FlowId, upstream: Option<Upstream>) -> Way {
        let forged = FORGED_UPSTREAMS[flow.index() % FORGED_UPSTREAMS.len()];
        let nobody = SocketAddr::from(([10, 0, 0, 1], 53));
        let (upstream, sender) = upstream.map_or((forged, nobody), |it| (it.id, it.sender()));
        Way { flow, upstream, sender }
    }

    /// What is told of a socket that fails.
    fn fail(&self, flow: FlowPick, failure: SocketFailure) -> ManagerInput<'static> {
        let (flow, known) = self.resolve(flow);
        let upstream = self.way_of(flow, known).upstream;
        match failure {
            SocketFailure::NotOpened => ManagerInput::UpstreamOpenFailed { upstream },
            SocketFailure::Network(error) => {
                let is_connected = self.sockets.get(&upstream).is_none_or(Option::is_some);
                let remote = known.filter(|_| !is_connected).map(|known| known.address);
                let party = known.and_then(|known| known.party).filter(|_| !is_connected);
                let named = self.config.cluster.transactions;
                let question = party.zip(named).and_then(|(party, named)| {
                    named.request_id(&crate::sim::payload::name_of(party))
                });
                ManagerInput::UpstreamError { upstream, remote, question, error }
            }
        }
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
}

fn told_of(backend: BackendId, event: News, now: Instant) -> Event {
    let event = match event {
        News::Up => BackendEvent::Up,
        News::Down => BackendEvent::Down,
        News::Drain(patience) => BackendEvent::Drain { deadline: patience.map(|p| now + p) },
        News::Undrain => BackendEvent::Undrain,
        News::Unprobed => BackendEvent::Unprobed,
    };
    Event::Told(ManagerInput::BackendChanged { backend, event })
}

fn unusable(direction: Direction, reason: DropReason, datagrams: u32, bytes: u64) -> Event {
    Event::Told(ManagerInput::Unusable { direction, reason, datagrams, bytes })
}
