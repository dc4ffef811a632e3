//! A set of small dense numbers.

use alloc::vec;
use alloc::vec::Vec;

const BITS: usize = u64::BITS as usize;

/// Slots, a bit for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    /// None, and no allocation for those below this number.
    pub(crate) fn with_capacity(slots: usize) -> Self {
        Self { words: vec![0; slots.div_ceil(BITS)] }
    }

    #[inline]
    pub(crate) fn contains(&self, slot: usize) -> bool {
        self.words.get(slot / BITS).is_some_and(|word| word >> (slot % BITS) & 1 == 1)
    }

    /// Adds a slot, and says whether it was not there.
    #[inline]
    pub(crate) fn insert(&mut self, slot: usize) -> bool {
        if self.words.len() <= slot / BITS {
            self.words.resize(slot / BITS + 1, 0);
        }
        let (word, bit) = (&mut self.words[slot / BITS], 1 << (slot % BITS));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}
