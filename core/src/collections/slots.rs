//! Values under small dense numbers, which are used again.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

const NONE: u32 = u32::MAX;

/// Values in numbered slots. A value gets the slot that was vacated last, or a new one where none is
/// vacant: so the order in which slots were vacated is part of the state.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    len: usize,
    /// The slot that was vacated last; `NONE` where all are taken.
    vacant: u32,
}

/// What a slot holds. For a value with a bit to spare this is no larger than the value.
#[derive(Clone, Debug)]
enum Slot<T> {
    Taken(T),
    /// The one that was vacated before this one.
    Vacant(u32),
}

impl<T> Slots<T> {
    /// Memory for values in this many slots.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity), len: 0, vacant: NONE }
    }

    /// Makes room for this many slots, if there is less.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        self.slots.reserve_exact(capacity.saturating_sub(self.slots.len()));
    }

    /// How many values there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// How many slots have ever been used.
    pub(crate) const fn used(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(crate) fn get(&self, slot: usize) -> Option<&T> {
        match self.slots.get(slot) {
            Some(Slot::Taken(value)) => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        match self.slots.get_mut(slot) {
            Some(Slot::Taken(value)) => Some(value),
            _ => None,
        }
    }

    /// The slot that the next value gets.
    pub(crate) const fn next(&self) -> usize {
        match self.vacant {
            NONE => self.slots.len(),
            vacant => vacant as usize,
        }
    }

    /// Puts a value into the [`next`](Self::next) slot.
    pub(crate) fn insert(&mut self, value: T) -> usize {
        let slot = self.next();
        match self.slots.get_mut(slot) {
            None => self.slots.push(Slot::Taken(value)),
            Some(place) => {
                if let Slot::Vacant(before) = core::mem::replace(place, Slot::Taken(value)) {
                    self.vacant = before;
                }
            }
        }
        self.len += 1;
        slot
    }

    /// Takes out the value of a slot that has one.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub(crate) fn remove(&mut self, slot: usize) -> T {
        let place = &mut self.slots[slot];
        match core::mem::replace(place, Slot::Vacant(self.vacant)) {
            Slot::Taken(value) => {
                self.vacant = slot as u32;
                self.len -= 1;
                value
            }
            vacant @ Slot::Vacant(_) => {
                *place = vacant;
                panic!("slot {slot} is vacant")
            }
        }
    }

    /// All values with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, held)| match held {
            Slot::Taken(value) => Some((slot, value)),
            Slot::Vacant(_) => None,
        })
    }

    /// The vacant slots, in the order in which they will be used.
    pub(crate) fn vacant(&self) -> impl Iterator<Item = u32> {
        let next = |&slot: &u32| match self.slots.get(slot as usize) {
            Some(Slot::Vacant(before)) => Some(*before),
            _ => None,
        };
        core::iter::successors(Some(self.vacant), next).filter(|&slot| slot != NONE)
    }

    /// `used` slots as they were: values in some, and the others vacant, in the order in which they
    /// will be used. `None` unless each slot is named once.
    pub(crate) fn restored(
        used: usize,
        capacity: usize,
        values: impl Iterator<Item = (u32, T)>,
        vacant: &[u32],
    ) -> Option<Self> {
        let mut slots = Self::with_capacity(capacity.max(used));
        slots.slots.extend((0..used).map(|_| Slot::Vacant(NONE)));
        for (slot, value) in values {
            match slots.slots.get_mut(slot as usize) {
                Some(place @ Slot::Vacant(_)) => *place = Slot::Taken(value),
                _ => return None,
            }
            slots.len += 1;
        }
        for &slot in vacant.iter().rev() {
            match slots.slots.get_mut(slot as usize) {
                Some(Slot::Vacant(before)) => *before = slots.vacant,
                _ => return None,
            }
            slots.vacant = slot;
        }
        // One that is named twice comes before itself, and the search for the first goes in circles.
        let are_vacant = slots.vacant().take(used + 1).count();
        (are_vacant == vacant.len() && slots.len + are_vacant == used).then_some(slots)
    }
}

impl<T> Index<usize> for Slots<T> {
    type Output = T;

    #[inline]
    fn index(&self, slot: usize) -> &T {
        self.get(slot).expect("a slot that is taken")
    }
}

impl<T> IndexMut<usize> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, slot: usize) -> &mut T {
        self.get_mut(slot).expect("a slot that is taken")
    }
}

#[cfg(test)]
mod tests;
