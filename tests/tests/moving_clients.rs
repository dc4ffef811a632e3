//! Clients that move, and a third party that sees their ids and forges them: nobody gets an answer
//! who has not sent to its flow, and no connection is lost whose id is known.
//!
//! A simulation of its own beside `sim/`, whose model knows addresses only: QUIC with ids that servers
//! announce, QUIC with ids that name a server (QUIC-LB), and WireGuard. A seed is a list of events;
//! the judge knows what servers, clients and the third party have sent, and nothing of how flows are
//! placed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::affinity::Affinity;
use flowgate_core::config::{BackendConfig, ManagerConfig, QuicLb};
use flowgate_core::random::Random;
use flowgate_core::{
    BackendId, Burst, FlowId, Instant, ManagerInput, Output, UdpManager, UpstreamId,
};
use flowgate_quic_lb::{Decoder, FirstOctet, QuicLbConfig, ServerId};

const SEEDS: u64 = 60;
const STEPS: usize = 250;

/// A bug that takes more seeds than this is as good as not found.
const SEEDS_FOR_A_BUG: u64 = 60;

const BACKENDS: usize = 3;
const CONNECTIONS: usize = 4;
const FORGERS: usize = 2;

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an id is known after its last use: what the guide promises.
const GRACE: Duration = Duration::from_secs(120);

/// Which ids there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    QuicLearned,
    QuicLb,
    WireGuard,
}

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// An id moves its flow to the address that it came from last.
    AnswersFollowTheId,
    /// Everybody who has sent an id gets its answers.
    AnswersGoToAll,
    /// Ids are not looked at.
    IgnoresIds,
    /// What servers announce is not remembered.
    LearnsNothing,
    /// What an id says of its server is not read.
    CannotReadIds,
    /// A known flow stays where it is, whatever its client's id says.
    KnownFlowsStay,
    /// An id that a client has made up moves its flow.
    OpeningsMoveFlows,
}

const BUGS: [Bug; 7] = [
    Bug::AnswersFollowTheId,
    Bug::AnswersGoToAll,
    Bug::IgnoresIds,
    Bug::LearnsNothing,
    Bug::CannotReadIds,
    Bug::KnownFlowsStay,
    Bug::OpeningsMoveFlows,
];

#[test]
fn nobody_gets_an_answer_who_has_not_sent_to_its_flow_and_no_connection_is_lost() {
    let mut seen = Seen::default();
    for protocol in [Protocol::QuicLearned, Protocol::QuicLb, Protocol::WireGuard] {
        for seed in 0..SEEDS {
            if let Err(violation) = play(protocol, seed, None, &mut seen) {
                panic!("{protocol:?}, seed {seed}: {violation}");
            }
        }
    }
    // A simulation proves nothing about what never happens in it.
    let Seen { moved, moved_to_a_new_id, followed, forged, answered, openings } = seen;
    for (what, times) in [
        ("connections moved", moved),
        ("and took another id with them", moved_to_a_new_id),
        ("flows followed another id", followed),
        ("ids were forged", forged),
        ("answers came", answered),
        ("first flights had the id of a server", openings),
    ] {
        assert!(times > 100, "{what}: {times} times");
    }
}

#[test]
fn every_planted_bug_is_found() {
    let is_found = |bug| {
        [Protocol::QuicLearned, Protocol::QuicLb, Protocol::WireGuard].iter().any(|&protocol| {
            (0..SEEDS_FOR_A_BUG)
                .any(|seed| play(protocol, seed, Some(bug), &mut Seen::default()).is_err())
        })
    };
    let missed: Vec<_> = BUGS.into_iter().filter(|&bug| !is_found(bug)).collect();
    assert!(missed.is_empty(), "not found within {SEEDS_FOR_A_BUG} seeds: {missed:?}");
}

/// What has happened in all seeds.
#[derive(Default)]
struct Seen {
    moved: u32,
    moved_to_a_new_id: u32,
    followed: u32,
    forged: u32,
    answered: u32,
    openings: u32,
}

