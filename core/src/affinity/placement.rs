//! Where flows are placed, and why they were.

use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::net::SocketAddr;
use core::time::Duration;

use flowgate_quic_lb::ServerId;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use super::learned::LearnedIds;
use super::{Affinity, Found, QuicLb};
use crate::backend::Backends;
use crate::balance::Balancer;
use crate::config::{Balance, ClusterConfig};
use crate::hash::ClientHash;
use crate::id::BackendId;
use crate::random::Random;
use crate::time::Instant;

/// For how long after a backend was added what seems to be underway is placed as if it were not
/// there.
const ADDED_FOR: Duration = Duration::from_secs(120);

/// How many former sets of backends are remembered, all of the last [`ADDED_FOR`].
const MAX_FORMER: usize = 4;

/// How many bytes of an id or a key are kept to be shown.
const SHOWN: usize = 20;

/// What a flow was placed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum PlacedBy {
    /// Its client's address, or the turn of its backend.
    #[default]
    Source,
    /// The server that a QUIC-LB connection id names.
    ServerId,
    /// An id that a backend has announced.
    LearnedId,
    /// A key that was hashed.
    Key,
    /// Its client's address, as if backends that were added lately were not there.
    Orphan,
}

impl PlacedBy {
    /// The name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::ServerId => "server-id",
            Self::LearnedId => "learned-id",
            Self::Key => "key",
            Self::Orphan => "orphan",
        }
    }
}

/// What a flow was placed by, and the id or key, of which the first 20 bytes are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Placed {
    by: PlacedBy,
    length: u8,
    id: [u8; SHOWN],
}

impl Placed {
    fn new(place: &Place<'_>) -> Self {
        let length = place.id.len().min(SHOWN);
        let mut placed = Self { by: place.by, length: length as u8, id: [0; SHOWN] };
        placed.id[..length].copy_from_slice(&place.id[..length]);
        placed
    }

    pub(super) const fn is_possible(&self) -> bool {
        self.length as usize <= SHOWN
    }

    /// What it was placed by.
    pub const fn by(&self) -> PlacedBy {
        self.by
    }

    /// The id or key; empty where there was none.
    pub fn id(&self) -> &[u8] {
        &self.id[..usize::from(self.length)]
    }
}

/// What a datagram says of the backend it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'p> {
    pub(crate) by: PlacedBy,
    /// The backend that its id names.
    pub(crate) named: Option<BackendId>,
    /// Whether it asks for something new, which only a backend can take that takes new flows.
    pub(crate) is_opening: bool,
    /// The id or key.
    pub(crate) id: &'p [u8],
    /// The number of a learned id.
    learned: u64,
}

impl Place<'_> {
    pub(crate) const BY_SOURCE: Self =
        Self { by: PlacedBy::Source, named: None, is_opening: true, id: &[], learned: 0 };

    /// What decides among backends where none is named: the hash of the key, or of the client.
    pub(crate) fn hash(&self, client: SocketAddr, affinity: Affinity) -> ClientHash {
        match self.by {
            PlacedBy::Key => ClientHash::of_key(self.id),
            _ => ClientHash::new(client, affinity),
        }
    }
}

/// What a datagram of no known flow says of the backend it is for, as a manager that has just been
/// made would see it: which has learned no ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation<'p> {
    /// What its flow would be placed by.
    pub by: PlacedBy,
    /// The backend that its id names.
    pub named: Option<BackendId>,
    /// What is found in it.
    pub found: Found<'p>,
    /// The id or key that counts.
    pub id: &'p [u8],
}

/// Explains what a datagram says, to a cluster with these backends.
pub fn explain<'p>(cluster: &ClusterConfig, datagram: &'p [u8]) -> Explanation<'p> {
    let placement = Placement::new(cluster, (0, 0), &mut Random::new(0));
    let place = placement.find(datagram, Instant::ORIGIN);
    let (by, named, id) = (place.by, place.named, place.id);
    Explanation { by, named, found: cluster.affinity.read(datagram), id }
}

/// How a cluster's flows are placed, and what the live ones were placed by.
///
/// It allocates when it is made, when the configuration changes, and where more slots come to be used
/// than it has room for.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    affinity: Affinity,
    quic_lb: QuicLb,
    /// In the order of their ids.
    servers: Vec<(ServerId, BackendId)>,
    pub(super) learned: LearnedIds,
    /// One for each slot of the flow table where payloads are read, otherwise none: what the id in
    /// the flow's last datagram is compared by. By themselves, since each datagram of a known flow
    /// looks at them, and eight share a cache line.
    pub(super) fingerprints: Vec<u64>,
    /// As many.
    pub(super) flows: Vec<PlacedFlow>,
    /// Balancers for the backends as they were, with the time until which they count, oldest first.
    former: Vec<(Instant, Balancer)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PlacedFlow {
    /// The number of the learned id that the flow has; 0: none.
    pub(super) learned: u64,
    pub(super) placed: Placed,
}

