//! Entries in numbered slots that are used again, found by what they hold as well.

#[cfg(feature = "snapshot")]
mod changes;

use core::array;
use core::ops::{Index, IndexMut};

use hashbrown::HashTable;
use slab::Slab;

use crate::collections::slot_set::SlotSet;

/// What lies in the slots of an [`IndexedSlab`].
pub(crate) trait Entry: Clone {
    /// What stands in a vacant slot for as long as the order of those is read or made.
    #[cfg(feature = "snapshot")]
    fn vacant() -> Self;

    /// What it is found by in an index. `secret` is the slab's.
    fn hash(&self, index: usize, secret: (u64, u64)) -> u64;
}

/// Entries, and some indexes that lead to the slots of those that were [added](Self::add_to) to them.
///
/// An entry gets the slot that was vacated last, or a new one where none is vacant: so the order in
/// which slots were vacated is part of the state.
#[derive(Clone, Debug)]
pub(crate) struct IndexedSlab<T, const INDEXES: usize> {
    slab: Slab<T>,
    /// How many slots have ever been used.
    used: usize,
    indexes: [HashTable<u32>; INDEXES],
    secret: (u64, u64),
    /// The slots whose entries may have changed since changes are noted.
    changed: Option<SlotSet>,
}

impl<T: Entry, const INDEXES: usize> IndexedSlab<T, INDEXES> {
    /// No entries, and memory for none. Where others choose what entries are found by, nobody else
    /// may know `secret`.
    pub(crate) fn new(secret: (u64, u64)) -> Self {
        let indexes = array::from_fn(|_| HashTable::new());
        Self { slab: Slab::new(), used: 0, indexes, secret, changed: None }
    }

    /// Makes room for this many slots, if there is less.
    pub(crate) fn reserve(&mut self, slots: usize) {
        self.slab.reserve_exact(slots.saturating_sub(self.slab.len()));
    }

    /// Makes room for this many entries in an index, if there is less.
    pub(crate) fn reserve_index(&mut self, index: usize, entries: usize) {
        let Self { slab, indexes, secret, .. } = self;
        let table = &mut indexes[index];
        let rehash = |&slot: &u32| slab[slot as usize].hash(index, *secret);
        table.reserve(entries.saturating_sub(table.len()), rehash);
    }

    pub(crate) const fn secret(&self) -> (u64, u64) {
        self.secret
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// How many slots have ever been used.
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    #[inline]
    pub(crate) fn get(&self, slot: usize) -> Option<&T> {
        self.slab.get(slot)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.note(slot);
        self.slab.get_mut(slot)
    }

    /// The slot that the next entry gets.
    pub(crate) fn next(&self) -> usize {
        self.slab.vacant_key()
    }

    /// Puts an entry into the [`next`](Self::next) slot, and into no index.
    pub(crate) fn insert(&mut self, entry: T) -> usize {
        let slot = self.slab.insert(entry);
        self.used = self.used.max(slot + 1);
        self.note(slot);
        slot
    }

    /// Takes the entry out of a slot. No index may lead there any more.
    ///
    /// # Panics
    ///
    /// When the slot is vacant.
    pub(crate) fn remove(&mut self, slot: usize) -> T {
        self.note(slot);
        self.slab.remove(slot)
    }

    /// All entries with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slab.iter()
    }

    /// Has the entry in a slot found in an index.
    pub(crate) fn add_to(&mut self, index: usize, slot: usize) {
        let Self { slab, indexes, secret, .. } = self;
        let rehash = |&slot: &u32| slab[slot as usize].hash(index, *secret);
        let hash = slab[slot].hash(index, *secret);
        indexes[index].insert_unique(hash, slot as u32, rehash);
    }

    /// Has the entry in a slot found in an index no more, if it was.
    pub(crate) fn remove_from(&mut self, index: usize, slot: usize) {
        let table = &mut self.indexes[index];
        let Some(entry) = self.slab.get(slot).filter(|_| !table.is_empty()) else { return };
        let hash = entry.hash(index, self.secret);
        if let Ok(found) = table.find_entry(hash, |&at| at as usize == slot) {
            found.remove();
        }
    }

    /// The slot of an entry that an index leads to.
    #[inline]
    pub(crate) fn find(
        &self,
        index: usize,
        hash: u64,
        is_it: impl Fn(&T) -> bool,
    ) -> Option<usize> {
        let is_it = |&slot: &u32| is_it(&self.slab[slot as usize]);
        self.indexes[index].find(hash, is_it).map(|&slot| slot as usize)
    }

    /// The slot of an entry that may be the one with this hash. Looks at no entry.
    #[inline]
    pub(crate) fn guess(&self, index: usize, hash: u64) -> Option<u32> {
        self.indexes[index].iter_hash(hash).next().copied()
    }

    /// The slots of all entries that an index leads to.
    pub(crate) fn indexed(&self, index: usize) -> impl ExactSizeIterator<Item = usize> {
        self.indexes[index].iter().map(|&slot| slot as usize)
    }
}

impl<T, const INDEXES: usize> IndexedSlab<T, INDEXES> {
    #[inline]
    fn note(&mut self, slot: usize) {
        if let Some(changed) = &mut self.changed {
            changed.insert(slot);
        }
    }
}

impl<T, const INDEXES: usize> Index<usize> for IndexedSlab<T, INDEXES> {
    type Output = T;

    #[inline]
    fn index(&self, slot: usize) -> &T {
        &self.slab[slot]
    }
}

impl<T, const INDEXES: usize> IndexMut<usize> for IndexedSlab<T, INDEXES> {
    #[inline]
    fn index_mut(&mut self, slot: usize) -> &mut T {
        self.note(slot);
        &mut self.slab[slot]
    }
}

#[cfg(test)]
mod tests;
