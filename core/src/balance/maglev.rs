//! Maglev hashing (Eisenbud et al., NSDI 2016): a client keeps its backend, found in constant time.
//!
//! A table of entries is shared out among the members beforehand. Each member prefers the entries
//! in an order of its own, grown from its hash. Members take turns by weight, and each takes the
//! free entry that it likes best. A client is hashed to an entry.
//!
//! # The size of the table
//!
//! When a member leaves, the others share its entries, and some other entries change hands
//! besides: fewer, the more entries each member has. The paper's small size, 65,537, lets 0.9 % of
//! all clients move needlessly where 500 equal backends share it, and 2.8 % where the one that
//! leaves has half of all weight among 1,000. With 1,048,573 entries it is below 0.4 % for weights
//! within a factor of ten, measured from 2 to 10,000 backends. Where one backend has half of all
//! weight it is 0.6 % among 1,000 and 1.9 % among 10,000.
//!
//! The size must also be the same before and after, or nearly every client moves. So there is one
//! size for all from 2 to 10,000 backends, of 2 MiB. That is 100 entries for each of 10,000, which
//! makes their shares right to 1 %. Beyond that a size of 32 MiB takes over, which takes seconds to
//! build.
//!
//! A share that is less than one entry may get none. Such a backend is picked only while next to
//! no other can take a flow.
//!
//! # Backends that can take no flow
//!
//! The table does not depend on it. A client whose entry is of no use is hashed to another, and
//! another: always the same sequence for one client, a different one for each. So nobody moves
//! whose own backend can serve, the displaced spread over all members by weight, and they come
//! back. Rendezvous decides after a few attempts in vain, which keeps all that true.

use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::Member;
use super::rendezvous::Rendezvous;
use super::turn::Turn;
use crate::backend::Backends;
use crate::hash::{BackendHash, ClientHash};
use crate::id::BackendId;
use crate::random::Random;

/// How many entries a client tries before rendezvous decides.
const ATTEMPTS: usize = 16;

/// Where a client lands is frozen, as [`hash`](crate::hash) is.
#[derive(Clone, Debug)]
pub(super) struct Maglev {
    /// Ordered by hash, so that the order of the configuration does not count.
    ids: Vec<BackendId>,
    /// Shared by all clones: it is large, and never changes.
    table: Arc<Table>,
    last_resort: Rendezvous,
}

impl Maglev {
    pub(super) fn new(members: &[Member]) -> Self {
        let mut members = members.to_vec();
        members.sort_by_key(|member| member.hash);
        Self {
            ids: members.iter().map(|member| member.id).collect(),
            table: Arc::new(build_table(&members)),
            last_resort: Rendezvous::new(&members),
        }
    }

    pub(super) fn pick(&self, backends: &Backends, client: ClientHash) -> Option<BackendId> {
        let mut sequence = Random::new(client.as_u64());
        for _ in 0..ATTEMPTS {
            let entry = sequence.below(self.table.len() as u64) as usize;
            let id = *self.ids.get(self.table.get(entry)?)?;
            if backends.can_take_a_flow(id) {
                return Some(id);
            }
        }
        self.last_resort.pick(backends, client)
    }
}

/// The number of entries for a number of members: always a prime, so that any step visits all.
const fn table_size(members: usize) -> usize {
    match members {
        0 => 0,
        1 => 1,
        2..=10_000 => 1_048_573,
        _ => 16_777_213,
    }
}

fn build_table(members: &[Member]) -> Table {
    let size = table_size(members.len());
    let mut table = Table::new(size, members.len());
    let mut entries = Entries::new(size);
    let mut preferences: Vec<Preference> =
        members.iter().map(|member| Preference::new(member.hash, size)).collect();
    let mut rounds = Rounds::new(members);
    while entries.free > 0 {
        let round = rounds.next();
        for &member in &round[..round.len().min(entries.free)] {
            let member = member as usize;
            let entry = entries.take_best_liked(&mut preferences[member]);
            table.set(entry, member);
        }
    }
    table
}

/// The turns of all members in the order of time. They are not staggered: the turns of a member do
/// not depend on who the others are, so those of the others stay as they are when it leaves.
///
/// Members of one weight have all their turns together, so it is the weights that queue, of which
/// there are few as a rule, and not the members.
struct Rounds {
    queue: BinaryHeap<Reverse<Turn>>,
    /// The members of each weight, in their order.
    of_weight: Vec<Vec<u32>>,
    /// Those of several weights whose turns fall on one time.
    together: Vec<u32>,
}

impl Rounds {
    fn new(members: &[Member]) -> Self {
        let mut by_weight = BTreeMap::<u32, Vec<u32>>::new();
        for (index, member) in members.iter().enumerate() {
            by_weight.entry(member.weight).or_default().push(index as u32);
        }
        let first = |(index, &weight): (usize, &u32)| Reverse(Turn::first(index, weight));
        Self {
            queue: by_weight.keys().enumerate().map(first).collect(),
            of_weight: by_weight.into_values().collect(),
            together: Vec::new(),
        }
    }

