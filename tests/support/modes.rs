//! A second simulator, for what the first does not do: every mode, and reloads from one to another.
//!
//! The [first](crate::sim) has a model that predicts each output of sessions. Here there is none, but
//! rules that hold whatever the mode, and for each mode who gets a datagram and whose replies come
//! back. Replies take time, tables are full, backends come and go, sockets take nothing for a while or
//! cannot be opened, and now and then another balancer goes on with what the former has written down.

mod planted;
mod recorded;
mod rules;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::config::{
    BackendConfig, Balance, ManagerConfig, Mode, OnBackendDown, ReplyFrom, UpstreamMode,
};
use flowgate_core::counters::Counters;
use flowgate_core::snapshot::{decode, encode};
use flowgate_core::{
    BackendEvent, BackendId, Burst, Direction, DropReason, FlowId, Instant, ManagerInput,
    NetworkError, Output, PreparedConfig, SendId, UdpManager, UpstreamId,
};

use crate::sim::{Choices, SeededChoices, Setting, Violation};

pub use planted::{Bug, Planted};
pub use recorded::{can_play, report_of};

/// What is judged: a manager, or one with a bug.
pub trait Balancer: Clone {
    /// Tells it something.
    fn input<'p>(&mut self, input: ManagerInput<'p>, now: Instant, outputs: &mut Vec<Output<'p>>);

    /// What it is made of.
    fn manager(&self) -> &UdpManager;

    /// What it says that it has counted.
    fn counters(&self) -> Counters {
        self.manager().counters().clone()
    }

    /// Another one goes on, which is made of a snapshot.
    fn go_on_as(&mut self, manager: UdpManager);
}

impl Balancer for UdpManager {
    fn input<'p>(&mut self, input: ManagerInput<'p>, now: Instant, outputs: &mut Vec<Output<'p>>) {
        self.handle_input(input, now, outputs);
    }

    fn manager(&self) -> &UdpManager {
        self
    }

    fn go_on_as(&mut self, manager: UdpManager) {
        *self = manager;
    }
}

/// How many clients there are.
const CLIENTS: u64 = 10;

/// The most backends of a world that grows from a seed, backups included.
const BACKENDS: usize = 4;

/// How much later than planned a reply may come.
const LONGEST_DELAY: Duration = Duration::from_millis(300);

/// How long a reply is under way at most.
const LONGEST_ROUND_TRIP: u64 = 400_000_000;

/// The modes between which reloads go.
const MODES: [Mode; 6] = [
    Mode::SESSION,
    Mode::Session { mirrored_per_million: 500_000 },
    Mode::OneWay,
    Mode::FanOut { reply_from: ReplyFrom::Nobody },
    Mode::FanOut { reply_from: ReplyFrom::Chosen },
    Mode::FanOut { reply_from: ReplyFrom::First },
];

/// A flow, as the outputs tell of it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: SocketAddr,
    backend: BackendId,
    route: Route,
    /// Whether its datagrams are mirrored, once it has had one.
    mirrored: Option<bool>,
}

/// By which socket a flow's datagrams go, and where to.
#[derive(Clone, Copy, Debug)]
struct Route {
    upstream: UpstreamId,
    address: SocketAddr,
}

/// Datagrams that were ordered to be sent.
#[derive(Clone, Copy, Debug)]
struct Order {
    send_id: SendId,
    backend: Option<BackendId>,
    direction: Direction,
    datagrams: u32,
    bytes: u64,
}

/// A world in which a balancer works in one mode after another.
#[derive(Clone, Debug)]
pub struct World<B> {
    balancer: B,
    config: ManagerConfig,
    choices: SeededChoices,
    now: Instant,
    /// Which backends are up, by the probes.
    up: Vec<bool>,
    flows: BTreeMap<FlowId, Flow>,
    /// The flows that have ended not long ago, and by which sockets.
    ended: VecDeque<(FlowId, Route)>,
    /// Which sockets are open, and whether they are connected.
    sockets: BTreeMap<UpstreamId, bool>,
    /// Replies under way, by when they arrive.
    replies: BTreeMap<(Instant, u64), (FlowId, Route)>,
    /// Whose reply has just arrived.
    replied: Option<FlowId>,
    /// Whose replies each client has got since it sent last, with `reply_from = "first"`.
    heard: BTreeMap<SocketAddr, FlowId>,
    /// Whether the sockets take nothing.
    is_blocked: bool,
    waiting: VecDeque<Order>,
    /// What each backend was delivered.
    delivered: Vec<u64>,
    last: Counters,
    numbers: u64,
}

