//! Events, and what the judge makes of what comes of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::random::Random;
use flowgate_core::{
    BackendId, Burst, FlowId, Instant, ManagerInput, Output, PreparedConfig, UdpManager, UpstreamId,
};
use flowgate_quic_lb::FirstOctet;

use super::protocol::{Protocol, client, config, forger, quic_lb, server_id, stranger};
use super::{ADDED_FOR, BACKENDS, Bug, CONNECTIONS, FORGERS, GRACE, STEPS, Seen};

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
    /// When another backend was added.
    added: Option<Instant>,
    strangers: u16,
    seen: &'s mut Seen,
}

pub(super) fn play(
    protocol: Protocol,
    seed: u64,
    bug: Option<Bug>,
    seen: &mut Seen,
) -> Result<(), String> {
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
            manager: UdpManager::new(config(protocol, bug, BACKENDS), seed, now),
            random: Random::new(seed),
            now,
            connections: (0..CONNECTIONS).map(|_| Connection::default()).collect(),
            issued: BTreeMap::new(),
            flows: BTreeMap::new(),
            sockets: BTreeMap::new(),
            sent: BTreeMap::new(),
            last_sender: BTreeMap::new(),
            flow_ids: BTreeMap::new(),
            added: None,
            strangers: 0,
            seen,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn step(&mut self) -> Result<(), String> {
        let number = self.below(CONNECTIONS);
        match self.below(18) {
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
            14 if self.protocol.has_ids() && self.added.is_none() => self.add_a_backend(),
            14 | 15 => self.come_from_nowhere(),
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
        let (id, spare) = self.accept(flow, &made_up)?;
        let connection = &mut self.connections[number];
        (connection.id, connection.spare) = (Some(id), spare);
        Ok(())
    }

    /// A server takes a connection, and announces its id by the flow that it came by.
    fn accept(&mut self, flow: FlowId, made_up: &[u8]) -> Result<(Id, Vec<Id>), String> {
        let server = self.flows[&flow].0.index();
        let id = self.issue(server, made_up);
        self.flow_ids.insert(flow, id.clone());
        let answer = self.protocol.announcement(&id);
        self.answer(flow, &answer)?;
        // What is told under encryption nobody can learn: it has to be read.
        let spare = match self.protocol {
            Protocol::QuicLb => (0..2).map(|_| self.issue(server, &[])).collect(),
            _ => Vec::new(),
        };
        Ok((id, spare))
    }

    /// The id that a server gives a client; where clients have keys, it keeps its own.
    fn issue(&mut self, server: usize, made_up: &[u8]) -> Id {
        let id = match self.protocol {
            Protocol::QuicLb => {
                let nonce = self.random.draw().to_be_bytes();
                let id = quic_lb().encode(&server_id(server), &nonce, FirstOctet::Length);
                id.expect("the configured lengths").as_ref().to_vec()
            }
            Protocol::Sip => made_up.to_vec(),
            protocol => protocol.id_of(self.random.draw().to_be_bytes()),
        };
        let known_until = self.known_until();
        // What a key has come to first holds for all who have it.
        let first = Issued { server, known_until };
        self.issued.entry(id.clone()).or_insert(first).known_until = known_until;
        id
    }

    fn known_until(&self) -> Instant {
        if self.protocol.learns() { self.now + GRACE } else { Instant::FAR_FUTURE }
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
        // Where a key is another's than the flow's, the flow's server answers, and has no call of its own.
        if !self.protocol.has_ids() {
            return self.answer(flow, &self.protocol.reply());
        }
        self.accept(flow, &made_up).map(drop)
    }

    /// Another backend is there from now on.
    fn add_a_backend(&mut self) -> Result<(), String> {
        self.added = Some(self.now);
        let config = PreparedConfig::new(config(self.protocol, self.bug, BACKENDS + 1));
        self.tell(ManagerInput::Configured(&config), None).map(drop)
    }

    /// Somebody who has not been here before begins, or goes on with what nobody here knows.
    fn come_from_nowhere(&mut self) -> Result<(), String> {
        if !self.protocol.has_ids() {
            return Ok(());
        }
        self.strangers += 1;
        let from = stranger(self.strangers);
        let is_underway = self.below(2) == 0;
        let id = self.protocol.id_of(self.random.draw().to_be_bytes());
        let datagram = if is_underway { self.protocol.data(&id) } else { self.protocol.hello(&id) };
        let is_lately = self.added.is_some_and(|added| self.now < added + ADDED_FOR);
        let all = BACKENDS + usize::from(self.added.is_some());
        let (before, after) = (self.place_of(from, BACKENDS), self.place_of(from, all));
        if is_lately && before != after {
            let seen = &mut *self.seen;
            *(if is_underway { &mut seen.orphans } else { &mut seen.new_beside_orphans }) += 1;
        }
        let expected = if is_lately && is_underway { before } else { after };
        let flow = self.arrive(from, &datagram, &id)?.ok_or("a stranger was refused")?;
        let to = self.flows[&flow].0;
        if to != expected {
            return Err(format!("a stranger has come to {to:?} and not to {expected:?}"));
        }
        Ok(())
    }

    /// Where a client that says nothing goes, if there are so many backends.
    fn place_of(&self, source: SocketAddr, backends: usize) -> BackendId {
        let config = config(self.protocol, None, backends);
        let mut outputs = Vec::new();
        let burst = Burst::single(b"x").expect("short enough");
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        UdpManager::new(config, 0, self.now).handle_input(input, self.now, &mut outputs);
        let opened = outputs.iter().find_map(|output| match output {
            Output::OpenFlow { backend, .. } => Some(*backend),
            _ => None,
        });
        opened.expect("a flow")
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
        let is_held =
            self.flows.keys().any(|flow| self.flow_ids.get(flow).is_some_and(|it| it == id));
        let issued = self.issued.get(id);
        let is_known = issued.is_some_and(|issued| is_data && self.now < issued.known_until);
        self.seen.without_flow += u32::from(is_known && self.protocol.learns() && !is_held);
        let bytes = self.misread(source, datagram, is_known_flow, is_data && !is_held);
        let burst = Burst::single(&bytes).expect("short enough");
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        let before = self.flow_of(source);
        let flow = self.tell(input, Some(source))?;
        self.sent.insert(source, datagram.to_vec());
        self.last_sender.insert(id.to_vec(), source);
        let Some(flow) = flow else { return Ok(None) };
        let stays = before.is_some_and(|(old, _)| old == flow) && !self.protocol.has_ids();
        self.move_by_key(flow, id, stays);
        let to = self.flows[&flow].0.index();
        if stays {
            // A key is where its flow is, whatever another flow has made of it.
            let (_, was) = before.ok_or("a flow out of nowhere")?;
            let elsewhere = self.issued.get(id).is_some_and(|issued| issued.server != to);
            self.seen.stayed += u32::from(elsewhere);
            if was.index() != to {
                return Err("a key has moved a flow".into());
            }
            return Ok(Some(flow));
        }
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
        let counts = is_data || !self.protocol.has_ids();
        let issued = self.issued.get(id).filter(|issued| counts && self.now < issued.known_until);
        match issued {
            Some(issued) if issued.server != to => {
                Err(format!("an id of server {} has led to {to}", issued.server))
            }
            _ => Ok(Some(flow)),
        }
    }

    /// Has a known flow go where its client's key leads, as a bug has it.
    fn move_by_key(&mut self, flow: FlowId, id: &[u8], stays: bool) {
        if stays
            && self.bug == Some(Bug::KeysMoveFlows)
            && let Some(issued) = self.issued.get(id)
            && let Some((to, _)) = self.flows.get_mut(&flow)
        {
            *to = BackendId::new(issued.server);
        }
    }

    fn flow_of(&self, client: SocketAddr) -> Option<(FlowId, BackendId)> {
        let mut flows = self.flows.iter();
        flows.find(|(_, flow)| flow.1 == client).map(|(&id, flow)| (id, flow.0))
    }

    /// What a bug makes of a client's datagram. `has_no_flow`: no flow has its id.
    fn misread(
        &self,
        source: SocketAddr,
        datagram: &[u8],
        is_known_flow: bool,
        has_no_flow: bool,
    ) -> Vec<u8> {
        let is_strangers = source.ip() == stranger(self.strangers).ip();
        let unknown = self.protocol.id_of([0xEE; 8]);
        match (self.bug, self.sent.get(&source)) {
            (Some(Bug::KnownFlowsStay), Some(last)) if is_known_flow => last.clone(),
            (Some(Bug::OpeningsMoveFlows), _) if datagram[0] == 0xC0 => {
                let mut datagram = datagram.to_vec();
                datagram[0] = 0xE0;
                datagram
            }
            (Some(Bug::ForgetsWithTheFlow), _) if self.protocol.learns() && has_no_flow => {
                self.protocol.data(&unknown)
            }
            (Some(Bug::ForgetsOrphans), _) if is_strangers => self.protocol.hello(&unknown),
            (Some(Bug::TakesAllForOrphans), _) if is_strangers => self.protocol.data(&unknown),
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
