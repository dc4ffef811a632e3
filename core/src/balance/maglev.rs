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

use alloc::collections::BinaryHeap;
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
    let mut taken = vec![false; size];
    let mut preferences: Vec<Preference> =
        members.iter().map(|member| Preference::new(member.hash, size)).collect();
    // Not staggered: the turns of a member do not depend on who the others are, so those of the
    // others stay as they are when it leaves.
    let mut queue: BinaryHeap<Reverse<Turn>> = members
        .iter()
        .enumerate()
        .map(|(place, member)| Reverse(Turn::first(place, member.weight)))
        .collect();

    for _ in 0..size {
        let Some(mut soonest) = queue.peek_mut() else {
            break;
        };
        let member = soonest.0.member();
        let entry = preferences[member].next_free(&taken);
        taken[entry] = true;
        table.set(entry, member);
        soonest.0 = soonest.0.next();
    }
    table
}

/// The order in which a member likes the entries of a table: from one on, by steps of one length.
#[derive(Clone, Copy, Debug)]
struct Preference {
    next: usize,
    step: usize,
    size: usize,
}

impl Preference {
    fn new(member: BackendHash, size: usize) -> Self {
        let mut sequence = Random::new(member.as_u64());
        Self {
            next: sequence.below(size as u64) as usize,
            step: 1 + sequence.below(size as u64 - 1) as usize,
            size,
        }
    }

    /// The best liked entry that is free. There must be one.
    fn next_free(&mut self, taken: &[bool]) -> usize {
        loop {
            let entry = self.next;
            self.next += self.step;
            if self.next >= self.size {
                self.next -= self.size;
            }
            if !taken[entry] {
                return entry;
            }
        }
    }
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