impl Placement {
    /// One for a flow table of so many slots at most. It makes room for some of them.
    pub(crate) fn new(
        cluster: &ClusterConfig,
        (most, reserved): (usize, usize),
        random: &mut Random,
    ) -> Self {
        let (has_ids, reads_payload) =
            (cluster.affinity.has_ids(), cluster.affinity.reads_payload());
        let keys = if has_ids { (random.draw(), random.draw()) } else { (0, 0) };
        let slots = if reads_payload { reserved } else { 0 };
        let ids = if has_ids { (most, reserved) } else { (0, 0) };
        Self {
            affinity: cluster.affinity,
            quic_lb: cluster.quic_lb.clone(),
            servers: servers(cluster),
            learned: LearnedIds::new(ids, keys),
            fingerprints: vec![0; slots],
            flows: vec![PlacedFlow::default(); slots],
            former: Vec::with_capacity(MAX_FORMER),
        }
    }

    /// Takes over a new configuration. `was` is that of before, with its balancer.
    pub(crate) fn configure(
        &mut self,
        was: (&ClusterConfig, &Balancer),
        cluster: &ClusterConfig,
        (most, reserved): (usize, usize),
        now: Instant,
        random: &mut Random,
    ) {
        let (old, balancer) = was;
        if self.affinity != cluster.affinity {
            let former = core::mem::take(&mut self.former);
            *self = Self { former, ..Self::new(cluster, (most, reserved), random) };
        } else if self.reads_payload() {
            self.make_room(reserved);
            self.learned.reserve(if self.affinity.has_ids() { (most, reserved) } else { (0, 0) });
        }
        self.quic_lb = cluster.quic_lb.clone();
        self.servers = servers(cluster);
        self.former.retain(|&(until, _)| now < until);
        let is_replaced = |at: usize| match (old.backends.get(at), cluster.backends.get(at)) {
            (Some(old), Some(new)) => old.address != new.address,
            _ => false,
        };
        let has_replaced = (0..old.backends.len()).any(is_replaced);
        if has_replaced {
            self.forget_ids_of(|backend| is_replaced(backend.index()));
        }
        if has_replaced || old.balance != cluster.balance {
            self.former.clear();
        }
        let is_added = |at: usize| {
            let was_there = old.backends.get(at).is_some_and(|backend| !backend.removed);
            !was_there && !cluster.backends[at].removed
        };
        let has_more = (0..cluster.backends.len()).any(is_added);
        let is_hashed = matches!(cluster.balance, Balance::Rendezvous | Balance::Maglev);
        let had_any = old.backends.iter().any(|backend| !backend.removed);
        if has_more
            && had_any
            && is_hashed
            && self.affinity.has_ids()
            && self.former.len() < MAX_FORMER
        {
            self.former.push((now + ADDED_FOR, balancer.clone()));
        }
    }

    fn make_room(&mut self, slots: usize) {
        if self.flows.len() < slots {
            self.fingerprints.resize(slots, 0);
            self.flows.resize(slots, PlacedFlow::default());
        }
    }

    /// Forgets what some backends have announced, which are others now.
    fn forget_ids_of(&mut self, is_gone: impl Fn(BackendId) -> bool) {
        self.learned.forget_ids_of(is_gone);
        let Self { learned, flows, .. } = self;
        for flow in flows.iter_mut().filter(|flow| flow.learned != 0) {
            if !learned.is_known(flow.learned) {
                flow.learned = 0;
            }
        }
    }

    /// Whether a client's datagrams say where they belong.
    pub(crate) const fn reads_payload(&self) -> bool {
        self.affinity.reads_payload()
    }

