//! Each in turn, in proportion to the weights.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::mem;

use super::Member;
use super::turn::Turn;
use crate::backend::Backends;
use crate::id::BackendId;

/// How many backends in a row may be found unable before it is cheaper to look at all at once.
const STALE_TIMEOUT: usize = 32;

/// Smooth weighted round-robin in O(log n): members wait in a queue for their next [`Turn`].
///
/// A turn that comes while its backend can take no flow is lost. The backend has no claim on it
/// later, so it is not flooded when it comes back.
#[derive(Debug)]
pub(super) struct RoundRobin {
    ids: Vec<BackendId>,
    /// Soonest turn first.
    queue: BinaryHeap<Reverse<Turn>>,
    /// Turns that the current pick has taken out of the queue in vain. Empty between picks; kept
    /// only so that a pick need not allocate.
    passed_over: Vec<Turn>,
}

/// With room to pass over as many turns as the original: a vector that is cloned has none to spare.
impl Clone for RoundRobin {
    fn clone(&self) -> Self {
        let (ids, queue) = (self.ids.clone(), self.queue.clone());
        Self { ids, queue, passed_over: Vec::with_capacity(STALE_TIMEOUT) }
    }
}

impl RoundRobin {
    pub(super) fn new(members: &[Member]) -> Self {
        let first = |(rank, member): (usize, &Member)| {
            Reverse(Turn::first_staggered(rank, members.len(), member.weight))
        };
        Self {
            ids: members.iter().map(|member| member.id).collect(),
            queue: members.iter().enumerate().map(first).collect(),
            passed_over: Vec::with_capacity(STALE_TIMEOUT),
        }
    }

    pub(super) fn pick(&mut self, backends: &Backends) -> Option<BackendId> {
        let taken = self.take_next_turn(backends);
        for turn in self.passed_over.drain(..) {
            let next = taken.map_or(turn, |taken| turn.later_than(&taken));
            self.queue.push(Reverse(next));
        }
        let taken = taken?;
        self.queue.push(Reverse(taken.next()));
        Some(self.ids[taken.member()])
    }

    /// Lets a number of turns pass.
    pub(super) fn skip(&mut self, count: usize, backends: &Backends) {
        for _ in 0..count.checked_rem(self.ids.len()).unwrap_or(0) {
            self.pick(backends);
        }
    }

    /// Gives the members that `former` knows, but for those in `replaced`, the turns that they have
    /// there, as far ahead as is fitting for their weight now. Others come when these have had one.
    pub(super) fn go_on_from(&mut self, former: &Self, replaced: &[BackendId]) {
        let mut known: Vec<(BackendId, Turn)> =
            former.queue.iter().map(|Reverse(turn)| (former.ids[turn.member()], *turn)).collect();
        // Both are in configured order.
        known.retain(|(id, _)| {
            replaced.binary_search(id).is_err() && self.ids.binary_search(id).is_ok()
        });
        let Some(next) = known.iter().map(|(_, turn)| *turn).min() else { return };
        known.sort_unstable_by_key(|(id, _)| *id);
        let mut turns = mem::take(&mut self.queue).into_vec();
        for Reverse(turn) in &mut turns {
            let id = self.ids[turn.member()];
            *turn = match known.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(index) => turn.in_place_of(&known[index].1, &next),
                Err(_) => turn.within_a_stride_from_the_start(),
            };
        }
        self.queue = turns.into();
    }

    /// The time of each member's next turn, in the order of the members.
    pub(super) fn times(&self) -> Vec<(u64, u64)> {
        let mut times = alloc::vec![(0, 0); self.ids.len()];
        self.queue.iter().for_each(|Reverse(turn)| times[turn.member()] = turn.time());
        times
    }

    /// Gives each member its next turn at such a time; `false` where they are not as many, or a
    /// time is not possible.
    pub(super) fn restore(&mut self, times: &[(u64, u64)]) -> bool {
        let mut turns = mem::take(&mut self.queue).into_vec();
        let mut are_possible = times.len() == self.ids.len();
        for Reverse(turn) in &mut turns {
            match times.get(turn.member()).and_then(|&time| turn.at_time(time)) {
                Some(restored) => *turn = restored,
                None => are_possible = false,
            }
        }
        self.queue = turns.into();
        are_possible
    }

    /// Takes the soonest turn of a backend that can take a flow out of the queue.
    fn take_next_turn(&mut self, backends: &Backends) -> Option<Turn> {
        while self.passed_over.len() < STALE_TIMEOUT {
            let Reverse(turn) = self.queue.pop()?;
            if backends.can_take_a_flow(self.ids[turn.member()]) {
                return Some(turn);
            }
            self.passed_over.push(turn);
        }
        self.search_all_turns(backends)
    }

    /// The same in O(n), whatever the number of backends to pass over.
    fn search_all_turns(&mut self, backends: &Backends) -> Option<Turn> {
        let mut turns = mem::take(&mut self.queue).into_vec();
        let soonest = turns
            .iter()
            .enumerate()
            .filter(|(_, Reverse(turn))| backends.can_take_a_flow(self.ids[turn.member()]))
            .min_by_key(|(_, Reverse(turn))| *turn)
            .map(|(index, _)| index);
        let taken = soonest.map(|index| turns.swap_remove(index).0);
        if let Some(taken) = taken {
            let passed_over = turns.iter_mut().filter(|turn| turn.0 < taken);
            passed_over.for_each(|turn| turn.0 = turn.0.later_than(&taken));
        }
        self.queue = turns.into();
        taken
    }
}

#[cfg(test)]
mod tests;