impl<B: Balancer> World<B> {
    /// A world that grows from a seed, in which nothing has happened.
    pub fn new(seed: u64, make: impl FnOnce(ManagerConfig, u64) -> B) -> Self {
        let mut choices = SeededChoices::new(seed);
        let config = config(&mut choices);
        let balancer = make(config.clone(), choices.below(u64::MAX));
        Self::with(config, choices, balancer)
    }

    fn with(config: ManagerConfig, choices: SeededChoices, balancer: B) -> Self {
        Self {
            last: balancer.counters(),
            balancer,
            choices,
            now: Instant::ORIGIN,
            up: vec![true; config.cluster.backends.len()],
            flows: BTreeMap::new(),
            ended: VecDeque::new(),
            sockets: BTreeMap::new(),
            replied: None,
            replies: BTreeMap::new(),
            heard: BTreeMap::new(),
            is_blocked: false,
            waiting: VecDeque::new(),
            delivered: vec![0; config.cluster.backends.len()],
            numbers: 0,
            config,
        }
    }

    /// Plays actions, and lets all come to rest.
    ///
    /// # Errors
    ///
    /// With the first rule that is broken.
    pub fn play(&mut self, steps: usize) -> Result<(), Violation> {
        for step in 0..steps {
            self.step().map_err(|violation| Violation(format!("step {step}: {violation}")))?;
        }
        self.settle().map_err(|violation| Violation(format!("at rest: {violation}")))
    }

    fn step(&mut self) -> Result<(), Violation> {
        match self.choices.below(100) {
            0..38 => self.send(),
            38..60 => self.hear_a_reply(),
            60..66 => self.wait(),
            66..72 => self.fire(),
            72..78 => self.probe(),
            78..84 => self.reload_mode(),
            84..88 => self.reload_backends(),
            88..90 => {
                self.is_blocked = true;
                Ok(())
            }
            90..93 => self.unblock(),
            93..95 => self.give_up(),
            95..97 => self.fail(),
            97 => self.tell(ManagerInput::NetworkChanged),
            _ => self.go_on_elsewhere(),
        }
    }

    fn send(&mut self) -> Result<(), Violation> {
        let client = client(self.choices.below(CLIENTS));
        let count = 1 + self.choices.below(4) as usize;
        let bytes: Vec<u8> = (0..count).map(|at| (self.numbers + at as u64) as u8).collect();
        self.numbers += count as u64;
        self.heard.remove(&client);
        let burst = Burst::segmented(&bytes, 1).expect("it is short");
        let (local, tos, ttl) = (None, 0, 64);
        self.tell(ManagerInput::ClientBurst { source: client, local, tos, ttl, burst })
    }

    fn hear_a_reply(&mut self) -> Result<(), Violation> {
        if self.choices.one_in(12)
            && let Some(&ended) = self.ended.front()
        {
            // It comes long after all is over: perhaps to somebody who has the place on the socket now.
            return self.reply(None, ended.1);
        }
        let Some(((at, _), reply)) = self.replies.pop_first() else { return Ok(()) };
        if at + LONGEST_DELAY < self.now {
            // The network has lost it: none is under way for longer than a quarantine.
            return Ok(());
        }
        self.now = self.now.max(at);
        self.reply(Some(reply.0), reply.1)
    }