type Id = Vec<u8>;

/// A client with its connection.
#[derive(Default)]
struct Connection {
    /// Where it is now.
    place: u16,
    /// The id by which its server knows it, once that has answered.
    id: Option<Id>,
    /// Ids that its server has told it under encryption.
    spare: Vec<Id>,
}

/// What is known of an id that a server has given out.
struct Issued {
    server: usize,
    /// Until when the balancer must know it.
    known_until: Instant,
}

struct World<'s> {
    protocol: Protocol,
    bug: Option<Bug>,
    manager: UdpManager,
    random: Random,
    now: Instant,
    connections: Vec<Connection>,
    issued: BTreeMap<Id, Issued>,
    /// The backend of each flow, and the address whose datagrams opened it.
    flows: BTreeMap<FlowId, (BackendId, SocketAddr)>,
    /// The socket that each uses, and where its answers come from.
    sockets: BTreeMap<FlowId, (UpstreamId, SocketAddr)>,
    /// The flow that each address has, the id it sent last, and who sent an id last: for bugs.
    sent: BTreeMap<SocketAddr, Id>,
    last_sender: BTreeMap<Id, SocketAddr>,
    flow_ids: BTreeMap<FlowId, Id>,
    seen: &'s mut Seen,
}

fn play(protocol: Protocol, seed: u64, bug: Option<Bug>, seen: &mut Seen) -> Result<(), String> {
    let mut world = World::new(protocol, seed, bug, seen);
    for step in 0..STEPS {
        world.step().map_err(|violation| format!("step {step}: {violation}"))?;
    }
    Ok(())
}

