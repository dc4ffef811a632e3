//! Ids that servers have announced, and the backends that they name.
//!
//! A server that knows nothing of its balancer chooses ids as it likes. It announces them to its
//! clients in datagrams that pass here, and the client repeats them from whatever address it goes on.
//! An id is known for as long as a flow has it, and a while longer.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::hash::Hasher;
use core::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::id::BackendId;
#[cfg(feature = "snapshot")]
use crate::snapshot::RestoreError;
#[cfg(feature = "snapshot")]
use crate::snapshot::error::require;
#[cfg(feature = "snapshot")]
use crate::snapshot::parts::LearnedIdsSnapshot;
use crate::time::Instant;

/// How long an id is known after the end of the last flow that had it.
const GRACE: Duration = Duration::from_secs(120);

/// The longest id. Of a longer one the first bytes count.
pub(super) const MAX_ID: usize = 20;

/// The ids, at most two for each flow that there can be: one that it has, one that another had.
///
/// They are known by a keyed hash of 64 bits, so that nobody can make up two that are the same.
#[derive(Clone, Debug)]
pub(crate) struct LearnedIds {
    ids: HashTable<LearnedId>,
    /// Those without a flow, in the order in which they are forgotten. One that has got a flow again
    /// is left standing here, and passed over.
    without_flow: VecDeque<(u64, Instant)>,
    /// Which lengths have been announced, one bit for each.
    lengths: u32,
    max_flows: usize,
    keys: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct LearnedId {
    pub(super) hash: u64,
    pub(crate) backend: BackendId,
    /// How many flows have it: none in a snapshot, where they say so themselves.
    #[cfg_attr(feature = "serde", serde(skip))]
    flows: u32,
    /// When it is forgotten, if it has none.
    until: Instant,
}

impl LearnedIds {
    pub(crate) fn new((max_flows, reserved): (usize, usize), keys: (u64, u64)) -> Self {
        Self {
            ids: HashTable::with_capacity(2 * reserved + 1),
            without_flow: VecDeque::with_capacity(reserved + 1),
            lengths: 0,
            max_flows,
            keys,
        }
    }

    /// Allows for the ids of more flows, and makes room for those of some.
    pub(crate) fn reserve(&mut self, (max_flows, reserved): (usize, usize)) {
        let Self { ids, without_flow, .. } = self;
        ids.reserve((2 * reserved + 1).saturating_sub(ids.len()), |known| known.hash);
        without_flow.reserve((reserved + 1).saturating_sub(without_flow.len()));
        self.max_flows = self.max_flows.max(max_flows);
    }

    /// The number by which an id is known.
    pub(crate) fn hash(&self, id: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write(&id[..id.len().min(MAX_ID)]);
        // Zero stands for none.
        hasher.finish().max(1)
    }

    /// The backend that an id names, and how many bytes the id has.
    pub(crate) fn find(
        &self,
        id: &[u8],
        is_whole: bool,
        now: Instant,
    ) -> Option<(u64, BackendId, usize)> {
        let mut lengths = self.lengths & !(u32::MAX << (id.len().min(MAX_ID) + 1));
        if is_whole {
            lengths &= 1 << id.len().min(MAX_ID);
        }
        while lengths != 0 {
            let length = lengths.ilog2() as usize;
            lengths ^= 1 << length;
            let hash = self.hash(&id[..length]);
            let known = self.ids.find(hash, |known| known.hash == hash);
            if let Some(known) = known.filter(|known| known.flows > 0 || now < known.until) {
                return Some((hash, known.backend, length));
            }
        }
        None
    }

    /// Gives a flow an id that its backend has announced, in place of the one it had, if any.
    pub(crate) fn learn(&mut self, id: &[u8], backend: BackendId, had: u64, now: Instant) -> u64 {
        let hash = self.hash(id);
        if hash == had {
            return hash;
        }
        self.lengths |= 1 << id.len().min(MAX_ID);
        self.forget_some(now);
        let entry = self.ids.entry(hash, |known| known.hash == hash, |known| known.hash);
        match entry {
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                (known.backend, known.flows) = (backend, known.flows + 1);
            }
            Entry::Vacant(entry) => {
                entry.insert(LearnedId { hash, backend, flows: 1, until: now });
            }
        }
        self.release(had, now);
        hash
    }

    /// Gives a new flow an id, and says whether it is known.
    pub(crate) fn adopt(&mut self, hash: u64) -> bool {
        let known = self.ids.find_mut(hash, |known| known.hash == hash);
        known.map(|known| known.flows += 1).is_some()
    }

    /// A flow that had an id has it no longer.
    pub(crate) fn release(&mut self, hash: u64, now: Instant) {
        let Some(known) = self.ids.find_mut(hash, |known| known.hash == hash) else { return };
        known.flows = known.flows.saturating_sub(1);
        if known.flows == 0 {
            known.until = now + GRACE;
            self.without_flow.push_back((hash, known.until));
        }
        while self.without_flow.len() > self.max_flows {
            self.forget_first();
        }
    }

    /// Forgets what some backends have announced.
    pub(super) fn forget_ids_of(&mut self, is_gone: impl Fn(BackendId) -> bool) {
        self.ids.retain(|known| !is_gone(known.backend));
    }

    /// Whether there is an id of this number.
    pub(super) fn is_known(&self, hash: u64) -> bool {
        self.ids.find(hash, |known| known.hash == hash).is_some()
    }

    /// Forgets two at most, so that ids never become more than their flows.
    fn forget_some(&mut self, now: Instant) {
        for _ in 0..2 {
            if self.without_flow.front().is_some_and(|&(_, until)| until <= now) {
                self.forget_first();
            }
        }
    }

