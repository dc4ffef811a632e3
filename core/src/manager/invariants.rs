//! What must hold between any two inputs.

use alloc::collections::BTreeMap;
use alloc::vec;

use super::{CONTINUED, EXCHANGED, UNANSWERED, UdpManager};
use crate::flow::UdpFlow;
use crate::reason::Direction;
use crate::upstream::Carries;

impl UdpManager {
    /// Checks everything that must hold between two inputs: for tests, simulators and fuzzers.
    /// Looks at every flow.
    ///
    /// # Panics
    ///
    /// When an invariant is broken, which is a bug in this crate.
    pub fn assert_invariants(&self) {
        self.flows.assert_invariants();

        let mut flows_of_backend = vec![0; self.backends.len()];
        for (id, flow) in self.flows.iter() {
            assert!(self.wheel.is_scheduled(id.index()), "a flow without a timer never ends");
            assert_eq!(
                self.queues.list_of(id.index()),
                queue_of(flow),
                "a flow in the wrong queue"
            );
            flows_of_backend[flow.backend().index()] += 1;
            let ring = || self.branches(Some(id)).take(self.flows.len() + 1);
            let last = ring().last().and_then(|last| Some((last.0, self.flows.get(last.0)?)));
            assert_eq!(
                last.map(|(last, flow)| flow.next_branch(last)),
                Some(id),
                "a ring that does not close"
            );
            let heads =
                ring().filter(|branch| self.flows.get(branch.0).is_some_and(UdpFlow::is_findable));
            assert!(heads.count() <= 1, "a ring with two heads");
        }
        for (id, backend) in self.backends.iter() {
            let flows = flows_of_backend[id.index()];
            assert_eq!(backend.flows_active, flows, "miscounted flows of {}", backend.address());
        }

        let mut flows_on = BTreeMap::new();
        for (slot, flow) in self.flows.iter_all() {
            *flows_on.entry(flow.upstream()).or_insert(0) += 1;
            match self.upstreams.get(flow.upstream()) {
                None => panic!("a flow without a socket"),
                Some(Carries::One(of)) => assert_eq!(of as usize, slot, "another flow's socket"),
                Some(Carries::Many { .. }) => {
                    let transaction = flow.transaction();
                    let found = self.flows.find_route(flow.upstream(), flow.backend(), transaction);
                    assert_eq!(found, Some(slot), "answers do not find their flow");
                }
            }
        }
        self.upstreams.assert_invariants(|id| flows_on.get(&id).copied().unwrap_or(0));

        assert!(self.is_kept_rightly(), "a question of no flow is kept");

        for (slot, _) in self.flows.in_quarantine() {
            assert!(self.wheel.is_scheduled(slot), "a quarantine without a timer never ends");
        }

        self.proxies.assert_invariants(self.flows.iter().filter_map(|(_, flow)| flow.proxy()));

        for counted in self.source_limits.totals() {
            assert_eq!(counted, self.flows.len() as u64, "a source's flows were lost count of");
        }

        let closed: u64 = self.counters.flows_closed.iter().sum();
        let alive = self.flows.len() as u64;
        assert_eq!(self.counters.flows_opened, closed + alive, "a flow was lost count of");
        for direction in Direction::ALL {
            let ledger = self.counters.ledger(direction);
            let accounted = ledger.forwarded.plus(ledger.queued).plus(ledger.dropped_total());
            assert_eq!(ledger.received, accounted, "the {} ledger is off", direction.as_str());
        }
    }
}

/// The queue that a flow that is alive has to be in.
pub(super) const fn queue_of(flow: &UdpFlow) -> Option<usize> {
    match (flow.is_answered(), flow.is_confirmed()) {
        (false, _) => Some(UNANSWERED),
        (true, false) => Some(EXCHANGED),
        (true, true) => Some(CONTINUED),
    }
}
