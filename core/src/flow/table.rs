//! All flows of a manager, found by id or by who sent to whom.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::hint::black_box;

use core::hash::Hasher;

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::collections::slots::Slots;
use crate::config::slots_for;
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BRANCH, BackendId, FlowId, UpstreamId};
use crate::random::Random;
use crate::time::Instant;
use crate::transaction::TransactionId;

/// The most flows that one prefetch fetches.
const PREFETCH_BATCH: usize = 64;

/// The flows, in slots that are their ids' indices, and an index over those by key.
///
/// Clients choose the keys, so they are hashed with SipHash under a secret: nobody who cannot see
/// the seed can make them collide. Both parts are allocated for `capacity` flows at start, the
/// index for twice as many, so that it never has to grow when flows come and go.
#[derive(Clone, Debug)]
pub(crate) struct FlowTable {
    flows: Slots<UdpFlow>,
    /// How many of them have ended and are in quarantine.
    quarantined: usize,
    index: HashTable<u32>,
    /// Those on shared upstreams, in quarantine or not, by where their answers come.
    routes: HashTable<u32>,
    hash_keys: (u64, u64),
    capacity: usize,
    next_generation: u32,
    expected: Expected,
}

/// Where the flows of the coming datagrams are likely to be. A wrong guess costs a comparison.
#[derive(Clone, Debug)]
struct Expected {
    slots: [u32; PREFETCH_BATCH],
    next: usize,
}

const NOWHERE: u32 = u32::MAX;

impl Expected {
    const NOTHING: Self = Self { slots: [NOWHERE; PREFETCH_BATCH], next: PREFETCH_BATCH };

    fn take(&mut self) -> u32 {
        let Some(&slot) = self.slots.get(self.next) else { return NOWHERE };
        self.next += 1;
        slot
    }
}

impl FlowTable {
    pub(crate) fn new(capacity: usize, random: &mut Random) -> Self {
        Self {
            flows: Slots::with_capacity(slots_for(capacity)),
            quarantined: 0,
            index: HashTable::with_capacity(capacity * 2),
            routes: HashTable::new(),
            hash_keys: (random.draw(), random.draw()),
            capacity,
            next_generation: 0,
            expected: Expected::NOTHING,
        }
    }

    /// How many flows are alive.
    pub(crate) fn len(&self) -> usize {
        self.flows.len() - self.quarantined
    }