    /// Forgets the first, if it still has no flow, and has not had one since.
    fn forget_first(&mut self) {
        let Some((hash, until)) = self.without_flow.pop_front() else { return };
        if let Ok(entry) = self.ids.find_entry(hash, |known| known.hash == hash)
            && entry.get().flows == 0
            && entry.get().until == until
        {
            entry.remove();
        }
    }

    pub(super) const fn keys(&self) -> (u64, u64) {
        self.keys
    }

    pub(super) const fn lengths(&self) -> u32 {
        self.lengths
    }

    pub(super) fn without_flow(&self) -> impl Iterator<Item = (u64, Instant)> {
        self.without_flow.iter().copied()
    }

    #[cfg(feature = "snapshot")]
    pub(super) fn entries(&self) -> impl Iterator<Item = LearnedId> {
        self.ids.iter().map(|&known| LearnedId { flows: 0, ..known })
    }

    /// Takes over ids that no flow has yet.
    #[cfg(feature = "snapshot")]
    pub(super) fn restore(&mut self, snapshot: &LearnedIdsSnapshot) -> Result<(), RestoreError> {
        require!(snapshot.ids.len() <= 2 * self.max_flows + 1, "more ids than flows can have");
        require!(snapshot.without_flow.len() <= self.max_flows, "more ids than flows can have had");
        require!(snapshot.lengths >> (MAX_ID + 1) == 0, "ids that are too long");
        (self.keys, self.lengths) = (snapshot.keys, snapshot.lengths);
        for &known in &snapshot.ids {
            let hash = known.hash;
            let entry = self.ids.entry(hash, |known| known.hash == hash, |known| known.hash);
            let Entry::Vacant(entry) = entry else {
                return Err(RestoreError::Broken("an id twice"));
            };
            entry.insert(LearnedId { flows: 0, ..known });
        }
        self.without_flow.extend(&snapshot.without_flow);
        Ok(())
    }

    /// Whether each id has a flow, or is on its way to be forgotten.
    pub(super) fn is_consistent(&self) -> bool {
        let mut forgotten = self.ids.iter().filter(|known| known.flows == 0);
        let mut waiting: Vec<_> = self.without_flow.iter().collect();
        waiting.sort_unstable();
        forgotten.all(|known| waiting.binary_search(&&(known.hash, known.until)).is_ok())
    }

    /// How many are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackendId = BackendId::new(0);
    const B: BackendId = BackendId::new(1);

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    fn backend(ids: &LearnedIds, id: &[u8], is_whole: bool, now: Instant) -> Option<BackendId> {
        ids.find(id, is_whole, now).map(|(_, backend, _)| backend)
    }

    #[test]
    fn an_id_is_known_while_a_flow_has_it_and_two_minutes_longer() {
        let mut ids = LearnedIds::new((4, 4), (1, 2));
        let first = ids.learn(b"abcdefgh", A, 0, at(0));
        assert_eq!(backend(&ids, b"abcdefgh", true, at(1_000)), Some(A));
        ids.adopt(first);
        ids.release(first, at(1_000));
        assert_eq!(backend(&ids, b"abcdefgh", true, at(2_000)), Some(A), "another flow has it");
        ids.release(first, at(2_000));
        assert_eq!(backend(&ids, b"abcdefgh", true, at(2_119)), Some(A));
        assert_eq!(backend(&ids, b"abcdefgh", true, at(2_120)), None);
    }

    #[test]
    fn an_id_of_unknown_length_is_found_by_the_lengths_that_were_announced() {
        let mut ids = LearnedIds::new((4, 4), (1, 2));
        ids.learn(b"abcdefgh", A, 0, at(0));
        ids.learn(b"abcdef", B, 0, at(0));
        assert_eq!(backend(&ids, b"abcdefghijkl", false, at(1)), Some(A), "the longest that fits");
        assert_eq!(backend(&ids, b"abcdefgX", false, at(1)), Some(B));
        assert_eq!(backend(&ids, b"abcdefghijkl", true, at(1)), None);
        assert_eq!(backend(&ids, b"abc", false, at(1)), None);
        assert_eq!(backend(&ids, b"", true, at(1)), None);
    }

    #[test]
    fn a_flow_has_the_last_id_that_was_announced_to_it() {
        let mut ids = LearnedIds::new((4, 4), (1, 2));
        let first = ids.learn(b"first id", A, 0, at(0));
        let second = ids.learn(b"second id", A, first, at(0));
        assert_eq!(ids.learn(b"second id", A, second, at(1)), second);
        assert_eq!(backend(&ids, b"first id", true, at(119)), Some(A));
        assert_eq!(backend(&ids, b"first id", true, at(120)), None);
        assert_eq!(backend(&ids, b"second id", true, at(120)), Some(A));
    }

    #[test]
    fn there_are_never_more_than_two_for_each_flow() {
        const FLOWS: usize = 8;
        let mut ids = LearnedIds::new((FLOWS, FLOWS), (1, 2));
        let mut had = [0; FLOWS];
        for step in 0_u64..10_000 {
            let flow = step as usize % FLOWS;
            had[flow] = ids.learn(&step.to_be_bytes(), A, had[flow], at(step / 100));
            assert!(ids.len() <= 2 * FLOWS + 1, "{}", ids.len());
        }
        had.iter().for_each(|&had| ids.release(had, at(100)));
        let last = ids.learn(b"the last one", B, 0, at(1_000));
        for _ in 0..FLOWS {
            let other = ids.learn(b"another", B, last, at(1_000));
            ids.release(other, at(1_000));
        }
        assert_eq!(backend(&ids, &9_999_u64.to_be_bytes(), true, at(1_000)), None);
    }
}
