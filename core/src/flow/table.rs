//! All flows of a manager, found by id or by who sent to whom.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::hint::black_box;

use core::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::collections::indexed_slab::{Entry, IndexedSlab};
use crate::config::slots_for;
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BRANCH, BackendId, FlowId, UpstreamId};
use crate::random::Random;
use crate::time::Instant;
use crate::transaction::TransactionId;

/// The most flows that one prefetch fetches.
const PREFETCH_BATCH: usize = 64;

/// The index by keys, of flows that their clients' next datagrams belong to.
const BY_KEY: usize = 0;

/// The index by where answers come, of flows on shared upstreams, in quarantine or not.
const BY_ROUTE: usize = 1;

/// The flows, in slots that are their ids' indices.
///
/// Clients choose the keys, so they are hashed with SipHash under a secret: nobody who cannot see
/// the seed can make them collide. All is allocated for some flows at start, the index by keys for
/// twice as many, so that it never has to grow when no more than those come and go.
#[derive(Clone, Debug)]
pub(crate) struct FlowTable {
    flows: IndexedSlab<UdpFlow, 2>,
    /// How many of them have ended and are in quarantine.
    quarantined: usize,
    next_generation: u32,
    expected: Expected,
}

impl Entry for UdpFlow {
    #[cfg(feature = "snapshot")]
    fn vacant() -> Self {
        Self::nobody()
    }

    fn hash(&self, index: usize, secret: (u64, u64)) -> u64 {
        if index == BY_KEY { self.key().hash(secret) } else { self.route_hash() }
    }
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
    pub(crate) fn new(flows: usize, random: &mut Random) -> Self {
        Self::with_secret(flows, (random.draw(), random.draw()))
    }

    fn with_secret(reserved: usize, secret: (u64, u64)) -> Self {
        let (flows, expected) = (IndexedSlab::new(secret), Expected::NOTHING);
        let mut table = Self { flows, quarantined: 0, next_generation: 0, expected };
        table.reserve(reserved);
        table
    }

    /// How many flows are alive.
    pub(crate) fn len(&self) -> usize {
        self.flows.len() - self.quarantined
    }

    /// How many flows have ended and are in quarantine.
    pub(crate) const fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Makes room for this many flows, if there is less.
    pub(crate) fn reserve(&mut self, flows: usize) {
        self.flows.reserve(slots_for(flows));
        self.flows.reserve_index(BY_KEY, flows * 2);
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

    /// How many slots are taken, by flows alive and in quarantine.
    pub(crate) fn taken(&self) -> usize {
        self.flows.len()
    }

    /// The slot that the next flow gets.
    pub(crate) fn next_slot(&self) -> usize {
        self.flows.next()
    }

    /// What names a question, here and to nobody else.
    #[inline]
    pub(crate) fn name_question(&self, id: TransactionId) -> u64 {
        let secret = self.flows.secret();
        let mut hasher = SipHasher13::new_with_keys(!secret.0, secret.1);
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
        let hash = key.hash(self.flows.secret());
        Some(self.id_at(self.flows.find(BY_KEY, hash, |flow| flow.has_key(key))?))
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
            *hash = key.hash(self.flows.secret());
            count += 1;
        }
        self.expected = Expected { slots: [NOWHERE; PREFETCH_BATCH], next: 0 };
        for (slot, &hash) in self.expected.slots.iter_mut().zip(&hashes[..count]) {
            *slot = self.flows.guess(BY_KEY, hash).unwrap_or(NOWHERE);
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
        is_branch: bool,
        build: impl FnOnce(FlowId) -> UdpFlow,
    ) -> FlowId {
        let id = self.next_id(is_branch);
        self.flows.insert(build(id));
        self.flows.add_to(BY_KEY, id.index());
        id
    }

    fn next_id(&mut self, is_branch: bool) -> FlowId {
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
        let hash = route_hash(upstream, backend, transaction);
        self.flows.find(BY_ROUTE, hash, |flow| flow.is_on(upstream, backend, transaction))
    }

    /// Has the answers found that come for the flow in a slot by its shared upstream.
    pub(crate) fn add_route(&mut self, slot: usize) {
        self.flows.add_to(BY_ROUTE, slot);
    }

    /// Puts the flow in a slot, alive or in quarantine, where its answers come from now on. It has no
    /// route.
    pub(crate) fn put(&mut self, slot: usize, backend: BackendId, upstream: UpstreamId) {
        self.flows[slot].move_to(backend, upstream);
    }

    /// Has them found no more, if they were.
    pub(crate) fn remove_route(&mut self, slot: usize) {
        self.flows.remove_from(BY_ROUTE, slot);
    }

    /// Makes room for the routes of this many flows, if there is less.
    pub(crate) fn reserve_routes(&mut self, flows: usize) {
        self.flows.reserve_index(BY_ROUTE, slots_for(flows));
    }

    /// Makes a flow unfindable by key, so that another may take the key.
    pub(crate) fn unindex(&mut self, id: FlowId) {
        self.flows.remove_from(BY_KEY, id.index());
    }

    /// Makes a branch the head of its ring.
    pub(crate) fn lead(&mut self, id: FlowId) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.follow(false);
        self.flows.add_to(BY_KEY, id.index());
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
        assert_eq!(
            self.flows.indexed(BY_KEY).len(),
            findable,
            "the index names flows that cannot be found"
        );
        let quarantined = self.in_quarantine().count();
        assert_eq!(self.quarantined, quarantined, "flows in quarantine were lost count of");
        for slot in self.flows.indexed(BY_ROUTE) {
            let flow = &self.flows[slot];
            let found = self.find_route(flow.upstream(), flow.backend(), flow.transaction());
            assert_eq!(found, Some(slot), "two flows get the same answers");
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
