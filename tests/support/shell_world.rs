//! A real shard on a [`FakeKernel`], with clients and backends around it whose every datagram can
//! be told from every other.
//!
//! After every step the world checks what must hold: each datagram was taken by the kernel once,
//! waits once, or is counted as dropped once; it went where it belongs, with the marks it had, and
//! not before one that came earlier on its flow.

mod payload;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate::datapath::shard::{Readiness, Shard};
use flowgate::datapath::token::Token;
use flowgate::sys::arena::Arena;
use flowgate_core::config::{Accept, ManagerConfig, SendProxyProtocol};
use flowgate_core::{Direction, Instant, LocalAddr, ManagerInput, UdpManager};

use crate::fake_kernel::{FakeKernel, Faults, Incoming, Sent, SocketId};
use payload::{Payload, strip_proxy_header};

/// The world.
pub struct ShellWorld {
    /// The kernel that the shard runs on.
    pub kernel: FakeKernel,
    /// The shard under test.
    pub shard: Shard<FakeKernel>,
    /// The shard's listener.
    pub listener: SocketId,
    now: Instant,
    arena: Arena,
    clients: Vec<Client>,
    send_proxy_protocol: SendProxyProtocol,
    /// Whose datagrams left by each upstream socket last.
    owners: BTreeMap<SocketId, u32>,
    /// The last datagram of each client that left by each upstream socket.
    last_requests: BTreeMap<(SocketId, u32), u32>,
    /// The socket that each reply was sent to.
    replies: Vec<SocketId>,
    /// The last reply that was sent to each upstream socket and passed on to its client.
    last_replies: BTreeMap<SocketId, u32>,
    /// How many datagrams the kernel took, by direction.
    taken: [u64; 2],
    trace: DefaultHasher,
}

/// A client, as an address and the local address it calls.
#[derive(Clone, Copy, Debug)]
struct Client {
    address: SocketAddr,
    local: Option<LocalAddr>,
    next: u32,
}

/// Datagrams that are to be made up: this many, so long, the last one perhaps shorter, marked so.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many, at least one.
    pub datagrams: usize,
    /// How long each is; shorter than [`Shape::SHORTEST`] is made longer.
    pub len: usize,
    /// How much shorter the last one is.
    pub short_by: usize,
    /// The TOS byte.
    pub tos: u8,
}

impl Shape {
    /// The fewest bytes in which a datagram says who it is.
    pub const SHORTEST: usize = payload::LEN;

    /// Equal datagrams without marks.
    pub const fn new(datagrams: usize, len: usize) -> Self {
        Self { datagrams, len, short_by: 0, tos: 0 }
    }
}

impl ShellWorld {
    /// A world of `clients` clients in which the kernel fails as `faults` say.
    pub fn new(config: ManagerConfig, clients: u32, seed: u64, faults: Faults) -> Self {
        let kernel = FakeKernel::new(faults);
        let socket = kernel.listen(Token::Listener { shard: 0 });
        let listener = socket.id();
        let now = Instant::from_millis(1);
        let accept = config.accept;
        let client = |number: u32| Client {
            address: ([10, 0, 0, 1], 10_000 + number as u16).into(),
            // Clients have sockets of their own where the listener has one address.
            local: (accept == Accept::Shared)
                .then(|| LocalAddr { ip: [127, 0, 0, 1 + number as u8 % 2].into(), interface: 0 }),
            next: 0,
        };
        Self {
            send_proxy_protocol: config.cluster.send_proxy_protocol,
            shard: Shard::new(0, socket, UdpManager::new(config, seed, now)),
            kernel,
            listener,
            now,
            arena: Arena::new(32),
            clients: (0..clients).map(client).collect(),
            owners: BTreeMap::new(),
            last_requests: BTreeMap::new(),
            replies: Vec::new(),
            last_replies: BTreeMap::new(),
            taken: [0; 2],
            trace: DefaultHasher::new(),
        }
    }

    /// Has a client send datagrams, which arrive at the socket that the kernel finds for it.
    pub fn request(&mut self, client: u32, shape: Shape) {
        let sender = &mut self.clients[client as usize];
        let next = &mut sender.next;
        let (bytes, segment) = payload::train(shape, || {
            *next += 1;
            Payload {
                direction: Direction::ToBackend,
                tos: shape.tos,
                party: client,
                number: *next,
            }
        });
        let (source, local, tos) = (sender.address, sender.local, shape.tos);
        let ttl = ttl_of(tos);
        let incoming = Incoming { local, tos, ttl, ..Incoming::new(source, bytes, segment) };
        let own = self.kernel.own_socket_of(source);
        self.kernel.arrive(own.unwrap_or(self.listener), incoming);
    }

    /// Has the backend behind an upstream socket answer whom it heard there last. Nothing happens
    /// before it has heard anybody.
    pub fn reply(&mut self, socket: SocketId, backend: SocketAddr, shape: Shape) {
        let Some(&party) = self.owners.get(&socket) else { return };
        let replies = &mut self.replies;
        let (bytes, segment) = payload::train(shape, || {
            replies.push(socket);
            let number = replies.len() as u32 - 1;
            Payload { direction: Direction::ToClient, tos: shape.tos, party, number }
        });
        let incoming = Incoming { tos: shape.tos, ..Incoming::new(backend, bytes, segment) };
        self.kernel.arrive(socket, incoming);
    }

