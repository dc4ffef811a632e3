//! Clients' own sockets, each connected to one client over the listener's address. They only
//! receive: answers leave by the listener, all of a tick together.
//!
//! A client's datagrams come by the listener, then by a socket of its own, then by the listener
//! again, perhaps by another socket, and so on. Nothing is lost and nothing changes places, since
//! each is read to its end before the next:
//!
//! - A socket is not read before the listener has been read as far as it was filled when the first
//!   datagram came by the socket: whatever the client sent before had arrived by then.
//! - A socket that is given up hears nothing more, and is read to its end before the listener is
//!   read again.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use flowgate_core::FlowId;
use flowgate_core::snapshot::address;
use serde::{Deserialize, Serialize};
use slab::Slab;

/// A socket connected to a client.
#[derive(Debug)]
pub struct Client<S> {
    /// The socket.
    pub socket: S,
    address: SocketAddr,
    /// How many flows ask for it.
    flows: u32,
    stage: Stage,
    /// Whether it is on the list of sockets to be read, or waits to be put there.
    pub is_ready: bool,
    /// Whether the poll reported an error, behind which datagrams may hide.
    pub has_error: bool,
    /// Whether the kernel was asked to join what arrives into bursts.
    pub coalesces: bool,
}

/// What may still wait at the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Anything: nothing has come by the socket yet.
    New,
    /// What had arrived when something had come.
    Waiting,
    /// Nothing that is older than what comes.
    Open,
}

/// No slot.
const NONE: u32 = u32::MAX;

/// All clients' own sockets of a shard.
#[derive(Debug)]
pub struct Clients<S> {
    slots: Slab<Client<S>>,
    by_address: HashMap<SocketAddr, u32>,
    /// The slot that each flow asks for, by the flow's index.
    of_flows: Vec<u32>,
    /// Those that wait, in the order in which they began to, and how many bursts the listener is to
    /// have handed out before each is read.
    waiting: VecDeque<(u64, u32)>,
    /// How many bursts the listener has handed out.
    listener_bursts: u64,
    /// Whether one has begun to wait since this was asked last.
    asks_for_the_listener: bool,
    /// Those that hear nothing more and are to be read to their end.
    pub leaving: VecDeque<S>,
    /// Those that have been read to their end, and are looked at once more before they close.
    pub parting: Vec<S>,
    /// How many datagrams the kernel dropped at those that were given up.
    pub drops: u64,
    /// How often one could not be opened.
    pub not_opened: u64,
}

impl<S> Default for Clients<S> {
    fn default() -> Self {
        Self {
            slots: Slab::new(),
            by_address: HashMap::new(),
            of_flows: Vec::new(),
            waiting: VecDeque::new(),
            listener_bursts: 0,
            asks_for_the_listener: false,
            leaving: VecDeque::new(),
            parting: Vec::new(),
            drops: 0,
            not_opened: 0,
        }
    }
}

/// A slot of a [`Clients`] that a flow may take, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The client has a socket already, which serves this flow too from now on.
    Shared,
    /// A socket is to be opened, and to be known by this number.
    New(u32),
}

impl<S> Clients<S> {
    /// Looks for the socket of a client that a flow asks for.
    pub fn ask(&mut self, flow: FlowId, address: SocketAddr) -> Room {
        if let Some(&slot) = self.by_address.get(&address)
            && let Some(client) = self.at_mut(slot)
        {
            client.flows += 1;
            self.assign(flow, slot);
            return Room::Shared;
        }
        Room::New(self.slots.vacant_key() as u32)
    }

    /// Takes in the socket that was opened for a flow, in the slot that it was asked for last.
    pub fn insert(&mut self, socket: S, flow: FlowId, address: SocketAddr) {
        let slot = self.slots.insert(Client {
            socket,
            address,
            flows: 1,
            stage: Stage::New,
            is_ready: false,
            has_error: false,
            coalesces: false,
        }) as u32;
        self.by_address.insert(address, slot);
        self.assign(flow, slot);
    }

    fn assign(&mut self, flow: FlowId, slot: u32) {
        self.assign_slot(flow.index(), slot);
    }

    fn assign_slot(&mut self, flow: usize, slot: u32) {
        if self.of_flows.len() <= flow {
            self.of_flows.resize(flow + 1, NONE);
        }
        self.of_flows[flow] = slot;
    }

    /// The socket in a slot.
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut Client<S>> {
        self.slots.get_mut(slot as usize)
    }

    /// How many clients have sockets of their own.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// A flow has ended. Gives back its client's socket if it is to leave: no other flow asks for
    /// it, and nothing older waits at the listener. Where something may, it leaves later.
    pub fn release(&mut self, flow: FlowId, queued: impl FnOnce() -> u64) -> Option<S> {
        let slot = std::mem::replace(self.of_flows.get_mut(flow.index())?, NONE);
        let client = self.at_mut(slot)?;
        client.flows = client.flows.saturating_sub(1);
        if client.flows == 0 && client.stage == Stage::New {
            self.wait(slot, queued());
        }
        self.take_unused(slot)
    }

    /// Takes the socket in a slot out of it if it is of no use any more.
    fn take_unused(&mut self, slot: u32) -> Option<S> {
        let client = self.slots.get(slot as usize)?;
        if client.flows > 0 || client.stage != Stage::Open {
            return None;
        }
        let client = self.slots.remove(slot as usize);
        self.by_address.remove(&client.address);
        Some(client.socket)
    }

