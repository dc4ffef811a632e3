//! The wheel as plain data.

use super::{LEVELS, SLOTS, TICK, TimerWheel};
use crate::collections::slot_set::SlotSet;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{TimerSlotSnapshot, TimersSnapshot};
use crate::time::Instant;

impl TimerWheel {
    /// Notes from now on which timers are scheduled, or stops to do that.
    pub(crate) fn note_changes(&mut self, whether: bool) {
        self.slots.note_changes(whether);
    }

    /// All timers, or those that have been scheduled since that is noted.
    pub(crate) fn snapshot(&self) -> TimersSnapshot {
        let slot = |list: usize| TimerSlotSnapshot {
            level: (list / SLOTS) as u8,
            slot: (list % SLOTS) as u8,
            timers: self.slots.pushed_front(list),
        };
        let slots = (0..LEVELS * SLOTS).filter(|&list| self.slots.first(list).is_some()).map(slot);
        let slots = slots.filter(|slot| !slot.timers.is_empty()).collect();
        TimersSnapshot { elapsed: self.elapsed, slots }
    }

    /// Schedules the timers of a snapshot, of which none may be for a slot of the flow table that
    /// `is_taken` does not know; and cancels those of others. The rest must come up when they would
    /// have.
    pub(crate) fn update(
        &mut self,
        snapshot: &TimersSnapshot,
        gone: &[u32],
        is_taken: impl Fn(usize) -> bool,
    ) -> Result<(), RestoreError> {
        let elapsed = snapshot.elapsed;
        require!(
            elapsed <= Instant::FAR_FUTURE.as_millis(),
            "the timers are beyond the end of time"
        );
        gone.iter().for_each(|&timer| self.cancel(timer as usize));
        let (mut timers, mut slots) = (SlotSet::default(), SlotSet::default());
        for TimerSlotSnapshot { level, slot, timers: its } in &snapshot.slots {
            let (level, slot) = (usize::from(*level), usize::from(*slot));
            require!(level < LEVELS && slot < SLOTS, "a timer beyond the wheel");
            let is_new = slots.insert(level * SLOTS + slot);
            require!(is_new && !its.is_empty(), "a slot of timers is named in vain");
            for &timer in its {
                require!(is_taken(timer as usize), "a timer of no flow");
                require!(timers.insert(timer as usize), "a timer that is scheduled twice");
                self.cancel(timer as usize);
            }
        }
        self.pass(elapsed)?;
        for slot in &snapshot.slots {
            for &timer in slot.timers.iter().rev() {
                self.link(timer as usize, slot.level.into(), slot.slot.into());
            }
        }
        Ok(())
    }

    /// Time goes on, and whatever is scheduled comes up when it would have.
    fn pass(&mut self, elapsed: u64) -> Result<(), RestoreError> {
        let begin = |wheel: &Self| {
            let occupied = wheel.occupied;
            let slots = (0..LEVELS).flat_map(|level| (0..SLOTS).map(move |slot| (level, slot)));
            let slots = slots.filter(move |&(level, slot)| occupied[level] >> slot & 1 == 1);
            slots.map(|(level, slot)| wheel.begins(level, slot)).collect::<alloc::vec::Vec<_>>()
        };
        let before = begin(self);
        self.elapsed = elapsed;
        require!(before == begin(self), "a timer that has been passed over");
        Ok(())
    }

    /// Whether a timer is scheduled, and comes up in time for a deadline.
    pub(crate) fn is_in_time_for(&self, timer: usize, deadline: Instant) -> bool {
        let due = deadline.as_nanos().div_ceil(TICK.as_nanos() as u64).max(self.elapsed + 1);
        let begins = |list: usize| self.begins(list / SLOTS, list % SLOTS);
        self.slots.list_of(timer).is_some_and(|list| begins(list) <= due)
    }
}
