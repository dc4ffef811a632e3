//! What has changed in a slab, and a slab in which the same has changed.

use alloc::vec::Vec;

use super::{Entry, IndexedSlab};
use crate::collections::slot_set::SlotSet;

impl<T: Entry, const INDEXES: usize> IndexedSlab<T, INDEXES> {
    /// Notes from now on in which slots something changes, or stops to do that.
    pub(crate) fn note_changes(&mut self, whether: bool) {
        self.changed = whether.then(|| SlotSet::with_capacity(self.slab.capacity()));
    }

    /// Whether that is noted.
    pub(crate) const fn notes_changes(&self) -> bool {
        self.changed.is_some()
    }

    /// Whether a slot may have changed. Where that is not noted, all have.
    pub(crate) fn has_changed(&self, slot: usize) -> bool {
        self.changed.as_ref().is_none_or(|changed| changed.contains(slot))
    }

    /// The vacant slots that have changed, in the order in which they will be used: before all that
    /// have not, since slots are used in the reverse order in which they were vacated.
    ///
    /// slab does not tell the order, so all of them are used for once, and vacated again.
    pub(crate) fn vacant(&mut self) -> Vec<u32> {
        let mut vacant = Vec::new();
        while self.slab.len() < self.used && self.has_changed(self.slab.vacant_key()) {
            vacant.push(self.slab.insert(T::vacant()) as u32);
        }
        vacant.iter().rev().for_each(|&slot| drop(self.slab.remove(slot as usize)));
        vacant
    }

    /// Makes slots what they have become in another slab that was like this one: `entries` lie in some
    /// of those that have changed, in no index, and the others are [vacant](Self::vacant). Where this
    /// one has no slots yet, those are all.
    ///
    /// `None` where a slot is named twice, or there can be no such slab.
    #[must_use]
    pub(crate) fn update(
        &mut self,
        changed: &[u32],
        entries: impl Iterator<Item = (u32, T)>,
        vacant: &[u32],
    ) -> Option<()> {
        self.changed = None;
        let most = self.used + changed.len();
        let mut named = SlotSet::default();
        for &slot in changed {
            let is_new = (slot as usize) < most && named.insert(slot as usize);
            self.used = if is_new { self.used.max(slot as usize + 1) } else { return None };
        }
        while named.contains(self.slab.vacant_key()) {
            self.slab.insert(T::vacant());
        }
        if !changed.iter().all(|&slot| self.slab.contains(slot as usize)) {
            return None;
        }
        for index in 0..INDEXES {
            changed.iter().for_each(|&slot| self.remove_from(index, slot as usize));
        }
        entries.for_each(|(slot, entry)| self.slab[slot as usize] = entry);
        vacant.iter().rev().for_each(|&slot| drop(self.slab.remove(slot as usize)));
        Some(())
    }
}
