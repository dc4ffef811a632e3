//! When to look at which flow: a hierarchical timing wheel (Varghese and Lauck, SOSP 1987).
//!
//! A datagram moves its flow's deadline and does not touch the wheel. The wheel only promises to
//! bring a flow up no later than the deadline it was last scheduled for; the one that takes it out
//! compares with the true deadline and schedules it again if that lies ahead. So the cost of a
//! timer is paid a few times per idle timeout, however many datagrams the flow carries.
//!
//! Level 0 has slots of one [`TICK`], and each level above has slots as long as the whole level
//! below. An entry of a high level comes up when its slot begins, ahead of its deadline, and is
//! scheduled again into a lower level by the same rule that serves deadlines that have moved.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::time::Duration;

use crate::collections::lists::Lists;
use crate::time::Instant;

/// The resolution of the wheel: deadlines are kept to the next full millisecond.
pub(crate) const TICK: Duration = Duration::from_millis(1);

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Enough for every [`Instant`]: 2^48 ticks are 8,900 years.
const LEVELS: usize = 8;

/// Timers named by small dense numbers: the indices of flows.
#[derive(Clone, Debug)]
pub(crate) struct TimerWheel {
    /// The tick up to which everything has come up.
    elapsed: u64,
    /// For each level, a bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    /// The timers of each slot, level by level, those that were scheduled last first.
    slots: Lists,
}

impl TimerWheel {
    /// A wheel for timers `0..capacity`, which allocates nothing later.
    pub(crate) fn new(capacity: usize, now: Instant) -> Self {
        Self {
            elapsed: now.as_millis(),
            occupied: [0; LEVELS],
            slots: Lists::new(LEVELS * SLOTS, capacity),
        }
    }

    /// Makes room for timers `0..capacity`, if there is less.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        self.slots.reserve(capacity);
    }

    /// Makes `timer` come up at `deadline`, or at the next tick where that has passed. A timer
    /// that is already scheduled moves.
    pub(crate) fn schedule(&mut self, timer: usize, deadline: Instant) {
        self.cancel(timer);
        let tick = deadline.as_nanos().div_ceil(TICK.as_nanos() as u64).max(self.elapsed + 1);
        let (level, slot) = self.place(tick);
        self.link(timer, level, slot);
    }

    /// Puts a timer that is not scheduled before all others of a slot.
    fn link(&mut self, timer: usize, level: usize, slot: usize) {
        self.slots.push_front(level * SLOTS + slot, timer);
        self.occupied[level] |= 1 << slot;
    }

    /// Makes `timer` never come up. Nothing happens if it was not scheduled.
    pub(crate) fn cancel(&mut self, timer: usize) {
        if let Some(list) = self.slots.remove(timer)
            && self.slots.first(list).is_none()
        {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    /// Takes out one timer whose slot has begun by `now`, if there is one.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        let now = now.as_millis();
        let (tick, level, slot) = match self.first_slot() {
            Some(first) if first.0 <= now => first,
            _ => {
                self.elapsed = self.elapsed.max(now);
                return None;
            }
        };
        self.elapsed = self.elapsed.max(tick);
        self.take_first(level, slot)
    }

    /// Takes out one timer, due or not, and leaves the time of the wheel as it is.
    pub(crate) fn pop_any(&mut self) -> Option<usize> {
        let (_, level, slot) = self.first_slot()?;
        self.take_first(level, slot)
    }

    /// When the next slot that holds a timer begins: no later than the earliest deadline, and
    /// often earlier. Looks at one word for each level.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.first_slot().map(|(tick, ..)| Instant::from_millis(tick))
    }

    /// Whether `timer` is scheduled.
    pub(crate) fn is_scheduled(&self, timer: usize) -> bool {
        self.slots.list_of(timer).is_some()
    }

    fn take_first(&mut self, level: usize, slot: usize) -> Option<usize> {
        let timer = self.slots.first(level * SLOTS + slot)?;
        self.cancel(timer);
        Some(timer)
    }

    /// The level and slot for a tick after `elapsed`: the lowest level whose current turn still
    /// reaches that tick, which the highest bit in which the two differ tells.
    fn place(&self, tick: u64) -> (usize, usize) {
        let highest_difference = 63 - ((tick ^ self.elapsed) | 1).leading_zeros();
        let level = (highest_difference / SLOT_BITS) as usize;
        debug_assert!(level < LEVELS, "an Instant has fewer than 2^48 ticks");
        (level, (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS)
    }

    /// The earliest slot that holds a timer: the tick at which it begins, its level, its slot.
    fn first_slot(&self) -> Option<(u64, usize, usize)> {
        let first_of_level = |level: usize| {
            let occupied = self.occupied[level];
            if occupied == 0 {
                return None;
            }
            let position = (self.turns(level) % SLOTS as u64) as u32;
            let distance = occupied.rotate_right(position).trailing_zeros();
            let slot = (position + distance) as usize % SLOTS;
            Some((self.begins(level, slot), level, slot))
        };
        (0..LEVELS).filter_map(first_of_level).min()
    }

    /// The tick at which a slot begins that is not empty.
    fn begins(&self, level: usize, slot: usize) -> u64 {
        let turns = self.turns(level);
        // A slot at the position itself has begun but was not emptied: it is due at once.
        let distance = (slot as u64).wrapping_sub(turns) % SLOTS as u64;
        (turns + distance) << (SLOT_BITS * level as u32)
    }

    /// How many slots of a level have begun.
    const fn turns(&self, level: usize) -> u64 {
        self.elapsed >> (SLOT_BITS * level as u32)
    }
}

#[cfg(test)]
mod tests;