impl<'s> World<'s> {
    fn new(protocol: Protocol, seed: u64, bug: Option<Bug>, seen: &'s mut Seen) -> Self {
        let now = Instant::from_millis(1_000_000);
        Self {
            protocol,
            bug,
            manager: UdpManager::new(config(protocol, bug), seed, now),
            random: Random::new(seed),
            now,
            connections: (0..CONNECTIONS).map(|_| Connection::default()).collect(),
            issued: BTreeMap::new(),
            flows: BTreeMap::new(),
            sockets: BTreeMap::new(),
            sent: BTreeMap::new(),
            last_sender: BTreeMap::new(),
            flow_ids: BTreeMap::new(),
            seen,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn step(&mut self) -> Result<(), String> {
        let number = self.below(CONNECTIONS);
        match self.below(16) {
            0 | 1 => self.connect(number),
            2..7 => self.go_on(number),
            7..10 => {
                self.connections[number].place += 1;
                self.seen.moved += u32::from(self.connections[number].id.is_some());
                if self.below(2) == 0
                    && let Some(id) = self.connections[number].spare.pop()
                {
                    self.connections[number].id = Some(id);
                    self.seen.moved_to_a_new_id += 1;
                }
                self.go_on(number)
            }
            10..13 => self.forge(),
            13 => self.stray(),
            _ => {
                self.now += Duration::from_millis(self.random.below(20_000));
                self.fire()
            }
        }
    }

    /// A client begins anew: its server, whichever it is, gives it an id.
    fn connect(&mut self, number: usize) -> Result<(), String> {
        let connection = &mut self.connections[number];
        (connection.id, connection.place) = (None, connection.place + 1);
        let from = client(number, connection.place);
        let made_up = self.made_up_id();
        let hello = self.protocol.hello(&made_up);
        let Some(flow) = self.arrive(from, &hello, &made_up)? else { return Ok(()) };
        let (id, spare) = self.accept(flow)?;
        let connection = &mut self.connections[number];
        (connection.id, connection.spare) = (Some(id), spare);
        Ok(())
    }

    /// A server takes a connection, and announces its id by the flow that it came by.
    fn accept(&mut self, flow: FlowId) -> Result<(Id, Vec<Id>), String> {
        let server = self.flows[&flow].0.index();
        let id = self.issue(server);
        self.flow_ids.insert(flow, id.clone());
        let answer = self.protocol.announcement(&id);
        self.answer(flow, &answer)?;
        // What is told under encryption nobody can learn: it has to be read.
        let spare = match self.protocol {
            Protocol::QuicLb => (0..2).map(|_| self.issue(server)).collect(),
            Protocol::QuicLearned | Protocol::WireGuard => Vec::new(),
        };
        Ok((id, spare))
    }

    fn issue(&mut self, server: usize) -> Id {
        let id = match self.protocol {
            Protocol::QuicLb => {
                let nonce = self.random.draw().to_be_bytes();
                let id = quic_lb().encode(&server_id(server), &nonce, FirstOctet::Length);
                id.expect("the configured lengths").as_ref().to_vec()
            }
            Protocol::QuicLearned => self.random.draw().to_be_bytes().to_vec(),
            Protocol::WireGuard => self.random.draw().to_be_bytes()[..4].to_vec(),
        };
        let known_until = self.known_until();
        self.issued.insert(id.clone(), Issued { server, known_until });
        id
    }

    fn known_until(&self) -> Instant {
        match self.protocol {
            Protocol::QuicLb => Instant::FAR_FUTURE,
            Protocol::QuicLearned | Protocol::WireGuard => self.now + GRACE,
        }
    }

    /// An id that no server has chosen; now and then it happens to be one's all the same.
    fn made_up_id(&mut self) -> Id {
        if self.below(3) == 0
            && let Some(id) = self.any_issued()
        {
            self.seen.openings += 1;
            return id;
        }
        self.random.draw().to_be_bytes().to_vec()
    }

    fn any_issued(&mut self) -> Option<Id> {
        let at = self.below(self.issued.len().max(1));
        self.issued.keys().nth(at).cloned()
    }

    /// A client sends something, from wherever it is.
    fn go_on(&mut self, number: usize) -> Result<(), String> {
        let Some(id) = self.connections[number].id.clone() else { return Ok(()) };
        if self.issued[&id].known_until <= self.now {
            self.connections[number].id = None;
            return Ok(());
        }
        let from = client(number, self.connections[number].place);
        let datagram = self.protocol.data(&id);
        let flow = self.arrive(from, &datagram, &id)?.ok_or("a client was refused")?;
        let known_until = self.known_until();
        let issued = self.issued.get_mut(&id).expect("it was issued");
        issued.known_until = known_until;
        self.flow_ids.insert(flow, id);
        self.answer(flow, &self.protocol.reply())
    }

    /// A third party sends an id that it has seen, from an address of its own, or as if it were from
    /// where another client is.
    fn forge(&mut self) -> Result<(), String> {
        let Some(id) = self.any_issued() else { return Ok(()) };
        let from = match self.below(4) {
            0 => {
                let number = self.below(CONNECTIONS);
                client(number, self.connections[number].place)
            }
            _ => forger(self.below(FORGERS), self.below(3) as u16),
        };
        self.seen.forged += 1;
        let datagram = self.protocol.data(&id);
        let Some(flow) = self.arrive(from, &datagram, &id)? else { return Ok(()) };
        // The server answers on the path that it sees, as it does when it validates one.
        self.answer(flow, &self.protocol.reply())
    }

    /// Somebody with a flow begins something new by it, with an id of its own making.
    fn stray(&mut self) -> Result<(), String> {
        let from = forger(self.below(FORGERS), self.below(3) as u16);
        let made_up = self.made_up_id();
        let hello = self.protocol.hello(&made_up);
        let Some(flow) = self.arrive(from, &hello, &made_up)? else { return Ok(()) };
        self.accept(flow).map(drop)
    }

    fn fire(&mut self) -> Result<(), String> {
        while self.manager.poll_timeout().is_some_and(|deadline| deadline.at <= self.now) {
            self.tell(ManagerInput::Timeout, None)?;
        }
        Ok(())
    }

    /// A datagram with an id comes from somewhere. The flow that takes it, if one does.
    fn arrive(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        id: &[u8],
    ) -> Result<Option<FlowId>, String> {
        let is_known_flow = self.flows.values().any(|&(_, client)| client == source);
        let is_data = datagram == self.protocol.data(id);
        let bytes = self.misread(source, datagram, is_known_flow);
        let burst = Burst::single(&bytes).expect("short enough");
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        let before = self.flow_of(source);
        let flow = self.tell(input, Some(source))?;
        self.sent.insert(source, datagram.to_vec());
        self.last_sender.insert(id.to_vec(), source);
        let Some(flow) = flow else { return Ok(None) };
        let to = self.flows[&flow].0.index();
        if let Some((old, was)) = before
            && old == flow
            && was.index() != to
        {
            self.seen.followed += 1;
            // What a server has announced no client makes up: it may be in an Initial packet that
            // follows a Retry. An id that has been made up names a server only by chance.
            if !is_data && (self.protocol == Protocol::QuicLb || !self.issued.contains_key(id)) {
                return Err("a first flight has moved a flow".into());
            }
        }
        let issued = self.issued.get(id).filter(|issued| is_data && self.now < issued.known_until);
        match issued {
            Some(issued) if issued.server != to => {
                Err(format!("an id of server {} has led to {to}", issued.server))
            }
            _ => Ok(Some(flow)),
        }
    }

    fn flow_of(&self, client: SocketAddr) -> Option<(FlowId, BackendId)> {
        let mut flows = self.flows.iter();
        flows.find(|(_, flow)| flow.1 == client).map(|(&id, flow)| (id, flow.0))
    }

    /// What a bug makes of a client's datagram.
    fn misread(&self, source: SocketAddr, datagram: &[u8], is_known_flow: bool) -> Vec<u8> {
        match (self.bug, self.sent.get(&source)) {
            (Some(Bug::KnownFlowsStay), Some(last)) if is_known_flow => last.clone(),
            (Some(Bug::OpeningsMoveFlows), _) if datagram[0] == 0xC0 => {
                let mut datagram = datagram.to_vec();
                datagram[0] = 0xE0;
                datagram
            }
            _ => datagram.to_vec(),
        }
    }

    /// A server answers by a flow.
    fn answer(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), String> {
        if !self.flows.contains_key(&flow) {
            return Ok(());
        }
        let bytes = match self.bug {
            Some(Bug::LearnsNothing) => self.protocol.reply(),
            _ => bytes.to_vec(),
        };
        let burst = Burst::single(&bytes).expect("short enough");
        self.seen.answered += 1;
        let (upstream, sender) = self.sockets[&flow];
        self.tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, None).map(drop)
    }

    /// Tells the manager something and judges what it does. The flow by which it sends to a backend,
    /// if it does.
    fn tell(
        &mut self,
        input: ManagerInput<'_>,
        source: Option<SocketAddr>,
    ) -> Result<Option<FlowId>, String> {
        let mut outputs = Vec::new();
        self.manager.handle_input(input, self.now, &mut outputs);
        let mut sent_by = None;
        for output in outputs {
            match output {
                Output::OpenFlow { flow, backend, upstream, address, .. } => {
                    let source = source.ok_or("a flow opens by itself")?;
                    let (to, client) = self.flows.entry(flow).or_insert((backend, source));
                    (*to, *client) = (backend, *client);
                    self.sockets.insert(flow, (upstream, address));
                }
                Output::Send { flow, .. } => {
                    let source = source.ok_or("something is sent by itself")?;
                    if self.flows[&flow].1 != source {
                        return Err(format!("{source} sends on the flow of somebody else"));
                    }
                    sent_by = Some(flow);
                }
                Output::SendToClient { flow, client, .. } => {
                    for client in self.receivers(flow, client) {
                        if self.flows[&flow].1 != client {
                            return Err(format!("{client} gets an answer and never sent there"));
                        }
                    }
                }
                Output::CloseFlow { flow, .. } => drop(self.flows.remove(&flow)),
                _ => {}
            }
        }
        Ok(sent_by)
    }

    /// Who gets an answer, as a bug has it.
    fn receivers(&self, flow: FlowId, client: SocketAddr) -> Vec<SocketAddr> {
        let id = self.flow_ids.get(&flow);
        let last = id.and_then(|id| self.last_sender.get(id)).copied();
        match self.bug {
            Some(Bug::AnswersFollowTheId) => vec![last.unwrap_or(client)],
            Some(Bug::AnswersGoToAll) => [Some(client), last].into_iter().flatten().collect(),
            _ => vec![client],
        }
    }
}

impl Protocol {
    const fn affinity(self) -> Affinity {
        match self {
            Self::QuicLearned | Self::QuicLb => Affinity::Quic,
            Self::WireGuard => Affinity::WireGuard,
        }
    }

