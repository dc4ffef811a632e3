//! What runs have met, summed up: a simulator that never meets a limit proves nothing about it.

use std::collections::BTreeMap;

use flowgate_core::counters::Counters;
use flowgate_core::{CloseReason, Direction, DropReason, ManagerInput, Output};

/// The sum of what balancers have counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How many inputs they were given.
    pub inputs: u64,
    /// Datagrams that were sent on, by [`Direction`].
    pub forwarded: [u64; Direction::ALL.len()],
    /// Datagrams that were dropped, by [`Direction`] and [`DropReason`].
    pub dropped: [[u64; DropReason::COUNT]; Direction::ALL.len()],
    /// Flows that closed, by [`CloseReason`].
    pub closed: [u64; CloseReason::COUNT],
    /// Flows that went on with another backend.
    pub moved: u64,
    /// Questions that were asked again.
    pub retried: u64,
    /// What else happened, by name: kinds of changes, and what became of backends.
    pub met: BTreeMap<&'static str, u64>,
}

/// Nothing. There are more reasons than arrays have defaults for.
impl Default for Tally {
    fn default() -> Self {
        Self {
            inputs: 0,
            forwarded: [0; Direction::ALL.len()],
            dropped: [[0; DropReason::COUNT]; Direction::ALL.len()],
            closed: [0; CloseReason::COUNT],
            moved: 0,
            retried: 0,
            met: BTreeMap::new(),
        }
    }
}

/// What becomes of backends, as [`Tally::met`] names it. The changes of a configuration are the
/// others.
pub const TURNS: [&str; 5] = [
    "datagrams put a backend out of service",
    "a backend returns by itself",
    "an answer brings a backend back",
    "a sweep ends flows",
    "a change ends flows",
];

/// That a balancer was restored from a snapshot, as [`Tally::met`] names it.
pub const SNAPSHOT: &str = "another balancer goes on with a snapshot";

/// That what had changed since a snapshot made of it what the balancer was, as [`Tally::met`] names it.
pub const FOLLOWED: &str = "another balancer follows by what has changed";

/// That the kernel has forwarded something by itself, as [`Tally::met`] names it.
pub const KERNEL: &str = "the kernel forwards datagrams of a flow";

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
        self.moved += counters.flows_moved;
        self.retried += counters.retries;
    }

    /// Notes that something happened.
    pub(super) fn meet(&mut self, name: &'static str) {
        *self.met.entry(name).or_default() += 1;
    }

    /// Looks at what came of an input: which backends were up, a bit for each, and are.
    pub(super) fn look(
        &mut self,
        input: &ManagerInput<'_>,
        outputs: &[Output<'_>],
        up_before: u64,
        up: u64,
    ) {
        if let ManagerInput::FlowActivity { to_backend, to_client, .. } = input
            && to_backend.datagrams + to_client.datagrams > 0
        {
            self.meet(KERNEL);
        }
        let [put_out, returns, answers, sweep, change] = TURNS;
        let (falls, rises) = (up_before & !up != 0, up & !up_before != 0);
        let ends_flows = outputs.iter().any(|output| {
            let Output::CloseFlow { reason, .. } = output else { return false };
            matches!(reason, CloseReason::BackendDown | CloseReason::BackendRemoved)
        });
        let turn = match input {
            ManagerInput::UpstreamError { .. } if falls => put_out,
            ManagerInput::Timeout if falls => put_out,
            ManagerInput::Timeout if rises => returns,
            ManagerInput::Timeout if ends_flows => sweep,
            ManagerInput::UpstreamBurst { .. } if rises => answers,
            ManagerInput::Configured(_) if ends_flows => change,
            _ => return,
        };
        self.meet(turn);
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        add_each(&mut self.forwarded, &other.forwarded);
        add_each(self.dropped.as_flattened_mut(), other.dropped.as_flattened());
        add_each(&mut self.closed, &other.closed);
        self.moved += other.moved;
        self.retried += other.retried;
        for (name, times) in &other.met {
            *self.met.entry(name).or_default() += times;
        }
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
