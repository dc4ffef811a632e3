//! What runs have met, summed up: a simulator that never meets a limit proves nothing about it.

use flowgate_core::counters::Counters;
use flowgate_core::{CloseReason, Direction, DropReason};

/// The sum of what balancers have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many inputs they were given.
    pub inputs: u64,
    /// Datagrams that were sent on, by [`Direction`].
    pub forwarded: [u64; Direction::ALL.len()],
    /// Datagrams that were dropped, by [`Direction`] and [`DropReason`].
    pub dropped: [[u64; DropReason::COUNT]; Direction::ALL.len()],
    /// Flows that closed, by [`CloseReason`].
    pub closed: [u64; CloseReason::COUNT],
}

impl Tally {
    /// Adds what one balancer has counted.
    pub(super) fn add_counters(&mut self, counters: &Counters) {
        for direction in Direction::ALL {
            let ledger = counters.ledger(direction);
            self.forwarded[direction as usize] += ledger.forwarded.datagrams;
            for &reason in DropReason::ALL {
                let dropped = ledger.dropped_for(reason).datagrams;
                self.dropped[direction as usize][reason as usize] += dropped;
            }
        }
        for (sum, closed) in self.closed.iter_mut().zip(counters.flows_closed) {
            *sum += closed;
        }
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        add_each(&mut self.forwarded, &other.forwarded);
        add_each(self.dropped.as_flattened_mut(), other.dropped.as_flattened());
        add_each(&mut self.closed, &other.closed);
    }

    /// Datagrams that were dropped in one direction for one reason.
    pub const fn dropped_for(&self, direction: Direction, reason: DropReason) -> u64 {
        self.dropped[direction as usize][reason as usize]
    }
}

fn add_each(sums: &mut [u64], others: &[u64]) {
    for (sum, other) in sums.iter_mut().zip(others) {
        *sum += other;
    }
}