    /// How a client begins, with an id of its own making.
    fn hello(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => long_header(0xC0, id, b"of client"),
            Self::WireGuard => wireguard(1, &id[..4], &[], 148),
        }
    }

    /// How a server answers that, with the id that it has chosen.
    fn announcement(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => long_header(0xE0, b"of client", id),
            Self::WireGuard => wireguard(2, id, b"ours", 92),
        }
    }

    /// How a client goes on.
    fn data(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => [&[0x41], id, &[7; 40]].concat(),
            Self::WireGuard => wireguard(4, id, &[], 96),
        }
    }

    /// What a server sends that announces nothing.
    fn reply(self) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => vec![0x41; 40],
            Self::WireGuard => wireguard(4, b"ours", &[], 96),
        }
    }
}

fn long_header(first: u8, destination: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![first, 0, 0, 0, 1];
    for id in [destination, source] {
        packet.push(id.len() as u8);
        packet.extend(id);
    }
    packet.extend([0; 40]);
    packet
}

fn wireguard(kind: u8, index: &[u8], other: &[u8], length: usize) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], &index[..index.len().min(4)], other].concat();
    message.resize(length, 0);
    message
}

fn client(number: usize, place: u16) -> SocketAddr {
    SocketAddr::from(([10, 1, number as u8, place as u8], 4_000 + place))
}

