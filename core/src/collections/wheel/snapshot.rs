//! The wheel as plain data.

use super::{LEVELS, Link, NIL, SLOTS, TICK, TimerWheel};
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{TimerPlaceSnapshot, TimersSnapshot};
use crate::time::Instant;

impl TimerWheel {
    pub(crate) fn snapshot(&self) -> TimersSnapshot {
        let place = |(level, slot): (usize, usize)| {
            let next = |&timer: &u32| self.links.get(timer as usize).map(|link| link.next);
            let all = core::iter::successors(Some(self.heads[level][slot]), next);
            TimerPlaceSnapshot {
                level: level as u8,
                slot: slot as u8,
                timers: all.take_while(|&timer| timer != NIL).collect(),
            }
        };
        let places = (0..LEVELS).flat_map(|level| (0..SLOTS).map(move |slot| (level, slot)));
        let occupied = places.filter(|&(level, slot)| self.occupied[level] >> slot & 1 == 1);
        TimersSnapshot { elapsed: self.elapsed, places: occupied.map(place).collect() }
    }

    /// A wheel for timers `0..timers`, each of which is scheduled, and for no fewer than `capacity`.
    pub(crate) fn restored(
        snapshot: &TimersSnapshot,
        timers: usize,
        capacity: usize,
    ) -> Result<Self, RestoreError> {
        let is_an_instant = snapshot.elapsed <= Instant::FAR_FUTURE.as_millis();
        require!(is_an_instant, "the timers are beyond the end of time");
        let mut wheel = Self::new(capacity.max(timers), Instant::from_millis(snapshot.elapsed));
        wheel.links.resize(timers, Link::UNSCHEDULED);
        for place in &snapshot.places {
            let (level, slot) = (usize::from(place.level), usize::from(place.slot));
            require!(level < LEVELS && slot < SLOTS, "a timer beyond the wheel");
            let is_new = wheel.occupied[level] >> slot & 1 == 0;
            require!(is_new && !place.timers.is_empty(), "a place of timers is named in vain");
            for &timer in place.timers.iter().rev() {
                let is_free = wheel.links.get(timer as usize).is_some_and(|link| !link.scheduled);
                require!(is_free, "a timer of nothing, or one that is scheduled twice");
                wheel.link(timer as usize, level, slot);
            }
        }
        Ok(wheel)
    }

    /// Whether a timer is scheduled, and comes up in time for a deadline.
    pub(crate) fn is_in_time_for(&self, timer: usize, deadline: Instant) -> bool {
        let due = deadline.as_nanos().div_ceil(TICK.as_nanos() as u64).max(self.elapsed + 1);
        let link = self.links.get(timer).filter(|link| link.scheduled);
        link.is_some_and(|link| self.begins(link.level.into(), link.slot.into()) <= due)
    }
}
