//! Upstreams: sockets towards backends. Which of them carries which flow, when one opens and when
//! it closes.
//!
//! | kind | connected | carries | answers are told apart by |
//! |---|---|---|---|
//! | per flow | to one backend | one flow | the socket |
//! | shared | no | one flow for each backend | the sender |
//! | shared, with transactions | no | many flows for each backend | the sender and the identifier |
//!
//! A flow names its upstream and its backend. An upstream of one flow names that flow's slot; whose
//! an answer is that comes by a shared one, the flow table knows. Shared upstreams that may have
//! another flow lie in a [pool](pool::Pool) for each family.

pub(crate) mod pool;
#[cfg(feature = "snapshot")]
mod snapshot;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::collections::indexed_slab::{Entry, IndexedSlab};
use crate::collections::lists::Lists;
use crate::id::{BackendId, UpstreamId};
use crate::random::Random;
use crate::time::Instant;
use pool::Pool;

/// All upstreams of a manager, in slots that are their ids' indices.
#[derive(Clone, Debug)]
pub(crate) struct Upstreams {
    slots: IndexedSlab<Upstream, 0>,
    next_generation: u16,
    /// How many of them are shared.
    shared: usize,
    /// The shared ones of IPv4, and those of IPv6.
    pools: [Pool; 2],
    /// The shared ones without a flow, in the order in which they have lost their last.
    idle: Lists,
}

/// One socket towards backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Upstream {
    generation: u16,
    carries: Carries,
}

/// What an upstream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) enum Carries {
    /// The flow in a slot, or what is left of it. It is connected to that flow's backend.
    One(u32),
    /// Flows to any backends of a family.
    Many {
        /// Whether that is IPv6.
        v6: bool,
        /// How many there are, with those that are in quarantine: none in a snapshot, where they
        /// say so themselves.
        #[cfg_attr(feature = "serde", serde(skip))]
        flows: u32,
        /// When it had its last one, if it has none.
        idle_since: Instant,
        /// Whether it takes no more flows.
        is_retired: bool,
    },
}

impl Entry for Upstream {
    #[cfg(feature = "snapshot")]
    fn vacant() -> Self {
        Self { generation: 0, carries: Carries::One(0) }
    }

    fn hash(&self, _index: usize, _secret: (u64, u64)) -> u64 {
        unreachable!("upstreams are found by their slots alone")
    }
}

/// The list of the shared upstreams without flows.
const IDLE: usize = 0;