    /// Those whose turns are next, all at one time, in their order.
    fn next(&mut self) -> &[u32] {
        let Self { queue, of_weight, together } = self;
        let Some(mut soonest) = queue.peek_mut() else { return &[] };
        let turn = soonest.0;
        soonest.0 = turn.next();
        drop(soonest);
        let its = &of_weight[turn.member()];
        let is_now = |other: &Reverse<Turn>| other.0.time() == turn.time();
        if !queue.peek().is_some_and(is_now) {
            return its;
        }
        together.clone_from(its);
        while let Some(mut other) = queue.peek_mut().filter(|other| is_now(other)) {
            together.extend(&of_weight[other.0.member()]);
            other.0 = other.0.next();
        }
        together.sort_unstable();
        together
    }
}

/// The entries, and which of them have been taken.
struct Entries {
    size: u32,
    /// A bit for each. They are looked at some ten times as often as there are entries, and fit into a
    /// core's own cache.
    taken: Vec<u64>,
    free: usize,
    /// Those that are free, once they are few.
    last: Vec<u32>,
}

/// How many free entries are few: it takes half of all looks to find the last thousands among a million
/// by trying one after the other, and hardly any time to compute which of a few thousand comes first.
const FEW: usize = 2_000;

impl Entries {
    fn new(size: usize) -> Self {
        let taken = vec![0; size.div_ceil(64)];
        Self { size: size as u32, taken, free: size, last: Vec::new() }
    }

    /// Takes the free entry that a member likes best. There must be one.
    fn take_best_liked(&mut self, preference: &mut Preference) -> usize {
        if self.free <= FEW && self.last.is_empty() {
            self.last = (0..self.size).filter(|&entry| !self.is_taken(entry)).collect();
        }
        let entry = if self.last.is_empty() {
            self.next_free(preference)
        } else {
            let coming = Coming::new(preference, self.size);
            let all = self.last.iter().map(|&entry| coming.at(entry)).enumerate();
            let best = all.min_by_key(|&(_, at)| at).map_or(0, |(index, _)| index);
            self.last.swap_remove(best)
        };
        preference.next = self.wrapped(entry + preference.step);
        self.taken[entry as usize / 64] |= 1 << (entry % 64);
        self.free -= 1;
        entry as usize
    }

    fn next_free(&self, preference: &Preference) -> u32 {
        let mut entry = preference.next;
        while self.is_taken(entry) {
            entry = self.wrapped(entry + preference.step);
        }
        entry
    }

    const fn wrapped(&self, entry: u32) -> u32 {
        if entry >= self.size { entry - self.size } else { entry }
    }

    fn is_taken(&self, entry: u32) -> bool {
        self.taken[entry as usize / 64] & 1 << (entry % 64) != 0
    }
}

/// The order in which a member likes the entries of a table: from one on, by steps of one length.
#[derive(Clone, Copy, Debug)]
struct Preference {
    /// All before it are taken.
    next: u32,
    step: u32,
}

impl Preference {
    fn new(member: BackendHash, size: usize) -> Self {
        let mut sequence = Random::new(member.as_u64());
        Self {
            next: sequence.below(size as u64) as u32,
            step: 1 + sequence.below(size as u64 - 1) as u32,
        }
    }
}

/// When a member comes to which entry, if it goes on by its steps: as a part of its way through all
/// entries, in units of 2^-64. That takes one multiplication, which wraps round as the way does, and no
/// division. Two times that differ do so by 2^40 at least, and the error is less than 2^26.
struct Coming {
    next: u64,
    /// How much later it comes to the entry behind another.
    each: u64,
}

impl Coming {
    fn new(preference: &Preference, size: u32) -> Self {
        let inverse = u128::from(inverse(preference.step, size));
        let each = (inverse << 64) / u128::from(size);
        Self { next: preference.next.into(), each: each as u64 }
    }

    const fn at(&self, entry: u32) -> u64 {
        (entry as u64).wrapping_sub(self.next).wrapping_mul(self.each)
    }
}

/// What undoes a multiplication by `step`, modulo a prime (the extended Euclidean algorithm).
const fn inverse(step: u32, prime: u32) -> u64 {
    let (mut former, mut rest) = (prime as i64, step as i64);
    let (mut last, mut found) = (0, 1);
    while rest != 0 {
        let times = former / rest;
        (former, rest) = (rest, former - times * rest);
        (last, found) = (found, last - times * found);
    }
    last.rem_euclid(prime as i64) as u64
}

/// Which member has which entry, in the narrower of two types that holds them all.
#[derive(Clone, Debug)]
enum Table {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Table {
    fn new(size: usize, members: usize) -> Self {
        if members <= 1 << 16 { Self::Narrow(vec![0; size]) } else { Self::Wide(vec![0; size]) }
    }

    fn len(&self) -> usize {
        match self {
            Self::Narrow(entries) => entries.len(),
            Self::Wide(entries) => entries.len(),
        }
    }

    fn get(&self, entry: usize) -> Option<usize> {
        match self {
            Self::Narrow(entries) => entries.get(entry).map(|&member| member.into()),
            Self::Wide(entries) => entries.get(entry).map(|&member| member as usize),
        }
    }

    fn set(&mut self, entry: usize, member: usize) {
        match self {
            Self::Narrow(entries) => entries[entry] = member as u16,
            Self::Wide(entries) => entries[entry] = member as u32,
        }
    }
}

#[cfg(test)]
mod tests;