    /// How many flows have ended and are in quarantine.
    pub(crate) const fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Allows another number of flows. Where there are more, they may stay.
    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        let Self { flows, index, hash_keys, .. } = self;
        flows.reserve(slots_for(capacity));
        let rehash = |&at: &u32| flows[at as usize].key().hash(*hash_keys);
        index.reserve((capacity * 2).saturating_sub(index.len()), rehash);
        self.capacity = capacity;
    }

    /// How many slots there are to look at to see every flow.
    pub(crate) const fn slots(&self) -> usize {
        self.flows.used()
    }

    /// The flow in a slot, if there is one alive.
    pub(crate) fn alive_at(&self, index: usize) -> Option<(FlowId, &UdpFlow)> {
        let flow = self.flows.get(index).filter(|flow| !flow.has_ended())?;
        Some((FlowId::new(index as u32, flow.generation()), flow))
    }

    /// Whether the flow in a slot has ended and is in quarantine.
    pub(crate) fn has_ended_at(&self, index: usize) -> bool {
        self.flows.get(index).is_some_and(UdpFlow::has_ended)
    }

    /// Whether there are as many flows as may be alive.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Whether there is a slot for one more, alive or not.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.flows.len() < slots_for(self.capacity)
    }

    /// The slot that the next flow gets.
    pub(crate) const fn next_slot(&self) -> usize {
        self.flows.next()
    }

    /// What names a question, here and to nobody else.
    #[inline]
    pub(crate) fn name_question(&self, id: TransactionId) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(!self.hash_keys.0, self.hash_keys.1);
        id.as_words().into_iter().for_each(|word| hasher.write_u32(word));
        hasher.finish()
    }

    /// The flow that a client's next datagram belongs to. Retired flows are not found by key.
    #[inline]
    pub(crate) fn find(&mut self, key: &FlowKey) -> Option<FlowId> {
        let expected = self.expected.take() as usize;
        if let Some(flow) = self.flows.get(expected)
            && flow.has_key(key)
            && flow.is_findable()
        {
            return Some(FlowId::new(expected as u32, flow.generation()));
        }
        self.look_up(key)
    }

    pub(crate) fn look_up(&self, key: &FlowKey) -> Option<FlowId> {
        let is_key = |&index: &u32| self.flows[index as usize].has_key(key);
        let index = *self.index.find(key.hash(self.hash_keys), is_key)?;
        Some(self.id_at(index as usize))
    }

    /// Fetches the flows of the keys that will be looked for next from memory, all at once, and
    /// remembers where they are.
    ///
    /// Each step is done for all keys before the next: the loads of one step do not wait for each
    /// other, so that a batch of flows that are not in the cache costs little more than one.
    pub(crate) fn prefetch(&mut self, keys: impl Iterator<Item = FlowKey>) {
        let mut hashes = [0; PREFETCH_BATCH];
        let mut count = 0;
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = key.hash(self.hash_keys);
            count += 1;
        }
        self.expected = Expected { slots: [NOWHERE; PREFETCH_BATCH], next: 0 };
        for (slot, &hash) in self.expected.slots.iter_mut().zip(&hashes[..count]) {
            *slot = self.index.iter_hash(hash).next().copied().unwrap_or(NOWHERE);
        }
        for &slot in &self.expected.slots[..count] {
            if let Some(flow) = self.flows.get(slot as usize) {
                black_box(flow.generation());
            }
        }
    }

    /// The slots of the flows that were fetched last.
    pub(crate) fn expected(&self) -> impl Iterator<Item = usize> {
        self.expected.slots.iter().map(|&slot| slot as usize)
    }

    /// Fetches the flows in some slots from memory, as far as replies need them, all at once.
    #[inline]
    pub(crate) fn prefetch_slots(&self, slots: impl Iterator<Item = usize>) {
        for flow in slots.filter_map(|slot| self.flows.get(slot)) {
            // A flow fills two lines of the cache; a reply needs the second too.
            black_box((flow.generation(), flow.to_client()));
        }
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&UdpFlow> {
        self.flows.get(id.index()).filter(|flow| flow.is_alive_as(id.generation()))
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut UdpFlow> {
        self.flows.get_mut(id.index()).filter(|flow| flow.is_alive_as(id.generation()))
    }

    /// The flow in a slot that is known to hold one, alive or in quarantine.
    pub(crate) fn at(&self, index: usize) -> (FlowId, &UdpFlow) {
        (self.id_at(index), &self.flows[index])
    }

    /// All flows alive.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &UdpFlow)> {
        let alive = self.flows.iter().filter(|(_, flow)| !flow.has_ended());
        alive.map(|(index, flow)| (FlowId::new(index as u32, flow.generation()), flow))
    }

    /// Adds the flow that `build` makes for the id it is given, in the [next](Self::next_slot) slot.
    /// The caller has looked that there is room, and no flow of this key, unless it makes the new
    /// one unfindable at once.
    pub(crate) fn insert(
        &mut self,
        key: &FlowKey,
        is_branch: bool,
        build: impl FnOnce(FlowId) -> UdpFlow,
    ) -> FlowId {
        let id = self.next_id(is_branch);
        let index = self.flows.insert(build(id)) as u32;
        let Self { flows, index: by_key, hash_keys, .. } = self;
        let rehash = |&index: &u32| flows[index as usize].key().hash(*hash_keys);
        by_key.insert_unique(key.hash(*hash_keys), index, rehash);
        id
    }

    const fn next_id(&mut self, is_branch: bool) -> FlowId {
        let generation = self.next_generation | if is_branch { BRANCH } else { 0 };
        self.next_generation = self.next_generation.wrapping_add(2 * BRANCH);
        FlowId::new(self.flows.next() as u32, generation)
    }

    /// Adds what a flow leaves behind in quarantine where it was, before it goes on elsewhere. The
    /// caller has looked that there is room.
    pub(crate) fn leave_behind(&mut self, id: FlowId, until: Instant) -> FlowId {
        let left = self.next_id(id.is_branch());
        self.flows.insert(self.flows[id.index()].left_behind(left, until));
        self.quarantined += 1;
        left
    }

    /// Ends a flow and leaves it in its slot, in quarantine until `until`.
    pub(crate) fn quarantine(&mut self, id: FlowId, until: Instant) {
        self.unindex(id);
        self.flows[id.index()].quarantine(until);
        self.quarantined += 1;
    }

    /// Makes the quarantine in a slot longer, if there is one.
    pub(crate) fn prolong_quarantine(&mut self, slot: usize, until: Instant) {
        if let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.has_ended()) {
            flow.quarantine(until.max(flow.deadline()));
        }
    }

    /// Gives up the slot of a flow that has ended and been in quarantine.
    pub(crate) fn remove_ended(&mut self, index: usize) -> UdpFlow {
        self.quarantined -= 1;
        self.flows.remove(index)
    }

    /// Those that have ended and are in quarantine.
    pub(crate) fn in_quarantine(&self) -> impl Iterator<Item = (usize, &UdpFlow)> {
        self.flows.iter().filter(|(_, flow)| flow.has_ended())
    }

    /// The slot of the flow, alive or in quarantine, whose answers come by a shared upstream from a
    /// backend.
    #[inline]
    pub(crate) fn find_route(
        &self,
        upstream: UpstreamId,
        backend: BackendId,
        transaction: u64,
    ) -> Option<usize> {
        let is_it = |&at: &u32| self.flows[at as usize].is_on(upstream, backend, transaction);
        let found = self.routes.find(route_hash(upstream, backend, transaction), is_it);
        found.map(|&slot| slot as usize)
    }

    /// Has the answers found that come for the flow in a slot by its shared upstream.
    pub(crate) fn add_route(&mut self, slot: usize) {
        let Self { flows, routes, .. } = self;
        let rehash = |&at: &u32| flows[at as usize].route_hash();
        routes.insert_unique(flows[slot].route_hash(), slot as u32, rehash);
    }

    /// Puts the flow in a slot, alive or in quarantine, where its answers come from now on. It has no
    /// route.
    pub(crate) fn put(&mut self, slot: usize, backend: BackendId, upstream: UpstreamId) {
        self.flows[slot].move_to(backend, upstream);
    }

    /// Has them found no more, if they were.
    pub(crate) fn remove_route(&mut self, slot: usize) {
        let Some(flow) = self.flows.get(slot) else { return };
        let hash = flow.route_hash();
        if let Ok(entry) = self.routes.find_entry(hash, |&at| at as usize == slot) {
            entry.remove();
        }
    }

    /// Makes room for the routes of as many flows as may be.
    pub(crate) fn reserve_routes(&mut self) {
        let Self { flows, routes, capacity, .. } = self;
        let rehash = |&at: &u32| flows[at as usize].route_hash();
        routes.reserve((slots_for(*capacity)).saturating_sub(routes.len()), rehash);
    }

    /// Makes a flow unfindable by key, so that another may take the key.
    pub(crate) fn unindex(&mut self, id: FlowId) {
        let hash = self.flows[id.index()].key().hash(self.hash_keys);
        if let Ok(entry) = self.index.find_entry(hash, |&index| index as usize == id.index()) {
            entry.remove();
        }
    }

    /// Makes a branch the head of its ring.
    pub(crate) fn lead(&mut self, id: FlowId) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.follow(false);
        let hash = flow.key().hash(self.hash_keys);
        let Self { flows, index, hash_keys, .. } = self;
        let rehash = |&at: &u32| flows[at as usize].key().hash(*hash_keys);
        index.insert_unique(hash, id.index() as u32, rehash);
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
        let mut findable = 0;
        for (id, flow) in self.iter().filter(|(_, flow)| flow.is_findable()) {
            findable += 1;
            assert_eq!(self.look_up(&flow.key()), Some(id), "a live flow is not found by its key");
        }
        assert_eq!(self.index.len(), findable, "the index names flows that cannot be found");
        let quarantined = self.in_quarantine().count();
        assert_eq!(self.quarantined, quarantined, "flows in quarantine were lost count of");
        for &slot in &self.routes {
            let flow = &self.flows[slot as usize];
            let found = self.find_route(flow.upstream(), flow.backend(), flow.transaction());
            assert_eq!(found, Some(slot as usize), "two flows get the same answers");
        }
    }

    /// All flows, alive or in quarantine.
    pub(crate) fn iter_all(&self) -> impl Iterator<Item = (usize, &UdpFlow)> {
        self.flows.iter()
    }
}

/// Nobody outside chooses any of this: names of questions are hashed under a secret already.
#[inline]
pub(crate) const fn route_hash(upstream: UpstreamId, backend: BackendId, transaction: u64) -> u64 {
    let mixed = ((upstream.index() as u64) << 32 | backend.index() as u64) ^ transaction;
    let mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

#[cfg(test)]
mod tests;