impl Upstreams {
    /// Room for this many without allocating later.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut upstreams = Self {
            slots: IndexedSlab::new((0, 0)),
            next_generation: 0,
            shared: 0,
            pools: [Pool::default(), Pool::default()],
            idle: Lists::new(1, 0),
        };
        upstreams.slots.reserve(capacity);
        upstreams
    }

    /// Makes room for this many, if there is less.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        self.slots.reserve(capacity);
    }

    /// How many are open, and how many of those are shared.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.slots.len(), self.shared)
    }

    /// How many slots have ever been used.
    pub(crate) const fn slots(&self) -> usize {
        self.slots.used()
    }

    /// What an upstream carries, if it is open.
    #[inline]
    pub(crate) fn get(&self, id: UpstreamId) -> Option<Carries> {
        let upstream = self.slots.get(id.index())?;
        (upstream.generation == id.generation()).then_some(upstream.carries)
    }

    /// The slot of the flow whose upstream is in a slot, if it carries one.
    #[inline]
    pub(crate) fn flow_at(&self, index: usize) -> Option<usize> {
        match self.slots.get(index)?.carries {
            Carries::One(flow) => Some(flow as usize),
            Carries::Many { .. } => None,
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (UpstreamId, Carries)> {
        let id = |index, generation| UpstreamId::new(index as u32, generation);
        self.slots.iter().map(move |(index, it)| (id(index, it.generation), it.carries))
    }

    /// One more for the flow in a slot.
    pub(crate) fn open_for(&mut self, flow: usize) -> UpstreamId {
        self.insert(Carries::One(flow as u32))
    }

    /// Has another slot stand for the flow that an upstream carries.
    pub(crate) fn hand_to(&mut self, id: UpstreamId, flow: usize) {
        if let Some(upstream) = self.slots.get_mut(id.index()) {
            upstream.carries = Carries::One(flow as u32);
        }
    }

    /// One more that any flow may take, to one of this many backends.
    pub(crate) fn open_shared(&mut self, v6: bool, backends: usize, now: Instant) -> UpstreamId {
        let (flows, idle_since, is_retired) = (0, now, false);
        let id = self.insert(Carries::Many { v6, flows, idle_since, is_retired });
        self.shared += 1;
        self.idle.push_back(IDLE, id.index());
        let Self { pools, slots, .. } = self;
        pools[usize::from(v6)].add(id, backends, |id| takes_flows(slots, id));
        id
    }

    fn insert(&mut self, carries: Carries) -> UpstreamId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let index = self.slots.insert(Upstream { generation, carries });
        UpstreamId::new(index as u32, generation)
    }

    /// Makes places for flows to this many backends on the shared upstreams that there are.
    pub(crate) fn know_backends(&mut self, backends: usize) {
        self.pools.iter_mut().for_each(|pool| pool.know_backends(backends));
    }

    /// A shared upstream on which a backend has no flow and none in quarantine, at random. `None`:
    /// another has to be opened. `is_taken` says which are known to have one all the same.
    pub(crate) fn draw(
        &mut self,
        v6: bool,
        backend: BackendId,
        now: Instant,
        random: &mut Random,
        is_taken: impl Fn(UpstreamId) -> bool,
    ) -> Option<UpstreamId> {
        let Self { pools, slots, .. } = self;
        let is_usable = |id| takes_flows(slots, id) && !is_taken(id);
        pools[usize::from(v6)].draw(backend, now, random, is_usable)
    }

    /// A shared upstream at random, of a family. `None`: another has to be opened.
    pub(crate) fn draw_any(
        &self,
        v6: bool,
        random: &mut Random,
        is_taken: impl Fn(UpstreamId) -> bool,
    ) -> Option<UpstreamId> {
        self.pools[usize::from(v6)].draw_any(random, is_taken)
    }

    /// How many shared ones of a family may have another flow.
    pub(crate) const fn in_pool(&self, v6: bool) -> usize {
        self.pools[v6 as usize].len()
    }

    /// Notes another flow on a shared upstream.
    pub(crate) fn take(&mut self, id: UpstreamId) {
        if let Some(Upstream { carries: Carries::Many { flows, .. }, .. }) =
            self.slots.get_mut(id.index())
        {
            *flows += 1;
            self.idle.remove(id.index());
        }
    }

    /// Notes that an upstream carries a flow to a backend no longer, and says whether it is to be
    /// closed. Until `quarantined_until` no other flow to that backend is to have its place.
    pub(crate) fn release(
        &mut self,
        id: UpstreamId,
        backend: BackendId,
        quarantined_until: Option<Instant>,
        now: Instant,
    ) -> bool {
        let Some(upstream) = self.slots.get_mut(id.index()) else { return false };
        let Carries::Many { v6, flows, idle_since, is_retired } = &mut upstream.carries else {
            return true;
        };
        *flows -= 1;
        if *flows == 0 {
            *idle_since = now;
        }
        let (v6, is_idle, is_retired) = (*v6, *flows == 0, *is_retired);
        if is_retired {
            return is_idle;
        }
        self.pools[usize::from(v6)].give_back(id, backend, quarantined_until);
        if is_idle {
            self.idle.push_back(IDLE, id.index());
        }
        false
    }

    /// Forgets an upstream, which closes.
    pub(crate) fn remove(&mut self, id: UpstreamId) {
        self.idle.remove(id.index());
        if let Carries::Many { v6, .. } = self.slots.remove(id.index()).carries {
            self.shared -= 1;
            self.pools[usize::from(v6)].forget(id);
        }
    }

    /// A shared upstream could not be opened, and takes no other flow.
    pub(crate) fn retire(&mut self, id: UpstreamId) {
        if let Some(Upstream { carries: Carries::Many { is_retired, v6, .. }, .. }) =
            self.slots.get_mut(id.index())
        {
            *is_retired = true;
            self.pools[usize::from(*v6)].forget(id);
            self.idle.remove(id.index());
        }
    }

    /// No shared upstream takes another flow from now on. Those without one are to be closed.
    pub(crate) fn retire_shared(&mut self) {
        for pool in &mut self.pools {
            for id in pool.take_all() {
                if let Some(Upstream { carries: Carries::Many { is_retired, .. }, .. }) =
                    self.slots.get_mut(id.index())
                {
                    *is_retired = true;
                }
            }
        }
    }

    /// The shared upstream that has been without a flow for longest, and since when.
    pub(crate) fn longest_idle(&self) -> Option<(UpstreamId, Instant)> {
        let index = self.idle.first(IDLE)?;
        let upstream = self.slots[index];
        let Carries::Many { idle_since, .. } = upstream.carries else { return None };
        Some((UpstreamId::new(index as u32, upstream.generation), idle_since))
    }

    /// Panics unless all that is said of upstreams fits together. `flows` says how many flows name
    /// an upstream.
    pub(crate) fn assert_invariants(&self, flows_on: impl Fn(UpstreamId) -> usize) {
        let mut shared = 0;
        for (id, carries) in self.iter() {
            match carries {
                Carries::One(_) => assert_eq!(flows_on(id), 1, "a socket of no flow"),
                Carries::Many { v6, flows, is_retired, .. } => {
                    shared += 1;
                    assert_eq!(
                        flows as usize,
                        flows_on(id),
                        "flows on a socket were lost count of"
                    );
                    let is_idle = self.idle.list_of(id.index()).is_some();
                    assert_eq!(is_idle, flows == 0 && !is_retired, "a socket that never closes");
                    let has_place = self.pools[usize::from(v6)].contains(id);
                    assert_eq!(has_place, !is_retired, "a socket in no pool");
                }
            }
        }
        assert_eq!(self.shared, shared, "shared sockets were lost count of");
        let pooled: usize = self.pools.iter().map(Pool::len).sum();
        let retired = |(_, carries)| matches!(carries, Carries::Many { is_retired: true, .. });
        assert_eq!(pooled + self.iter().filter(|&it| retired(it)).count(), shared, "pools");
    }
}

/// Whether a shared upstream is open, and may have another flow.
fn takes_flows(slots: &IndexedSlab<Upstream, 0>, id: UpstreamId) -> bool {
    slots.get(id.index()).is_some_and(|upstream| {
        let is_pooled = matches!(upstream.carries, Carries::Many { is_retired: false, .. });
        upstream.generation == id.generation() && is_pooled
    })
}