    /// Lets time pass, and fires what is due, as a worker does.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.shard.poll_timeout().is_some_and(|deadline| deadline.at <= self.now) {
            self.shard.handle(ManagerInput::Timeout, &mut self.kernel, self.now);
        }
        self.check();
    }

    /// Tells the shard of at most `max` events, and of one that is not so.
    pub fn poll(&mut self, max: usize, spurious: Option<Token>) {
        let everything = Readiness { readable: true, writable: true, error: true };
        let events = self.kernel.poll(max).into_iter();
        for (token, readiness) in events.chain(spurious.map(|token| (token, everything))) {
            self.shard.on_event(token, readiness, &mut self.kernel, self.now);
        }
        self.check();
    }

    /// Gives the shard a tick.
    pub fn tick(&mut self) {
        self.shard.tick(&mut self.kernel, &mut self.arena, self.now);
        self.check();
    }

    /// Polls and ticks, as a worker does, until there is neither news nor work.
    ///
    /// # Panics
    ///
    /// When that does not come to an end.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.kernel.has_news() && !self.shard.has_work() {
                return;
            }
            self.poll(8, None);
            self.tick();
        }
        panic!("the shard goes on without end");
    }

    /// Closes all flows, by letting them all be idle for a day.
    pub fn end_flows(&mut self) {
        for _ in 0..self.clients.len() + 2 {
            self.pass(Duration::from_secs(86_400));
        }
    }

    /// The upstream socket by which a client's datagrams leave, if it has sent any.
    pub fn upstream_of(&self, client: u32) -> Option<SocketId> {
        let mut mine = self.owners.iter().filter(|(_, owner)| **owner == client);
        mine.next_back().map(|(socket, _)| *socket)
    }

    /// The address of a client.
    pub fn address_of(&self, client: u32) -> SocketAddr {
        self.clients[client as usize].address
    }

    /// A number that stands for all that ever left, in its order.
    pub fn fingerprint(&self) -> u64 {
        self.trace.finish()
    }

    /// Checks what left since the last time, and that the books balance.
    fn check(&mut self) {
        for (socket, peer) in self.kernel.sockets() {
            for sent in self.kernel.take_sent(socket) {
                (socket, &sent).hash(&mut self.trace);
                match peer {
                    Some(_) => self.check_request(socket, &sent),
                    None => self.check_reply(&sent),
                }
            }
        }
        let manager = self.shard.manager();
        manager.assert_invariants();
        for direction in Direction::ALL {
            let ledger = manager.counters().ledger(direction);
            let waiting = self.shard.queued(direction) as u64;
            let context = direction.as_str();
            assert_eq!(ledger.received.datagrams, self.kernel.received(direction), "{context}");
            // What goes to another backend is counted once.
            let again = match direction {
                Direction::ToBackend => manager.counters().retries,
                Direction::ToClient => 0,
            };
            let queued = ledger.queued.datagrams;
            assert!((queued..=queued + again).contains(&waiting), "{context}: {waiting} wait");
            let (once, taken) = (ledger.forwarded.datagrams, self.taken[direction as usize]);
            assert!((once..=once + again).contains(&taken), "{context}: {taken} of {once}");
        }
    }

    fn check_request(&mut self, socket: SocketId, sent: &Sent) {
        self.taken[Direction::ToBackend as usize] += 1;
        let (header, rest) = strip_proxy_header(&sent.bytes);
        let payload = Payload::read(rest).expect("a datagram cut or made up");
        assert_eq!(payload.direction, Direction::ToBackend);
        assert_eq!(payload.tos, sent.tos, "the TOS byte of another datagram");
        assert_eq!(ttl_of(payload.tos) - 1, sent.ttl, "the hop limit of another datagram");
        let client = &self.clients[payload.party as usize];
        match self.send_proxy_protocol {
            SendProxyProtocol::Off => assert_eq!(header, None),
            // The first one of a flow may have been lost.
            SendProxyProtocol::First => {}
            SendProxyProtocol::Every => assert_ne!(header, None),
        }
        if let Some((source, destination)) = header {
            assert_eq!(source, client.address);
            // The listener's own, where it has one address.
            let called = client.local.map_or([0; 4].into(), |local| local.ip);
            assert_eq!(destination.ip(), called);
        }
        let owner = self.owners.insert(socket, payload.party);
        let is_handed_over = owner.is_some_and(|owner| owner != payload.party);
        assert!(!is_handed_over, "it left by another client's socket");
        let last = self.last_requests.insert((socket, payload.party), payload.number);
        assert!(last < Some(payload.number), "repeated, or out of order");
    }

    fn check_reply(&mut self, sent: &Sent) {
        self.taken[Direction::ToClient as usize] += 1;
        let payload = Payload::read(&sent.bytes).expect("a datagram cut or made up");
        assert_eq!(payload.direction, Direction::ToClient);
        assert_eq!(payload.tos, sent.tos, "the TOS byte of another datagram");
        let client = &self.clients[payload.party as usize];
        assert_eq!(sent.destination, Some(client.address), "a reply for another client");
        assert_eq!(sent.local, client.local, "a reply from an address that was not called");
        let socket = self.replies[payload.number as usize];
        let last = self.last_replies.insert(socket, payload.number);
        assert!(last < Some(payload.number), "repeated, or out of order");
    }
}

/// The hop limit that is left of a client's datagrams with this TOS byte: so that one shows what the
/// other has to be.
const fn ttl_of(tos: u8) -> u8 {
    60 + tos % 4
}
