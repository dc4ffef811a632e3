//! All flows of a manager, found by id or by who sent to whom.

use core::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use slab::Slab;

use crate::flow::UdpFlow;
use crate::id::FlowId;
use crate::input::LocalAddr;
use crate::random::Random;

/// What makes two datagrams belong to one flow: the client's address and port, and the local
/// address they were sent to, from which the answers must come.
///
/// IPv4 addresses are held mapped into IPv6 (RFC 4291, section 2.5.5.2), so that a key has one
/// shape and is compared as plain words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct FlowKey {
    client: [u8; 16],
    local: [u8; 16],
    client_port: u16,
    /// 0 where the local address is not part of the key.
    has_local: u16,
    /// The scope of a link-local client, and then of the local address too.
    scope: u32,
}

impl FlowKey {
    pub(crate) fn new(client: SocketAddr, local: Option<LocalAddr>) -> Self {
        let scope = match client {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(client) => client.scope_id(),
        };
        Self {
            client: mapped(client.ip()),
            local: local.map_or([0; 16], |local| mapped(local.ip)),
            client_port: client.port(),
            has_local: u16::from(local.is_some()),
            scope: if scope == 0 { local.map_or(0, |local| local.interface) } else { scope },
        }
    }

    pub(crate) fn client(&self) -> SocketAddr {
        match canonical(self.client) {
            IpAddr::V4(ip) => SocketAddr::from((ip, self.client_port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.client_port, 0, self.scope).into(),
        }
    }

    pub(crate) fn local(&self) -> Option<LocalAddr> {
        (self.has_local != 0)
            .then(|| LocalAddr { ip: canonical(self.local), interface: self.scope })
    }

    fn hash(&self, keys: (u64, u64)) -> u64 {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&self.client);
        bytes[16..32].copy_from_slice(&self.local);
        bytes[32..34].copy_from_slice(&self.client_port.to_ne_bytes());
        bytes[34..36].copy_from_slice(&self.has_local.to_ne_bytes());
        bytes[36..].copy_from_slice(&self.scope.to_ne_bytes());
        SipHasher13::new_with_keys(keys.0, keys.1).hash(&bytes)
    }
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn canonical(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// The flows, in slots that are their ids' indices, and an index over those by key.
///
/// Clients choose the keys, so they are hashed with SipHash under a secret: nobody who cannot see
/// the seed can make them collide. Both parts are allocated for `capacity` flows at start, the
/// index for twice as many, so that it never has to grow when flows come and go.
#[derive(Clone, Debug)]
pub(crate) struct FlowTable {
    flows: Slab<UdpFlow>,
    index: HashTable<u32>,
    hash_keys: (u64, u64),
    capacity: usize,
    next_generation: u32,
}

impl FlowTable {
    pub(crate) fn new(capacity: usize, random: &mut Random) -> Self {
        Self {
            flows: Slab::with_capacity(capacity),
            index: HashTable::with_capacity(capacity * 2),
            hash_keys: (random.next(), random.next()),
            capacity,
            next_generation: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.flows.len() >= self.capacity
    }

    /// The flow that a client's next datagram belongs to. Retired flows are not found by key.
    #[inline]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let is_key = |&index: &u32| self.flows[index as usize].key() == key;
        let index = *self.index.find(key.hash(self.hash_keys), is_key)?;
        Some(self.id_at(index as usize))
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&UdpFlow> {
        self.flows.get(id.index()).filter(|flow| flow.generation() == id.generation())
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut UdpFlow> {
        self.flows.get_mut(id.index()).filter(|flow| flow.generation() == id.generation())
    }

    /// The flow in a slot that is known to hold one.
    pub(crate) fn at(&self, index: usize) -> (FlowId, &UdpFlow) {
        (self.id_at(index), &self.flows[index])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &UdpFlow)> {
        self.flows.iter().map(|(index, flow)| (FlowId::new(index as u32, flow.generation()), flow))
    }

    /// Adds the flow that `build` makes for the generation it is given. The caller has looked
    /// that the table is not full and holds no flow of this key.
    pub(crate) fn insert(&mut self, key: &FlowKey, build: impl FnOnce(u32) -> UdpFlow) -> FlowId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let index = self.flows.insert(build(generation)) as u32;
        let Self { flows, index: by_key, hash_keys, .. } = self;
        let rehash = |&index: &u32| flows[index as usize].key().hash(*hash_keys);
        by_key.insert_unique(key.hash(*hash_keys), index, rehash);
        FlowId::new(index, generation)
    }

    /// Makes a flow unfindable by key, so that another may take the key.
    pub(crate) fn unindex(&mut self, id: FlowId) {
        let hash = self.flows[id.index()].key().hash(self.hash_keys);
        if let Ok(entry) = self.index.find_entry(hash, |&index| index as usize == id.index()) {
            entry.remove();
        }
    }

    /// Removes a flow; its id is stale from now on.
    pub(crate) fn remove(&mut self, id: FlowId) -> UdpFlow {
        self.unindex(id);
        self.flows.remove(id.index())
    }

    fn id_at(&self, index: usize) -> FlowId {
        FlowId::new(index as u32, self.flows[index].generation())
    }

    /// Panics unless the index and the slots tell the same.
    pub(crate) fn assert_invariants(&self) {
        assert!(self.flows.len() <= self.capacity, "more flows than the table may hold");
        let mut findable = 0;
        for (id, flow) in self.iter().filter(|(_, flow)| !flow.is_retired()) {
            findable += 1;
            assert_eq!(self.find(flow.key()), Some(id), "a live flow is not found by its key");
        }
        assert_eq!(self.index.len(), findable, "the index names flows that cannot be found");
    }
}
