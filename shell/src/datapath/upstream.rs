//! The upstream sockets of a shard, one for each flow, in slots that are the flows' indices.

use std::net::SocketAddr;

use flowgate_core::snapshot::address;
use flowgate_core::{Direction, FlowId, LocalSource};
use serde::{Deserialize, Serialize};

use crate::datapath::send::outbox::Chain;
use crate::datapath::send::queue::SendQueue;
use crate::datapath::send::transmit::Peer;

/// A socket connected to a flow's backend, and what is under way on it.
#[derive(Debug)]
pub struct Upstream<S> {
    /// The socket.
    pub socket: S,
    /// The flow it serves.
    pub flow: FlowId,
    /// The only address that may answer.
    pub backend: SocketAddr,
    /// What it was bound to before it was connected.
    pub source: LocalSource,
    /// The time to live or hop limit it sends with.
    pub ttl: u8,
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
    /// Whether GSO batches have been refused for good on the way to the backend.
    no_gso_to_backend: bool,
    /// The same on the way to the client, which is a property of the client's route.
    no_gso_to_client: bool,
}

impl<S> Upstream<S> {
    /// A socket that has just been connected to `backend`.
    pub fn new(socket: S, flow: FlowId, backend: SocketAddr, source: LocalSource, ttl: u8) -> Self {
        Self {
            socket,
            flow,
            backend,
            source,
            ttl,
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
            flow: self.flow,
            backend: self.backend,
            source: self.source,
            ttl: self.ttl,
            drops: self.drops,
            coalesces: self.coalesces,
            no_gso: [self.no_gso_to_backend, self.no_gso_to_client],
            send_queue: self.send_queue.clone(),
        }
    }

    /// What a snapshot says, with a socket that is connected to its backend.
    pub fn restore(socket: S, snapshot: UpstreamSnapshot) -> Self {
        let UpstreamSnapshot { flow, backend, source, ttl, drops, coalesces, no_gso, send_queue } =
            snapshot;
        let [no_gso_to_backend, no_gso_to_client] = no_gso;
        let new = Self::new(socket, flow, backend, source, ttl);
        Self { drops, send_queue, coalesces, no_gso_to_backend, no_gso_to_client, ..new }
    }

    /// Whom it is connected to.
    pub const fn peer(&self) -> Peer {
        Peer { backend: self.backend, source: self.source }
    }

    /// Serves another flow from now on. What was learned of the way to the backend still holds.
    pub const fn serve(&mut self, flow: FlowId) {
        self.flow = flow;
        self.no_gso_to_client = false;
    }

    /// Whether datagrams of the flow may travel as GSO batches.
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

/// What an upstream socket is for, without the socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamSnapshot {
    /// The flow it serves.
    pub flow: FlowId,
    /// The backend that it is connected to.
    #[serde(with = "address")]
    pub backend: SocketAddr,
    /// What it was bound to before it was connected.
    pub source: LocalSource,
    /// The time to live or hop limit it sends with.
    pub ttl: u8,
    drops: u32,
    coalesces: bool,
    no_gso: [bool; 2],
    /// What waits for room in its send buffer.
    pub send_queue: SendQueue,
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

    /// Puts a socket into its flow's slot.
    pub fn insert(&mut self, upstream: Upstream<S>) {
        let index = upstream.flow.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(upstream);
    }

    /// The socket of a flow, if it is open.
    pub fn get_mut(&mut self, flow: FlowId) -> Option<&mut Upstream<S>> {
        self.at_mut(flow.index()).filter(|upstream| upstream.flow == flow)
    }

    /// The socket in a slot, whichever flow it serves.
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

    /// Takes a flow's socket out of its slot.
    pub fn remove(&mut self, flow: FlowId) -> Option<Upstream<S>> {
        let slot = self.slots.get_mut(flow.index())?;
        slot.take_if(|upstream| upstream.flow == flow)
    }
}
