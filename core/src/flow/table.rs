//! All flows of a manager, found by id or by who sent to whom.

mod snapshot;

use core::hint::black_box;

use hashbrown::HashTable;

use crate::collections::slots::Slots;
use crate::config::slots_for;
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BRANCH, FlowId};
use crate::random::Random;
use crate::time::Instant;

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
    /// How many of them have ended and only keep their sockets.
    resting: usize,
    /// How many of them have ended and keep their sockets in quarantine.
    quarantined: usize,
    index: HashTable<u32>,
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
            resting: 0,
            quarantined: 0,
            index: HashTable::with_capacity(capacity * 2),
            hash_keys: (random.draw(), random.draw()),
            capacity,
            next_generation: 0,
            expected: Expected::NOTHING,
        }
    }

    /// How many flows are alive.
    pub(crate) fn len(&self) -> usize {
        self.flows.len() - self.resting - self.quarantined
    }

    /// How many flows have ended and keep their sockets.
    pub(crate) const fn resting(&self) -> usize {
        self.resting
    }

    /// How many flows have ended and keep their sockets in quarantine.
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

    /// How many slots there are to look at for whoever wants to see every flow.
    pub(crate) const fn slots(&self) -> usize {
        self.flows.used()
    }

    /// The flow in a slot, if there is one alive.
    pub(crate) fn alive_at(&self, index: usize) -> Option<(FlowId, &UdpFlow)> {
        let flow = self.flows.get(index).filter(|flow| !flow.has_ended())?;
        Some((FlowId::new(index as u32, flow.generation()), flow))
    }

    /// Whether there are as many flows as may be alive, with those that keep their sockets for others.
    pub(crate) fn is_full(&self) -> bool {
        self.len() + self.resting >= self.capacity
    }

    /// Whether there is a slot for one more, alive or not.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.flows.len() < slots_for(self.capacity)
    }

    /// Whether one more may be alive, as far as sockets that only rest do not count.
    pub(crate) fn has_fewer_than_allowed(&self) -> bool {
        self.len() < self.capacity
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

    /// The flow in a slot that is known to hold one, alive or resting.
    pub(crate) fn at(&self, index: usize) -> (FlowId, &UdpFlow) {
        (self.id_at(index), &self.flows[index])
    }

    /// All flows alive.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &UdpFlow)> {
        let alive = self.flows.iter().filter(|(_, flow)| !flow.has_ended());
        alive.map(|(index, flow)| (FlowId::new(index as u32, flow.generation()), flow))
    }

    /// Adds the flow that `build` makes for the id it is given, in the slot of a resting
    /// one if there is one to `reuse`. The caller has looked that there is room, and no flow of
    /// this key, unless it makes the new one unfindable at once.
    pub(crate) fn insert(
        &mut self,
        key: &FlowKey,
        is_branch: bool,
        reuse: Option<FlowId>,
        build: impl FnOnce(FlowId) -> UdpFlow,
    ) -> FlowId {
        let generation = self.next_generation | if is_branch { BRANCH } else { 0 };
        self.next_generation = self.next_generation.wrapping_add(2 * BRANCH);
        let index = reuse.map_or_else(|| self.flows.next(), FlowId::index) as u32;
        let flow = build(FlowId::new(index, generation));
        match reuse {
            Some(resting) => {
                self.resting -= 1;
                self.flows[resting.index()] = flow;
            }
            None => {
                self.flows.insert(flow);
            }
        }
        let Self { flows, index: by_key, hash_keys, .. } = self;
        let rehash = |&index: &u32| flows[index as usize].key().hash(*hash_keys);
        by_key.insert_unique(key.hash(*hash_keys), index, rehash);
        FlowId::new(index, generation)
    }

    /// Ends a flow and leaves its slot and its socket to rest until `until`.
    pub(crate) fn rest(&mut self, id: FlowId, until: Instant) {
        self.unindex(id);
        self.flows[id.index()].rest(until);
        self.resting += 1;
    }

    /// Ends a flow and leaves its slot and its socket in quarantine until `until`.
    pub(crate) fn quarantine(&mut self, id: FlowId, until: Instant) {
        self.unindex(id);
        self.flows[id.index()].quarantine(until);
        self.quarantined += 1;
    }

    /// Makes a quarantine longer. Nothing happens if there is none of this id.
    pub(crate) fn prolong_quarantine(&mut self, id: FlowId, until: Instant) {
        let flow = self.flows.get_mut(id.index());
        let is_it =
            |flow: &&mut UdpFlow| flow.is_quarantined() && flow.generation() == id.generation();
        if let Some(flow) = flow.filter(is_it) {
            flow.quarantine(until.max(flow.deadline()));
        }
    }

    /// Makes a resting flow rest longer. Nothing happens if there is none of this id.
    pub(crate) fn rest_longer(&mut self, id: FlowId, until: Instant) -> bool {
        let resting = self
            .flows
            .get_mut(id.index())
            .filter(|flow| flow.is_resting() && flow.generation() == id.generation());
        // Never shorter, though the configuration may say so now: its timer must not be late.
        resting.map(|flow| flow.rest(until.max(flow.deadline()))).is_some()
    }

    /// Gives up the slot of a flow that has ended and kept its socket.
    pub(crate) fn remove_ended(&mut self, index: usize) -> FlowId {
        let id = self.id_at(index);
        if self.flows.remove(index).is_quarantined() {
            self.quarantined -= 1;
        } else {
            self.resting -= 1;
        }
        id
    }

    /// Those that have ended and keep their sockets in quarantine.
    pub(crate) fn in_quarantine(&self) -> impl Iterator<Item = (usize, &UdpFlow)> {
        self.flows.iter().filter(|(_, flow)| flow.is_quarantined())
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
        assert_eq!(self.quarantined, quarantined, "sockets in quarantine were lost count of");
    }
}

#[cfg(test)]
mod tests;