    /// What a datagram says of the backend that it is for, if anything in it counts.
    pub(crate) fn place<'p>(&self, datagram: &'p [u8], now: Instant) -> Place<'p> {
        if self.reads_payload() { self.find(datagram, now) } else { Place::BY_SOURCE }
    }

    /// What a datagram of no known flow says of the backend that it is for.
    pub(crate) fn find<'p>(&self, datagram: &'p [u8], now: Instant) -> Place<'p> {
        let place = Place::BY_SOURCE;
        let (id, is_whole, is_opening) = match self.affinity.read(datagram) {
            Found::Nothing => return place,
            Found::Key(id) => return Place { by: PlacedBy::Key, id, ..place },
            Found::Opening { id } => (id, true, true),
            Found::Underway { id, is_whole } => (id, is_whole, false),
        };
        let place = Place { is_opening, ..place };
        if let Some((backend, length)) = self.server_of(id) {
            return Place {
                by: PlacedBy::ServerId,
                named: Some(backend),
                id: &id[..length],
                ..place
            };
        }
        if let Some((learned, backend, length)) = self.learned.find(id, is_whole, now) {
            let (by, id) = (PlacedBy::LearnedId, &id[..length]);
            // No client makes up an id that a server has announced.
            return Place { by, named: Some(backend), is_opening: false, id, learned };
        }
        let by = if is_opening { PlacedBy::Source } else { PlacedBy::Orphan };
        Place { by, ..place }
    }

    /// The backend that a QUIC-LB connection id names, and the id's length.
    fn server_of(&self, id: &[u8]) -> Option<(BackendId, usize)> {
        if self.servers.is_empty() {
            return None;
        }
        let config = self.quic_lb.0.config_for(id)?;
        let server = config.decode(id)?;
        let at = self.servers.binary_search_by_key(&server, |&(server, _)| server).ok()?;
        Some((self.servers[at].1, config.connection_id_length().min(id.len())))
    }

    /// The backend for something new of a client, which `place` tells of.
    pub(crate) fn pick(
        &self,
        place: &Place<'_>,
        client: SocketAddr,
        balancer: &mut Balancer,
        backends: &Backends,
        random: &mut Random,
        now: Instant,
    ) -> Option<BackendId> {
        if let Some(named) = place.named
            && backends.can_take(named, place.is_opening)
        {
            return Some(named);
        }
        let hash = || place.hash(client, self.affinity);
        if place.by == PlacedBy::Orphan {
            let before = self.former.iter().find(|&&(until, _)| now < until);
            let backend = before.and_then(|(_, former)| former.pick_hashed(backends, hash()));
            if backend.is_some() {
                return backend;
            }
        }
        balancer.pick_by(backends, &hash, random)
    }

    /// A flow was opened, in a slot, by a datagram.
    pub(crate) fn opened(&mut self, slot: usize, place: &Place<'_>, datagram: &[u8]) {
        if !self.reads_payload() {
            return;
        }
        self.make_room(slot + 1);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        *flow = PlacedFlow { learned: place.learned, placed: Placed::new(place) };
        self.fingerprints[slot] = self.affinity.fingerprint(datagram);
        if place.learned != 0 {
            self.learned.adopt(place.learned);
        }
    }

    /// A flow has ended.
    pub(crate) fn closed(&mut self, slot: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let learned = core::mem::take(flow).learned;
        self.fingerprints[slot] = 0;
        if learned != 0 {
            self.learned.release(learned, now);
        }
    }

    /// Fetches from memory what the ids of the flows in some slots are compared with, all at once.
    pub(crate) fn prefetch(&self, slots: impl Iterator<Item = usize>) {
        if self.fingerprints.is_empty() {
            return;
        }
        for fingerprint in slots.filter_map(|slot| self.fingerprints.get(slot)) {
            black_box(*fingerprint);
        }
    }

    /// Whether a known flow's datagram has another id than the last one had. The one comparison that
    /// known flows pay.
    #[inline]
    pub(crate) fn has_another_id(&mut self, slot: usize, datagram: &[u8]) -> bool {
        let Some(last) = self.fingerprints.get_mut(slot) else { return false };
        let fingerprint = self.affinity.fingerprint(datagram);
        core::mem::replace(last, fingerprint) != fingerprint
    }

    /// A backend's datagram to a flow's client, which may announce an id.
    #[inline]
    pub(crate) fn answered(
        &mut self,
        slot: usize,
        backend: BackendId,
        datagram: &[u8],
        now: Instant,
    ) {
        if !self.flows.is_empty() && self.affinity.has_ids() {
            self.learn(slot, backend, datagram, now);
        }
    }

    fn learn(&mut self, slot: usize, backend: BackendId, datagram: &[u8], now: Instant) {
        let Some(id) = self.affinity.announced(datagram) else { return };
        // What can be read need not be remembered.
        if self.server_of(id).is_some_and(|(named, _)| named == backend) {
            return;
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.learned = self.learned.learn(id, backend, flow.learned, now);
        }
    }

    /// What a flow was placed by.
    pub(crate) fn of(&self, slot: usize) -> Placed {
        self.flows.get(slot).map(|flow| flow.placed).unwrap_or_default()
    }
}

/// The backends that have server ids, in the order of those.
fn servers(cluster: &ClusterConfig) -> Vec<(ServerId, BackendId)> {
    let backends = cluster.backends.iter().enumerate().filter(|(_, backend)| !backend.removed);
    let mut servers: Vec<_> = backends
        .filter_map(|(at, backend)| Some((backend.server_id?, BackendId::new(at))))
        .collect();
    servers.sort_unstable();
    servers
}
