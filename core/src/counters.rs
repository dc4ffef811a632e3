//! What a manager counts. The shell samples these; nothing is emitted per datagram.

mod answer_times;
#[cfg(feature = "snapshot")]
mod snapshot;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

pub use answer_times::{AnswerTimes, BOUNDS};

use crate::burst::Burst;
use crate::reason::{CloseReason, Direction, DropReason};

/// All counters of a manager. They only grow; [`Ledger::queued`] is an account, not a counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What clients sent.
    pub to_backend: Ledger,
    /// What backends sent.
    pub to_client: Ledger,
    /// Flows opened.
    pub flows_opened: u64,
    /// Flows closed, indexed by [`CloseReason`].
    pub flows_closed: [u64; CloseReason::COUNT],
    /// Flows that went on with another backend, since theirs was down, removed, or asked in vain.
    pub flows_moved: u64,
    /// How often a question was asked again of another backend, to which its flow went over then.
    pub retries: u64,
    /// ICMP errors reported by upstream sockets.
    pub upstream_errors: u64,
}

impl Counters {
    /// The ledger of one direction.
    pub const fn ledger(&self, direction: Direction) -> &Ledger {
        match direction {
            Direction::ToBackend => &self.to_backend,
            Direction::ToClient => &self.to_client,
        }
    }

    /// Adds what another manager counted.
    pub fn merge(&mut self, other: &Self) {
        for direction in Direction::ALL {
            self.ledger_mut(direction).merge(other.ledger(direction));
        }
        self.flows_opened += other.flows_opened;
        for (sum, more) in self.flows_closed.iter_mut().zip(other.flows_closed) {
            *sum += more;
        }
        self.flows_moved += other.flows_moved;
        self.retries += other.retries;
        self.upstream_errors += other.upstream_errors;
    }

    /// Counts what is queued as dropped: its sender sends nothing any more.
    pub fn give_up_queued(&mut self) {
        for direction in Direction::ALL {
            let ledger = self.ledger_mut(direction);
            let queued = ledger.queued;
            ledger.give_up(DropReason::Closed, queued);
        }
    }

    pub(crate) const fn ledger_mut(&mut self, direction: Direction) -> &mut Ledger {
        match direction {
            Direction::ToBackend => &mut self.to_backend,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// Flows closed for `reason`.
    pub const fn closed(&self, reason: CloseReason) -> u64 {
        self.flows_closed[reason as usize]
    }
}

/// Where the datagrams of one direction went. Each is counted exactly once:
/// `received = forwarded + dropped + queued`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// All that arrived.
    pub received: Traffic,
    /// What the kernel has taken to send on.
    pub forwarded: Traffic,
    /// What was ordered to be sent on, and has been reported neither delivered nor undelivered yet.
    pub queued: Traffic,
    /// What of `forwarded` the kernel forwarded by itself.
    pub by_kernel: Traffic,
    /// What was dropped, indexed by [`DropReason`].
    pub dropped: [Traffic; DropReason::COUNT],
}

/// Nothing. There are more reasons than arrays have defaults for.
impl Default for Ledger {
    fn default() -> Self {
        let none = Traffic { datagrams: 0, bytes: 0 };
        Self {
            received: none,
            forwarded: none,
            queued: none,
            by_kernel: none,
            dropped: [none; DropReason::COUNT],
        }
    }
}

impl Ledger {
    /// What was dropped for `reason`.
    pub const fn dropped_for(&self, reason: DropReason) -> Traffic {
        self.dropped[reason as usize]
    }

    /// What was dropped, for whatever reason.
    pub fn dropped_total(&self) -> Traffic {
        self.dropped.iter().fold(Traffic::default(), |sum, &traffic| sum.plus(traffic))
    }

    fn merge(&mut self, other: &Self) {
        self.received.add(other.received);
        self.forwarded.add(other.forwarded);
        self.queued.add(other.queued);
        self.by_kernel.add(other.by_kernel);
        for (sum, more) in self.dropped.iter_mut().zip(other.dropped) {
            sum.add(more);
        }
    }

    pub(crate) fn drop(&mut self, reason: DropReason, traffic: Traffic) {
        self.dropped[reason as usize].add(traffic);
    }

    /// Moves to *forwarded* what was queued, as much of it as was.
    pub(crate) fn deliver(&mut self, traffic: Traffic) {
        let delivered = self.queued.take(traffic);
        self.forwarded.add(delivered);
    }

    /// Moves to the drops what was queued, as much of it as was.
    pub(crate) fn give_up(&mut self, reason: DropReason, traffic: Traffic) {
        let lost = self.queued.take(traffic);
        self.drop(reason, lost);
    }
}

/// An amount of traffic. Bytes are payload bytes: no headers, no prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Payload bytes.
    pub bytes: u64,
}

impl Traffic {
    /// What a burst amounts to.
    pub const fn of(burst: &Burst<'_>) -> Self {
        Self { datagrams: burst.count() as u64, bytes: burst.bytes().len() as u64 }
    }

    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self { datagrams: self.datagrams + other.datagrams, bytes: self.bytes + other.bytes }
    }

    pub(crate) const fn add(&mut self, more: Self) {
        *self = self.plus(more);
    }

    /// Takes out as much as there is, and returns that.
    const fn take(&mut self, less: Self) -> Self {
        let before = *self;
        self.take_back(less);
        Self { datagrams: before.datagrams - self.datagrams, bytes: before.bytes - self.bytes }
    }

    /// Takes back what was counted too early; never below zero.
    pub(crate) const fn take_back(&mut self, less: Self) {
        self.datagrams = self.datagrams.saturating_sub(less.datagrams);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_every_figure() {
        let one = Traffic { datagrams: 1, bytes: 10 };
        let mut sum =
            Counters { flows_opened: 3, flows_moved: 4, upstream_errors: 5, ..Counters::default() };
        sum.retries = 6;
        sum.flows_closed[CloseReason::Idle as usize] = 3;
        sum.to_client.received = one;
        sum.to_backend.forwarded = one;
        sum.to_backend.queued = one;
        sum.to_backend.drop(DropReason::MaxFlows, one);
        let other = sum.clone();
        sum.merge(&other);

        let two = Traffic { datagrams: 2, bytes: 20 };
        assert_eq!((sum.flows_opened, sum.flows_moved, sum.upstream_errors), (6, 8, 10));
        assert_eq!(sum.retries, 12);
        assert_eq!(sum.closed(CloseReason::Idle), 6);
        assert_eq!(sum.to_client.received, two);
        assert_eq!(sum.to_backend.forwarded, two);
        assert_eq!(sum.to_backend.queued, two);
        assert_eq!(sum.to_backend.dropped_for(DropReason::MaxFlows), two);
        assert_eq!(sum.to_backend.dropped_total(), two);
    }
}