    /// The poll has told that something has come by the socket in a slot. Says whether it is to be
    /// put on the list of those to be read. If it is the first to come, it waits for the listener, at
    /// which at most `queued` bursts wait.
    pub fn became_ready(&mut self, slot: u32, error: bool, queued: impl FnOnce() -> u64) -> bool {
        let Some(client) = self.at_mut(slot) else { return false };
        client.has_error |= error;
        let was_ready = std::mem::replace(&mut client.is_ready, true);
        let stage = client.stage;
        if stage == Stage::New {
            self.wait(slot, queued());
        }
        stage == Stage::Open && !was_ready
    }

    fn wait(&mut self, slot: u32, queued: u64) {
        let after = self.listener_bursts.saturating_add(queued);
        if let Some(client) = self.at_mut(slot) {
            client.stage = Stage::Waiting;
            self.waiting.push_back((after, slot));
            self.asks_for_the_listener = true;
        }
    }

    /// Whether the listener has to be read, also where no event has told of anything there.
    pub const fn takes_the_listener(&mut self) -> bool {
        std::mem::replace(&mut self.asks_for_the_listener, false)
    }

    /// Whether there is something to do beside the sockets that are ready.
    pub fn has_work(&self) -> bool {
        self.asks_for_the_listener || !self.leaving.is_empty()
    }

    /// Notes that the listener has handed out this many bursts, and whether nothing is left there.
    /// Calls `release` with the slot of each socket that may be read now. Those that no flow asks
    /// for any more come back.
    pub fn listener_was_read(
        &mut self,
        bursts: usize,
        is_drained: bool,
        mut release: impl FnMut(u32),
    ) -> Vec<S> {
        self.listener_bursts += bursts as u64;
        let mut unused = Vec::new();
        while let Some(&(after, slot)) = self.waiting.front()
            && (is_drained || after <= self.listener_bursts)
        {
            self.waiting.pop_front();
            let Some(client) = self.at_mut(slot) else { continue };
            client.stage = Stage::Open;
            match self.take_unused(slot) {
                Some(socket) => unused.push(socket),
                // Without an event nothing has come, and one will.
                None if self.at_mut(slot).is_some_and(|client| client.is_ready) => release(slot),
                None => {}
            }
        }
        unused
    }
}

impl<S> Client<S> {
    /// Whether something has come and nothing that is older waits at the listener.
    pub fn may_be_read(&self) -> bool {
        self.is_ready && self.stage == Stage::Open
    }
}

/// What clients' own sockets are for, without the sockets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientsSnapshot {
    clients: Vec<ClientSnapshot>,
    /// How many sockets there are besides, which are to be read to their end.
    leaving: u32,
    drops: u64,
    not_opened: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ClientSnapshot {
    #[serde(with = "address")]
    address: SocketAddr,
    /// The slots of the flows that ask for it.
    flows: Vec<u32>,
    is_open: bool,
    coalesces: bool,
}

impl ClientsSnapshot {
    /// Whether all are those of flows in this many slots.
    pub fn fits(&self, slots: usize) -> bool {
        let mut flows = self.clients.iter().flat_map(|client| &client.flows);
        flows.all(|&flow| (flow as usize) < slots)
    }

    /// How many sockets there were.
    pub const fn count(&self) -> usize {
        self.clients.len() + self.leaving as usize
    }
}

impl<S> Clients<S> {
    /// What they are for.
    pub fn snapshot(&self) -> ClientsSnapshot {
        let mut flows = vec![Vec::new(); self.slots.capacity()];
        for (flow, &slot) in (0..).zip(&self.of_flows) {
            if let Some(flows) = flows.get_mut(slot as usize) {
                flows.push(flow);
            }
        }
        let snapshot = |(slot, client): (usize, &Client<S>)| ClientSnapshot {
            address: client.address,
            flows: std::mem::take(&mut flows[slot]),
            is_open: client.stage == Stage::Open,
            coalesces: client.coalesces,
        };
        ClientsSnapshot {
            clients: self.slots.iter().map(snapshot).collect(),
            leaving: (self.leaving.len() + self.parting.len()) as u32,
            drops: self.drops,
            not_opened: self.not_opened,
        }
    }

    /// All sockets in the order of the snapshot.
    pub fn sockets(&self) -> impl Iterator<Item = &S> {
        let open = self.slots.iter().map(|(_, client)| &client.socket);
        open.chain(&self.leaving).chain(&self.parting)
    }

    /// What a snapshot says, with the sockets that it was made of, in its order. Clients whose sockets
    /// are missing go on by the listener. What was to be read to its end still is.
    pub fn restore(
        snapshot: ClientsSnapshot,
        sockets: &mut impl Iterator<Item = Option<S>>,
    ) -> Self {
        let mut all =
            Self { drops: snapshot.drops, not_opened: snapshot.not_opened, ..Self::default() };
        for ClientSnapshot { address, flows, is_open, coalesces } in snapshot.clients {
            let Some(socket) = sockets.next().flatten() else { continue };
            // What came by the listener and is older may still be there, unless it has been read.
            let stage = if is_open { Stage::Open } else { Stage::New };
            let count = flows.len() as u32;
            let (is_ready, has_error) = (false, false);
            let slot = all.slots.insert(Client {
                socket,
                address,
                flows: count,
                stage,
                is_ready,
                has_error,
                coalesces,
            }) as u32;
            all.by_address.insert(address, slot);
            flows.into_iter().for_each(|flow| all.assign_slot(flow as usize, slot));
        }
        let leaving = (0..snapshot.leaving).filter_map(|_| sockets.next().flatten());
        all.leaving = leaving.collect();
        all
    }

    /// All that are open, with their slots, for the poll to tell of them as if it never had.
    pub fn watched_anew(&mut self) -> impl Iterator<Item = (u32, &S)> {
        self.asks_for_the_listener = !self.waiting.is_empty();
        self.slots.iter_mut().map(|(slot, client)| {
            client.is_ready = false;
            (slot as u32, &client.socket)
        })
    }
}