fn forger(number: usize, place: u16) -> SocketAddr {
    SocketAddr::from(([10, 66, number as u8, 6], 6_000 + place))
}

fn quic_lb() -> QuicLbConfig {
    QuicLbConfig::new(0, 4, 8).expect("lengths that may be").with_key(&[9; 16])
}

fn server_id(server: usize) -> ServerId {
    ServerId::new(&[0, 0, 7, server as u8]).expect("short enough")
}

/// As little configuration as makes a cluster of three.
fn config(protocol: Protocol, bug: Option<Bug>) -> ManagerConfig {
    let text = "[[listener]]\naddress = \"192.0.2.1:443\"\ncluster = \"web\"\n\
                [cluster.web]\nbalance = \"rendezvous\"\nbackends = [\"10.0.0.1:443\"]\n";
    let parsed = flowgate_config::parse(text, "simulated.toml").expect("a valid configuration");
    let backends = (0..BACKENDS).map(|server| BackendConfig {
        server_id: (protocol == Protocol::QuicLb).then(|| server_id(server)),
        ..BackendConfig::new(SocketAddr::from(([10, 0, 0, server as u8 + 1], 443)))
    });
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    let listener = &parsed.listeners[0];
    let mut config =
        listener.manager_config(address, 4_096, vec![address.into()], false, backends.collect());
    config.cluster.idle_timeout = IDLE_TIMEOUT;
    if bug != Some(Bug::IgnoresIds) {
        config.cluster.affinity = protocol.affinity();
    }
    if protocol == Protocol::QuicLb && bug != Some(Bug::CannotReadIds) {
        let mut decoder = Decoder::default();
        decoder.insert(quic_lb());
        config.cluster.quic_lb = QuicLb(decoder.into());
    }
    config
}