    /// A reply arrives, unless its socket has closed.
    fn reply(&mut self, flow: Option<FlowId>, route: Route) -> Result<(), Violation> {
        let Route { upstream, address: sender } = route;
        if !self.sockets.contains_key(&upstream) {
            return Ok(());
        }
        self.replied = flow;
        let burst = Burst::single(b"reply").expect("it is short");
        self.tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst })
    }

    fn wait(&mut self) -> Result<(), Violation> {
        let nanos = self.choices.one_of(&[1, 1_000_000, 300_000_000, 2_500_000_000]);
        self.now += Duration::from_nanos(nanos);
        Ok(())
    }

    fn fire(&mut self) -> Result<(), Violation> {
        if let Some(due) = self.balancer.manager().poll_timeout() {
            self.now = self.now.max(due.at);
        }
        self.tell(ManagerInput::Timeout)
    }

    fn probe(&mut self) -> Result<(), Violation> {
        let index = self.choices.below(self.config.cluster.backends.len() as u64) as usize;
        self.up[index] = !self.up[index];
        let event = if self.up[index] { BackendEvent::Up } else { BackendEvent::Down };
        self.tell(ManagerInput::BackendChanged { backend: BackendId::new(index), event })
    }

    fn reload_mode(&mut self) -> Result<(), Violation> {
        let mode = self.choices.one_of(&MODES);
        let mutes = self.choices.below(1 << BACKENDS);
        self.reload(|config| set_mode(config, mode, mutes))
    }

    fn reload_backends(&mut self) -> Result<(), Violation> {
        let index = self.choices.below(self.config.cluster.backends.len() as u64) as usize;
        let kind = self.choices.below(3);
        if kind == 0 && self.config.cluster.backends[index].removed {
            // One that comes back is not held to what the probes have said of the former.
            self.up[index] = true;
        }
        self.reload(|config| {
            let backend = &mut config.cluster.backends[index];
            match kind {
                0 => backend.removed = !backend.removed,
                1 => backend.weight = u32::from(backend.weight == 0),
                _ => backend.backup = !backend.backup,
            }
        })
    }

    fn reload(&mut self, change: impl FnOnce(&mut ManagerConfig)) -> Result<(), Violation> {
        change(&mut self.config);
        let configured = PreparedConfig::new(self.config.clone());
        self.tell(ManagerInput::Configured(&configured))
    }

    fn unblock(&mut self) -> Result<(), Violation> {
        self.is_blocked = false;
        while let Some(order) = self.waiting.pop_front() {
            self.take(order)?;
        }
        Ok(())
    }

    /// The kernel takes what was ordered.
    fn take(&mut self, order: Order) -> Result<(), Violation> {
        let Order { send_id, backend, direction, datagrams, bytes } = order;
        if let Some(backend) = backend {
            self.delivered[backend.index()] += u64::from(datagrams);
        }
        self.tell(ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes })
    }

    fn give_up(&mut self) -> Result<(), Violation> {
        let Some(Order { send_id, backend, direction, datagrams, bytes }) =
            self.waiting.pop_front()
        else {
            return Ok(());
        };
        let reason = DropReason::QueueFull;
        let lost =
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
        self.tell(lost)
    }

    /// The socket of a flow is gone: our own address, or the descriptors.
    fn fail(&mut self) -> Result<(), Violation> {
        let at = self.choices.below(self.flows.len().max(1) as u64) as usize;
        let Some((_, &Flow { route, .. })) = self.flows.iter().nth(at) else { return Ok(()) };
        let Route { upstream, address } = route;
        if self.choices.one_in(2) {
            return self.tell(ManagerInput::UpstreamOpenFailed { upstream });
        }
        let is_connected = self.sockets.get(&upstream).copied().unwrap_or(true);
        let remote = (!is_connected).then_some(address);
        let error = NetworkError::Refused;
        self.tell(ManagerInput::UpstreamError { upstream, remote, question: None, error })
    }

    fn go_on_elsewhere(&mut self) -> Result<(), Violation> {
        let written = encode(&self.balancer.manager().clone().snapshot());
        let read = decode(&written).map_err(|error| Violation(error.to_string()))?;
        let restored = UdpManager::restore(read, None);
        self.balancer.go_on_as(restored.map_err(|error| Violation(error.to_string()))?);
        Ok(())
    }

    /// Tells the balancer something, judges what it does, and carries that out.
    fn tell(&mut self, input: ManagerInput<'_>) -> Result<(), Violation> {
        let mut outputs = Vec::new();
        self.balancer.input(input, self.now, &mut outputs);
        self.balancer.manager().assert_invariants();
        self.judge(&input, &outputs)?;
        let orders = self.carry_out(&outputs);
        for order in orders {
            if self.is_blocked {
                self.waiting.push_back(order);
            } else {
                self.take(order)?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, outputs: &[Output<'_>]) -> Vec<Order> {
        let mut orders = Vec::new();
        for output in outputs {
            let (send_id, backend, direction, burst) = match *output {
                Output::Send { flow, upstream, backend, burst, .. } => {
                    let round_trip = self.choices.below(LONGEST_ROUND_TRIP);
                    let at = self.now + Duration::from_nanos(round_trip);
                    self.numbers += 1;
                    if let Some(&Flow { route, .. }) = self.flows.get(&flow) {
                        self.replies.insert((at, self.numbers), (flow, route));
                    }
                    let send_id = SendId::Flow { flow, upstream };
                    (send_id, Some(backend), Direction::ToBackend, burst)
                }
                Output::SendOneWay { send_id, burst, .. } => match send_id {
                    SendId::OneWay(to) | SendId::Copy(to) => {
                        (send_id, Some(to), Direction::ToBackend, burst)
                    }
                    SendId::Flow { .. } => continue,
                },
                Output::SendToClient { flow, upstream, burst, .. } => {
                    (SendId::Flow { flow, upstream }, None, Direction::ToClient, burst)
                }
                _ => continue,
            };
            let (datagrams, bytes) = (burst.count().into(), burst.bytes().len() as u64);
            orders.push(Order { send_id, backend, direction, datagrams, bytes });
        }
        orders
    }
}

/// The address of a client.
fn client(number: u64) -> SocketAddr {
    ([198, 51, 100, number as u8 + 1], 4_000).into()
}

/// Any configuration that this world can judge.
fn config(choices: &mut SeededChoices) -> ManagerConfig {
    let mut config = Setting::choose(&mut SeededChoices::new(0)).config;
    config.address = ([192, 0, 2, 53], 53).into();
    config.max_flows = choices.one_of(&[4, 16, 64]);
    // Who makes room where sockets are scarce is known to the first simulator.
    config.max_slots = u32::MAX;
    config.shares_max_flows = false;
    config.max_datagram_size = 1_500;
    config.accept_proxy_protocol = vec![];
    (config.allow, config.deny, config.own_addresses) = (vec![], vec![], vec![]);
    (config.record_flows, config.offload) = (false, false);
    config.accept = flowgate_core::config::Accept::Shared;
    let cluster = &mut config.cluster;
    cluster.balance = choices.one_of(&[
        Balance::RoundRobin,
        Balance::Random,
        Balance::LeastFlows,
        Balance::Rendezvous,
    ]);
    cluster.idle_timeout = Duration::from_secs(choices.one_of(&[1, 5, 60]));
    (cluster.responses, cluster.requests) = (choices.one_of(&[0, 0, 1]), 0);
    cluster.upstream = choices.one_of(&[UpstreamMode::PerFlow, UpstreamMode::Shared]);
    cluster.transactions = None;
    cluster.upstream_quarantine = Duration::from_secs(1);
    cluster.source = flowgate_core::config::Source::Any;
    cluster.limits = flowgate_core::config::Limits::default();
    cluster.health = flowgate_core::config::HealthPolicy {
        on_backend_down: OnBackendDown::Rehash,
        fail_open: choices.one_in(2),
        ..flowgate_core::config::HealthPolicy::default()
    };
    let count = 1 + choices.below(BACKENDS as u64) as u8;
    cluster.backends = (0..count)
        .map(|index| BackendConfig {
            backup: index > 0 && choices.one_in(4),
            ..BackendConfig::new(([10, 0, 0, index + 1], 53).into())
        })
        .collect();
    let mode = choices.one_of(&MODES);
    set_mode(&mut config, mode, choices.below(1 << BACKENDS));
    config
}

/// Goes over to a mode. Backends that get copies only, and are not the first, are bits of a number,
/// and are where there is one that answers.
fn set_mode(config: &mut ManagerConfig, mode: Mode, mutes: u64) {
    config.cluster.mode = mode;
    let is_chosen = mode == Mode::FanOut { reply_from: ReplyFrom::Chosen };
    for (index, backend) in config.cluster.backends.iter_mut().enumerate() {
        backend.answers = !is_chosen || index == 0 || mutes >> index & 1 == 0;
    }
}
