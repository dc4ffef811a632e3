//! The upstream sockets of a shard, in slots that are their ids' indices.

use std::net::SocketAddr;

use flowgate_core::snapshot::address;
use flowgate_core::{Direction, LocalSource, Transactions, UpstreamId};
use serde::{Deserialize, Serialize};

use crate::datapath::send::outbox::Chain;
use crate::datapath::send::queue::SendQueue;
use crate::datapath::send::transmit::Peer;

/// A socket towards backends, and what is under way on it.
#[derive(Debug)]
pub struct Upstream<S> {
    /// The socket.
    pub socket: S,
    /// Its name.
    pub id: UpstreamId,
    /// Whom it is connected to; `None`: nobody.
    pub backend: Option<SocketAddr>,
    /// Whether it is of IPv6.
    pub v6: bool,
    /// What it is bound to.
    pub source: LocalSource,
    /// The time to live or hop limit it sends with where nothing else is said.
    pub ttl: u8,
    /// How many bursts in a row were to be sent with another one, and which.
    other_ttl: (u8, u8),
    /// How many datagrams it is known to have lost since its receive buffer was full.
    pub drops: u32,
    /// What this tick sends to it.
    pub outgoing: Chain,
    /// What waits for room in its send buffer.
    pub send_queue: SendQueue,
    /// Whether it is on the list of sockets to be read.
    pub is_ready: bool,
    /// Whether the poll reported an error, behind which datagrams may hide: reading goes on until
    /// the kernel says that nothing is left.
    pub has_error: bool,
    /// Whether the kernel was asked to join what arrives into bursts. Not from the start: a flow of
    /// one question and one answer would pay for it in vain.
    pub coalesces: bool,
    /// Whether GSO batches have been refused for good on the way to a backend.
    no_gso_to_backend: bool,
    /// The same on the way to a client, which is a property of the client's route.
    no_gso_to_client: bool,
}

impl<S> Upstream<S> {
    /// A socket that has just been opened, connected to `backend` or to nobody.
    pub fn new(
        socket: S,
        id: UpstreamId,
        (backend, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
        ttl: u8,
    ) -> Self {
        Self {
            socket,
            id,
            backend,
            v6,
            source,
            ttl,
            other_ttl: (0, ttl),
            drops: 0,
            outgoing: Chain::EMPTY,
            send_queue: SendQueue::default(),
            is_ready: false,
            has_error: false,
            coalesces: false,
            no_gso_to_backend: false,
            no_gso_to_client: false,
        }
    }

    /// What it is for, without the socket.
    pub fn snapshot(&self) -> UpstreamSnapshot {
        UpstreamSnapshot {
            id: self.id,
            backend: self.backend.map(Address),
            v6: self.v6,
            source: self.source,
            ttl: self.ttl,
            drops: self.drops,
            coalesces: self.coalesces,
            no_gso: [self.no_gso_to_backend, self.no_gso_to_client],
            send_queue: self.send_queue.clone(),
        }
    }

    /// What a snapshot says, with a socket that is connected as it says.
    pub fn restore(socket: S, snapshot: UpstreamSnapshot) -> Self {
        let connection = (snapshot.connect(), snapshot.v6);
        let UpstreamSnapshot { id, source, ttl, drops, coalesces, no_gso, send_queue, .. } =
            snapshot;
        let [no_gso_to_backend, no_gso_to_client] = no_gso;
        let new = Self::new(socket, id, connection, source, ttl);
        Self { drops, send_queue, coalesces, no_gso_to_backend, no_gso_to_client, ..new }
    }

    /// Whom what it sends goes to, and what names a question in what the network says of that.
    pub const fn peer(&self, questions: Option<Transactions>) -> Peer {
        match self.backend {
            Some(backend) => Peer::Backend { backend, source: self.source },
            None => Peer::Backends(self.id, questions),
        }
    }

    /// How a burst that is to be sent with such a time to live is sent with it.
    pub const fn send_with_ttl(&mut self, ttl: u8) -> SendTtl {
        if ttl == self.ttl {
            self.other_ttl.0 = 0;
            return SendTtl::AsIs;
        }
        let run = if ttl == self.other_ttl.1 { self.other_ttl.0 } else { 0 };
        self.other_ttl = (run.saturating_add(1), ttl);
        if self.other_ttl.0 < TTL_IS_THERE_TO_STAY { SendTtl::Beside } else { SendTtl::Set }
    }

    /// Whether datagrams may travel as GSO batches.
    pub const fn may_use_gso(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToBackend => !self.no_gso_to_backend,
            Direction::ToClient => !self.no_gso_to_client,
        }
    }

    /// Remembers that the way takes no GSO batches.
    pub const fn forbid_gso(&mut self, direction: Direction) {
        match direction {
            Direction::ToBackend => self.no_gso_to_backend = true,
            Direction::ToClient => self.no_gso_to_client = true,
        }
    }
}

/// How many bursts in a row have to want another time to live than their socket's before it becomes
/// the socket's: fewer take it beside them, as control messages, which costs no call of its own.
const TTL_IS_THERE_TO_STAY: u8 = 8;

/// How a time to live gets into a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendTtl {
    /// The socket sends with it.
    AsIs,
    /// It goes beside the datagram.
    Beside,
    /// It becomes the socket's.
    Set,
}

/// What an upstream socket is for, without the socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamSnapshot {
    /// Its name.
    pub id: UpstreamId,
    backend: Option<Address>,
    /// Whether it is of IPv6.
    pub v6: bool,
    /// What it is bound to.
    pub source: LocalSource,
    /// The time to live or hop limit it sends with.
    pub ttl: u8,
    drops: u32,
    coalesces: bool,
    no_gso: [bool; 2],
    /// What waits for room in its send buffer.
    pub send_queue: SendQueue,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Address(#[serde(with = "address")] SocketAddr);

impl UpstreamSnapshot {
    /// Whom it is connected to; `None`: nobody.
    pub fn connect(&self) -> Option<SocketAddr> {
        self.backend.map(|Address(backend)| backend)
    }
}

/// All upstream sockets of a shard.
#[derive(Debug)]
pub struct Upstreams<S> {
    slots: Vec<Option<Upstream<S>>>,
}

impl<S> Upstreams<S> {
    /// Room for `capacity` sockets; allocates nothing later.
    pub fn new(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity) }
    }

    /// Puts a socket into its slot.
    pub fn insert(&mut self, upstream: Upstream<S>) {
        let index = upstream.id.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(upstream);
    }

    /// The socket of this name, if it is open.
    pub fn get_mut(&mut self, id: UpstreamId) -> Option<&mut Upstream<S>> {
        self.at_mut(id.index()).filter(|upstream| upstream.id == id)
    }

    /// The socket in a slot, whatever its name.
    pub fn at_mut(&mut self, index: usize) -> Option<&mut Upstream<S>> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// How many slots there are.
    pub const fn slots(&self) -> usize {
        self.slots.len()
    }

    /// All open sockets. Looks at every slot: not for each datagram.
    pub fn iter(&self) -> impl Iterator<Item = &Upstream<S>> {
        self.slots.iter().flatten()
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Upstream<S>> {
        self.slots.iter_mut().flatten()
    }

    /// Takes a socket out of its slot.
    pub fn remove(&mut self, id: UpstreamId) -> Option<Upstream<S>> {
        let slot = self.slots.get_mut(id.index())?;
        slot.take_if(|upstream| upstream.id == id)
    }
}
